"""A private host: its own network and mount namespaces, its own /run, and an internet behind eth0.

    internet namespace                     the host under test
    198.51.100.1, 2001:db8:100::1  (lo)
    192.0.2.1, 2001:db8:ffff::1  up0 ----- eth0  192.0.2.2, 2001:db8:ffff::2

The internet knows no way back to the containers' IPv4 subnets: what comes back was translated.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
CLIENT = ROOT / "reconciler" / "runcnet-hook"
RUNCNET = str(Path(sys.executable).parent / "runcnet")
SERVER = "198.51.100.1"
SERVER6 = "2001:db8:100::1"
ENTRY = (
    "import sys; from reconciler.cli import main, reconcile_entry; "
    "name = sys.argv.pop(1); raise SystemExit((main if name == 'runcnet' else reconcile_entry)())"
)
SETUP = f"""
mount -t tmpfs none /run
mkdir -p /run/netns /run/lock
mount -t sysfs none /sys 2>/dev/null || true
mount -t cgroup2 none /sys/fs/cgroup 2>/dev/null || true
ip link set lo up
ip netns add internet
ip link add eth0 type veth peer name up0 netns internet
ip addr add 192.0.2.2/24 dev eth0
ip addr add 2001:db8:ffff::2/64 dev eth0 nodad
for path in "" "ip netns exec internet"; do $path sysctl -qw net.ipv6.conf.default.accept_dad=0; done
sysctl -qw net.ipv6.conf.eth0.accept_dad=0
ip netns exec internet sysctl -qw net.ipv6.conf.up0.accept_dad=0
ip link set eth0 up
ip -n internet addr add 192.0.2.1/24 dev up0
ip -n internet addr add 2001:db8:ffff::1/64 dev up0 nodad
ip -n internet link set up0 up
ip -n internet link set lo up
ip -n internet addr add {SERVER}/24 dev lo
ip -n internet addr add {SERVER6}/64 dev lo nodad
ip route add default via 192.0.2.1
ip -6 route add default via 2001:db8:ffff::1
sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0
"""


class Run(NamedTuple):
    """A command that ended."""

    code: int
    out: str
    err: str

    @property
    def report(self) -> dict[str, Any]:
        """Its stdout as JSON."""
        return json.loads(self.out)  # type: ignore[no-any-return]

    @property
    def changes(self) -> list[str]:
        """`object: description` of each operation of a report."""
        return [f"{o['object']}: {o['description']}" for o in self.report["operations"]]


def wait_for(condition: Callable[[], Any], seconds: float = 10.0, what: str = "") -> Any:
    """The first true answer of `condition`; fails loudly at the deadline."""
    deadline = time.monotonic() + seconds
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds} s in vain{f' for {what}' if what else ''}")
        time.sleep(0.02)


def page(path: Path) -> str:
    """What is served at a unix socket for GET /metrics."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(path))
        client.sendall(b"GET /metrics HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
        parts = []
        while part := client.recv(1 << 16):
            parts.append(part)
    return b"".join(parts).decode()


class RunningDaemon(NamedTuple):
    """A daemon's process, and what it says on stderr."""

    child: "subprocess.Popen[bytes]"
    path: Path

    @property
    def log(self) -> str:
        """All that it has said."""
        return self.path.read_text()

    def says(self, text: str, times: int = 1) -> None:
        """Wait until it has said that so often."""

        def said() -> bool:
            assert self.child.poll() is None, self.log
            return self.log.count(text) >= times

        wait_for(said, 60.0, f"{text!r} in the log")

    def stop(self, seconds: float = 10.0) -> int:
        """SIGTERM; its exit code."""
        self.child.terminate()
        return self.child.wait(seconds)


class PrivateHost:
    """A host of one's own. Everything in it ends with `close()`."""

    def __init__(self) -> None:
        self.dir = Path(tempfile.mkdtemp(prefix="runcnet-test-"))
        self.config = self.dir / "config"
        self.config.mkdir(mode=0o755)
        self.state = self.dir / "state"
        self._children: list[subprocess.Popen[str]] = []
        self._holder = subprocess.Popen(
            ["unshare", "--net", "--mount", "--propagation", "private", "sleep", "infinity"]
        )
        own = os.readlink("/proc/self/ns/net")
        wait_for(lambda: self._namespace() not in ("", own), what="the namespaces")
        self.firewall = "iptables"
        self.sh(SETUP)

    def _namespace(self) -> str:
        try:
            return os.readlink(f"/proc/{self._holder.pid}/ns/net")
        except OSError:
            return ""

    # -- running things in it -----------------------------------------------------------------

    def enter(self, *words: str) -> list[str]:
        """The command line that runs `words` in the host."""
        return ["nsenter", "-t", str(self._holder.pid), "-n", "-m", "--", *words]

    @property
    def holder(self) -> int:
        """The process that holds the host's namespaces."""
        return self._holder.pid

    def run(self, *words: str, check: bool = True, stdin: str | None = None) -> Run:
        """Run a command to its end."""
        done = subprocess.run(
            self.enter(*words),
            capture_output=True,
            text=True,
            input=stdin,
            timeout=120,
            cwd=ROOT,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(
                f"{' '.join(words)}: {done.returncode}\n{done.stdout}{done.stderr}"
            )
        return Run(done.returncode, done.stdout, done.stderr)

    def sh(self, script: str, check: bool = True) -> Run:
        """Run a shell script."""
        return self.run("sh", "-ec" if check else "-c", script, check=check)

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start a command; it is ended with the host at the latest."""
        child = subprocess.Popen(
            self.enter(*words),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
        )
        self._children.append(child)
        return child

    # -- runcnet --------------------------------------------------------------------------------

    @property
    def options(self) -> list[str]:
        """The folder options of every command."""
        folders = ["--config-dir", str(self.config), "--state-dir", str(self.state)]
        return [*folders, "--firewall", self.firewall]

    def command(self, name: str, *words: str) -> list[str]:
        """The command line of runcnet or runcnet-reconcile."""
        return [sys.executable, "-c", ENTRY, name, *words]

    def reconcile(self, *words: str, check: bool | None = None) -> Run:
        """`runcnet-reconcile --once --json`; `check`: whether it must exit with 0 (if not given)."""
        words = words or ("--once",)
        run = self.run(
            *self.command("runcnet-reconcile", *words, "--json", *self.options), check=False
        )
        assert "Traceback" not in run.err, run.err
        if check is None or check:
            assert run.code == 0, f"{run.code}\n{run.out}\n{run.err}"
        return run

    def runcnet(self, *words: str, check: bool = True) -> Run:
        """`runcnet WORDS`, with the folder options behind the sub-command."""
        run = self.run(*self.command("runcnet", words[0], *self.options, *words[1:]), check=False)
        assert "Traceback" not in run.err, run.err
        if check:
            assert run.code == 0, f"{run.code}\n{run.out}\n{run.err}"
        return run

    @contextlib.contextmanager
    def daemon(self, *words: str, log: str = "daemon.log") -> Iterator["RunningDaemon"]:
        """A daemon that has done its first pass; it is ended at the end."""
        path = self.dir / log
        command = self.command("runcnet-reconcile", "--private-mounts", *words, *self.options)
        with path.open("w") as file:
            child = subprocess.Popen(self.enter(*command), stderr=file, stdout=file, cwd=ROOT)
        running = RunningDaemon(child, path)
        try:
            running.says("watching ")
            yield running
        finally:
            if child.poll() is None:
                child.kill()
            child.wait(10)
        assert "Traceback" not in running.log, running.log

    def write(self, name: str, text: str, *, age_s: float = 5.0) -> Path:
        """A definition file, left alone for `age_s` seconds already."""
        path = self.config / name
        path.write_text(text)
        path.chmod(0o644)
        self.age(age_s)
        return path

    def drop(self, name: str) -> None:
        """Remove a definition file."""
        (self.config / name).unlink()
        self.age(5.0)

    def age(self, seconds: float) -> None:
        """Make all files look as old as that."""
        then = time.time() - seconds
        for path in [*self.config.iterdir(), self.config]:
            os.utime(path, (then, then))

    # -- looking at it --------------------------------------------------------------------------

    def ip(self, *words: str, netns: str = "") -> Any:
        """The answer of `ip -j`."""
        lead = ["-n", netns] if netns else []
        return json.loads(self.run("ip", "-j", "-d", *lead, *words).out or "[]")

    def link(self, name: str, netns: str = "") -> dict[str, Any]:
        """One link."""
        return self.ip("link", "show", "dev", name, netns=netns)[0]  # type: ignore[no-any-return]

    def addresses(self, name: str, netns: str = "") -> list[str]:
        """The addresses of a link, `a/len`, without link-local ones."""
        found = self.ip("addr", "show", "dev", name, netns=netns)[0]["addr_info"]
        return [f"{a['local']}/{a['prefixlen']}" for a in found if a["scope"] == "global"]

    def host_end(self, container: str, interface: str) -> dict[str, Any]:
        """The host's end of a container's interface, by its mark."""
        return next(
            link
            for link in self.ip("link", "show", "type", "veth")
            if link.get("ifalias", "").endswith(f"/{container}/{interface}")
        )

    def ping(self, netns: str, address: str, *words: str) -> bool:
        """Whether one echo comes back."""
        lead = ["ip", "netns", "exec", netns] if netns else []
        return self.run(*lead, "ping", "-c1", "-W2", *words, address, check=False).code == 0

    def ours(self) -> dict[str, Any]:
        """Everything of ours that stands, for comparing before and after."""
        self.run("true")
        links = self.ip("link", "show")
        return {
            "links": sorted(x["ifname"] for x in links if "runcnet:" in x.get("ifalias", "")),
            "netns": sorted(
                name for name in self.run("ls", "/run/netns").out.split() if name != "internet"
            ),
            "rules": [
                line
                for program in ("iptables-legacy-save", "ip6tables-legacy-save")
                for line in self.run(program).out.splitlines()
                if "RUNCNET" in line and not line.startswith(":")
            ]
            + [
                line
                for line in self.run("nft", "list", "tables").out.splitlines()
                if "runcnet" in line
            ],
        }

    # -- runc -----------------------------------------------------------------------------------

    def bundle(self, name: str, *command: str) -> Path:
        """A busybox bundle whose process runs `command`."""
        bundle = self.dir / "bundles" / name
        rootfs = bundle / "rootfs"
        for folder in ("bin", "etc", "proc", "sys", "dev", "tmp"):
            (rootfs / folder).mkdir(parents=True)
        for file in ("resolv.conf", "hosts"):
            (rootfs / "etc" / file).touch()
        shutil.copy("/bin/busybox", rootfs / "bin" / "busybox")
        for applet in ("sh", "ping", "ip", "sleep", "nc", "cat", "ls"):
            (rootfs / "bin" / applet).symlink_to("busybox")
        self.run("runc", "spec", "-b", str(bundle))
        config = json.loads((bundle / "config.json").read_text())
        config["process"]["terminal"] = False
        config["process"]["args"] = list(command)
        config["root"]["readonly"] = False
        for held in config["process"]["capabilities"].values():
            held.append("CAP_NET_RAW")  # busybox knows no ping without it
        config["linux"]["namespaces"] = [
            n for n in config["linux"]["namespaces"] if n["type"] != "cgroup"
        ]
        config["mounts"] = [m for m in config["mounts"] if m["type"] != "cgroup"]
        (bundle / "config.json").write_text(json.dumps(config, indent=2))
        return bundle

    def hooked(self, bundle: Path, *flags: str, fast: bool = False) -> Path:
        """The bundle, its hooks calling runcnet with these flags; its namespace is the runtime's.

        `fast`: by the program that asks a daemon.
        """
        config = json.loads((bundle / "config.json").read_text())
        config["linux"]["namespaces"] = [
            {"type": "network"} if n["type"] == "network" else n
            for n in config["linux"]["namespaces"]
        ]
        config["hooks"] = {
            stage: [
                {
                    "path": str(CLIENT) if fast else RUNCNET,
                    "args": [RUNCNET, "hook", stage, *self.options, *flags],
                    "env": [f"PATH={os.environ['PATH']}"],
                }
            ]
            for stage in ("createRuntime", "poststop")
        }
        (bundle / "config.json").write_text(json.dumps(config, indent=2))
        return bundle

    def runc(self, *words: str, runtime: str = "runc", check: bool = True) -> Run:
        """runc with a state dir of the host's own."""
        return self.run(*self._oci(runtime), *words, check=check)

    @staticmethod
    def _oci(runtime: str) -> list[str]:
        # crun raises a limit for its device filter, which not every machine allows.
        more = ["--cgroup-manager", "disabled"] if runtime == "crun" else []
        return [runtime, "--root", "/run/oci", *more]

    @contextlib.contextmanager
    def container(self, name: str, bundle: Path, runtime: str = "runc") -> Iterator[int]:
        """A running container's pid."""
        log = self.dir / f"{name}.log"
        lead = " ".join(self._oci(runtime))
        script = f"{lead} run -d -b {bundle} {name} >{log} 2>&1 </dev/null"
        run = self.sh(script, check=False)
        assert run.code == 0, log.read_text()
        try:
            state = json.loads(self.runc("state", name, runtime=runtime).out)
            yield state["pid"]
        finally:
            self.runc("delete", "-f", name, runtime=runtime, check=False)

    @contextlib.contextmanager
    def process(self, netns: str, *command: str) -> Iterator[subprocess.Popen[str]]:
        """A process that lives in a namespace of the netns dir."""
        child = self.start("ip", "netns", "exec", netns, *(command or ("sleep", "infinity")))
        inside = f"/proc/{child.pid}/ns/net"
        own = self._namespace()
        wait_for(lambda: os.readlink(inside) not in (own, os.readlink("/proc/self/ns/net")))
        try:
            yield child
        finally:
            self.stop(child)

    def stop(self, child: subprocess.Popen[str]) -> None:
        """End a child that was started here."""
        if child.poll() is None:
            child.kill()
        child.wait(10)
        for pipe in (child.stdin, child.stdout):
            if pipe:
                pipe.close()

    def close(self) -> None:
        """End everything in it and take its folder away."""
        for child in self._children:
            self.stop(child)
        for pid in self._inhabitants():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._holder.kill()
        self._holder.wait(10)
        shutil.rmtree(self.dir, ignore_errors=True)

    def _inhabitants(self) -> list[int]:
        """Processes of the host's mount namespace, and so of nobody else."""
        own = os.readlink(f"/proc/{self._holder.pid}/ns/mnt")
        if own == os.readlink("/proc/self/ns/mnt"):
            return []
        found = []
        for entry in os.listdir("/proc"):
            if entry.isdigit() and int(entry) != self._holder.pid:
                with contextlib.suppress(OSError):
                    if os.readlink(f"/proc/{entry}/ns/mnt") == own:
                        found.append(int(entry))
        return found
