"""What a hook adds to a container's start: by the daemon, in a process of its own, and by CNI plugins.

As a program it is the runtime inside one private host: it makes a namespace that a process holds, as
runc does before its hooks, calls what is measured, looks whether the container has its network, and
takes that away again. Each line of stdin is one such start and end, each line of stdout its seconds.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from benchmarks import installed
from benchmarks.measure import HERE, definition
from benchmarks.peers import CNI, cni_calls
from tests.support.host import PrivateHost

NETWORK = "n0"
GATEWAY = "10.0.0.1"
ATTACH, DETACH = "attach", "detach"
WITH_DAEMON = "runcnet-hook, with the daemon"
ALONE = "runcnet-hook, no daemon"
PLUGINS = "CNI bridge + loopback"
HOST_PORT = 18_000
SMALL, LARGE, PORT = "hooks, 10", "hooks, 1000", "hooks with a port, 10"
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
DEADLINE_S = 10.0


class Call(NamedTuple):
    """One program that the runtime runs, and what it finds on its stdin."""

    program: str
    words: list[str]
    stdin: str
    environment: dict[str, str]


# -- inside the host ------------------------------------------------------------------------------


def hook(stage: str, name: str, pid: int, asked: dict[str, list[str]]) -> list[Call]:
    """What runc runs for a bundle with our hooks."""
    state = {"ociVersion": "1.0.2", "id": name, "status": "created", "pid": pid, "bundle": "/run"}
    program, runcnet = asked["hook"]
    words = [runcnet, "hook", stage, *asked["options"], "--network", NETWORK]
    for port in asked["ports"]:
        words += ["--port", port]
    return [Call(program, words, json.dumps(state), {"PATH": PATH})]


def plugins(stage: str, name: str, pid: int, asked: dict[str, list[str]]) -> list[Call]:
    """What a CNI runtime runs for the same container."""
    command = "ADD" if stage == "createRuntime" else "DEL"
    calls = cni_calls(command, name, f"/proc/{pid}/ns/net")
    return [Call(program, [program], stdin, env) for program, stdin, env in calls]


def timed(calls: list[Call], log: str) -> float:
    """Seconds from the first exec to the last exit; RuntimeError where one fails."""
    ready = []
    for number, call in enumerate(calls):
        state = f"{log}.{number}"
        Path(state).write_text(call.stdin)
        files = [
            (os.POSIX_SPAWN_OPEN, 0, state, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ]
        ready.append((call, files))
    codes = []
    began = time.monotonic()
    for call, files in ready:
        pid = os.posix_spawn(call.program, call.words, call.environment, file_actions=files)
        codes.append(os.waitpid(pid, 0)[1])
    took = time.monotonic() - began
    if any(codes):
        raise RuntimeError(f"{calls}: {codes}: {Path(log).read_text()[-2000:]}")
    return took


def container() -> subprocess.Popen[bytes]:
    """A process in a network namespace of its own."""
    own = os.readlink("/proc/self/ns/net")
    child = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
    deadline = time.monotonic() + DEADLINE_S
    while os.readlink(f"/proc/{child.pid}/ns/net") == own:
        if time.monotonic() > deadline:
            raise RuntimeError("no namespace")
        time.sleep(0.001)
    return child


def veths() -> int:
    """How many the host has."""
    words = ["ip", "-o", "link", "show", "type", "veth"]
    return subprocess.run(words, stdout=subprocess.PIPE, check=True).stdout.count(b"\n")


def start_and_end(name: str, pid: int, asked: dict[str, list[str]], log: str) -> dict[str, float]:
    """One container's; RuntimeError where it has no network, or leaves something behind."""
    calls: Callable[[str, str, int, dict[str, list[str]]], list[Call]]
    calls = hook if asked["hook"] else plugins
    before = veths()
    seconds = {ATTACH: timed(calls("createRuntime", name, pid, asked), log)}
    ping = ["nsenter", "-t", str(pid), "-n", "ping", "-c1", "-w10", GATEWAY]
    if subprocess.run(ping, stdout=subprocess.DEVNULL, check=False).returncode:
        raise RuntimeError(f"{name} does not reach {GATEWAY}")
    seconds[DETACH] = timed(calls("poststop", name, pid, asked), log)
    if veths() != before:
        raise RuntimeError(f"{name} left something behind")
    return seconds


def serve() -> None:
    """The runtime: one start and end for each line."""
    asked = json.loads(sys.stdin.readline())
    held = []
    try:
        for number, _ in enumerate(sys.stdin):
            # All of them stay to the end: the kernel would be at work on one's end while others are timed.
            held.append(container())
            found = start_and_end(f"guest-{number}", held[-1].pid, asked, "/run/said")
            print(json.dumps(found), flush=True)
    finally:
        for child in held:
            child.kill()
            child.wait()


# -- outside of it ------------------------------------------------------------------------------------


@contextlib.contextmanager
def runtime(host: PrivateHost, **asked: list[str]) -> Iterator[Callable[[], dict[str, float]]]:
    """Starts and ends a container in the host whenever it is called."""
    child = subprocess.Popen(
        host.enter(sys.executable, "-m", "benchmarks.hooks"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(HERE.parent)},
    )
    assert child.stdin and child.stdout

    def once() -> dict[str, float]:
        assert child.stdin and child.stdout
        child.stdin.write("\n")
        child.stdin.flush()
        line = child.stdout.readline()
        if not line:
            raise RuntimeError("the runtime has given up")
        found: dict[str, float] = json.loads(line)
        return found

    child.stdin.write(json.dumps(asked) + "\n")
    try:
        yield once
    finally:
        child.stdin.close()
        child.wait()
        child.stdout.close()


class Stage:
    """A private host for each actor, with `count` containers that it made itself on one bridge."""

    def __init__(self, count: int, *, port: bool = False) -> None:
        """`port`: each container publishes one, by iptables; without, nobody writes rules."""
        self.count = count
        self.port = port
        self._stack = contextlib.ExitStack()
        self._calls: dict[str, Callable[[], dict[str, float]]] = {}

    def actors(self) -> dict[str, Callable[[], dict[str, float]]]:
        """Whoever can run here: a start and an end with each call."""
        names = [WITH_DAEMON, ALONE]
        if not self.port and (CNI / "bridge").exists():
            names.append(PLUGINS)
        return {name: partial(self._once, name, names) for name in names}

    def close(self) -> None:
        """End all of it."""
        self._stack.close()
        self._calls.clear()

    def _once(self, name: str, names: list[str]) -> dict[str, float]:
        if not self._calls:
            programs = installed.programs()
            self._calls = {one: self._ready(one, programs) for one in names}
            for call in self._calls.values():
                call()  # what is done once alone: a bridge, a program's bytecode
        return self._calls[name]()

    def _ready(self, name: str, programs: installed.Programs) -> Callable[[], dict[str, float]]:
        host = PrivateHost()
        self._stack.callback(host.close)
        host.firewall = "iptables" if self.port else "none"
        if name == PLUGINS:
            words = [sys.executable, str(HERE / "peers.py"), PLUGINS, "/run/netns", str(self.count)]
            subprocess.run(host.enter(*words), check=True)
            return self._stack.enter_context(runtime(host, hook=[], options=[], ports=[]))
        host.write("a.yaml", definition(self.count, "bridge"))
        if not host.reconcile().report["converged"]:
            raise RuntimeError(f"{self.count} containers do not stand")
        if name == WITH_DAEMON:
            self._stack.enter_context(host.daemon())
        ports = [f"{HOST_PORT}:80"] if self.port else []
        return self._stack.enter_context(
            runtime(
                host, hook=[programs.client, programs.runcnet], options=host.options, ports=ports
            )
        )


if __name__ == "__main__":
    serve()
