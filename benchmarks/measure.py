"""One turn of each actor, in a private host of its own; times are from exec to exit.

Each turn is verified before its times count: as many namespaces and veths stand as were asked for,
the last of them reaches its gateway, and runcnet's own report says that nothing is left to do.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.host import PrivateHost

HERE = Path(__file__).resolve().parent
OUT = HERE / "out"
PER_BRIDGE = 1000
KEPT_LINKS = 2
"""`lo` and `eth0`, which a private host has in any case."""
Times = dict[str, float]


def build() -> None:
    """Compile the C programs."""
    OUT.mkdir(exist_ok=True)
    for name in ("floor", "probe"):
        words = ["cc", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-o", str(OUT / name)]
        subprocess.run([*words, str(HERE / f"{name}.c")], check=True)


@contextmanager
def private(firewall: str = "none") -> Iterator[PrivateHost]:
    """A private host for one turn."""
    host = PrivateHost()
    host.firewall = firewall
    try:
        yield host
    finally:
        host.close()


def timed(host: PrivateHost, *words: str) -> tuple[float, float]:
    """Seconds from exec to exit, and peak RSS in MiB."""
    started = time.monotonic()
    child = subprocess.Popen(
        host.enter(*words), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=HERE.parent
    )
    assert child.stdout
    said = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.monotonic() - started
    child.stdout.close()
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise RuntimeError(f"{' '.join(words)}: {child.returncode}: {said.decode()[-2000:]}")
    return seconds, usage.ru_maxrss / 1024


def bridges(count: int, kind: str) -> int:
    """How many bridges N containers are on."""
    return 0 if kind == "routed" else (count - 1) // PER_BRIDGE + 1


def standing(host: PrivateHost) -> tuple[int, int]:
    """How many namespaces are bound in the netns dir, and how many veths the host has."""
    bound = {
        line.split()[4]
        for line in host.run("cat", "/proc/self/mountinfo").out.splitlines()
        if " - nsfs " in line and line.split()[4].startswith("/run/netns/")
    }
    veths = host.run("ip", "-o", "link", "show", "type", "veth").out.count("\n")
    return len(bound), veths


def verify(host: PrivateHost, count: int, before: tuple[int, int], gateway: str) -> None:
    """Raise unless `count` more namespaces with a veth stand than before, and the last one pings."""
    now = standing(host)
    if (now[0] - before[0], now[1] - before[1]) != (count, count):
        raise RuntimeError(f"asked for {count}, namespaces and veths are {before}, then {now}")
    if not host.ping(f"c-{count - 1}", gateway):
        raise RuntimeError(f"c-{count - 1} does not reach {gateway}")


def last_gateway(count: int, kind: str) -> str:
    """The gateway of the last of N containers."""
    return f"10.{max(bridges(count, kind) - 1, 0)}.0.1"


def floor(count: int, kind: str) -> Times:
    """The C programs: create, scan, remove."""
    with private() as host:
        before = standing(host)
        more = ["routed"] if kind == "routed" else []
        times = {"create": timed(host, str(OUT / "floor"), "/run/netns", str(count), *more)[0]}
        verify(host, count, before, last_gateway(count, kind))
        probe = str(OUT / "probe")
        times["scan"] = timed(host, probe, "scan", "/run/netns")[0]
        left = KEPT_LINKS + bridges(count, kind)
        times["remove"] = timed(host, probe, "reap", "/run/netns", str(left))[0]
        return times


def definition(count: int, kind: str) -> str:
    """N containers declared one by one: on one routed network, or on bridges of 1,000."""
    nets = max(bridges(count, kind), 1)
    lines = ["networks:"]
    for i in range(nets):
        more = (
            "type: routed, subnets: 10.0.0.0/16" if kind == "routed" else f"subnets: 10.{i}.0.0/16"
        )
        lines.append(f"  n{i}: {{{more}}}")
    lines.append("containers:")
    lines.append("  keep: {mode: none}")
    lines += [
        f"  c-{i}: {{interfaces: n{i // PER_BRIDGE if nets > 1 else 0}}}" for i in range(count)
    ]
    return "\n".join(lines) + "\n"


def runcnet(count: int, kind: str, firewall: str = "none") -> Times:
    """Create, nothing to do, one more, one less, remove; and the memory of it."""
    with private(firewall) as host:
        before = standing(host)
        words = host.command("runcnet-reconcile", "--once", "-q", *host.options)
        host.write("a.yaml", definition(count, kind))
        times: Times = {}
        times["create"], times["create: MiB"] = timed(host, *words)
        keep = before[0] + 1, before[1]
        verify(host, count, keep, last_gateway(count, kind))
        _settled(host, words, count)
        times["nothing to do"], times["nothing to do: MiB"] = timed(host, *words)
        host.write("b.yaml", "containers: {one-more: {interfaces: n0}}\n")
        times["one more"] = timed(host, *words)[0]
        if not host.ping("one-more", "10.0.0.1"):
            raise RuntimeError("one-more does not reach its gateway")
        host.drop("b.yaml")
        times["one less"] = timed(host, *words)[0]
        verify(host, count, keep, last_gateway(count, kind))
        host.write("a.yaml", "containers: {keep: {mode: none}}\n")
        times["remove"] = timed(host, *words, "--max-removals", "all")[0]
        if standing(host) != keep:
            raise RuntimeError(f"left behind: {standing(host)} rather than {keep}")
        return times


def _settled(host: PrivateHost, words: list[str], count: int) -> None:
    """Raise unless one more pass reports that all of it stands and nothing is to be done."""
    report = host.run(*words, "--json").report
    if not report["converged"] or report["operations"] or report["unchanged"] <= count:
        raise RuntimeError(f"not what was asked for: {json.dumps(report)[:2000]}")


def peer(name: str, count: int) -> Times:
    """What somebody else takes to create N containers on one bridge."""
    with private() as host:
        before = standing(host)
        words = [sys.executable, str(HERE / "peers.py"), name, "/run/netns", str(count)]
        times = {"create": timed(host, *words)[0]}
        verify(host, count, before, "10.0.0.1")
        return times
