"""One turn of each actor, in a private host of its own; times are from exec to exit."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from tests.support.host import PrivateHost

HERE = Path(__file__).resolve().parent
OUT = HERE / "out"
PER_BRIDGE = 1000
Times = dict[str, float]


def build() -> None:
    """Compile the C programs."""
    OUT.mkdir(exist_ok=True)
    for name in ("floor", "probe"):
        words = ["cc", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-o", str(OUT / name)]
        subprocess.run([*words, str(HERE / f"{name}.c")], check=True)


def timed(host: PrivateHost, *words: str) -> tuple[float, float]:
    """Seconds from exec to exit, and peak RSS in MiB."""
    started = time.monotonic()
    child = subprocess.Popen(
        host.enter(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=HERE.parent
    )
    assert child.stdout and child.stderr
    said = child.stdout.read() + child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.monotonic() - started
    child.stdout.close()
    child.stderr.close()
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise RuntimeError(f"{' '.join(words)}: {child.returncode}: {said.decode()[-2000:]}")
    return seconds, usage.ru_maxrss / 1024


def floor(count: int, kind: str) -> Times:
    """The C floor; several bridges of 1,000 are several runs of it, one behind the other."""
    host = PrivateHost()
    try:
        more = ["routed"] if kind == "routed" else []
        words = [str(OUT / "floor"), "/run/netns", str(count), *more]
        times = {"create": timed(host, *words)[0]}
        times["scan"] = timed(host, str(OUT / "probe"), "scan", "/run/netns")[0]
        times["remove"] = timed(host, str(OUT / "probe"), "reap", "/run/netns")[0]
        return times
    finally:
        host.close()


def definition(count: int, kind: str, *, extra: str = "") -> str:
    """N containers declared one by one: on one routed network, or on bridges of 1,000."""
    nets = 1 if kind == "routed" else (count - 1) // PER_BRIDGE + 1
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
    return "\n".join([*lines, extra]) + "\n"


def runcnet(count: int, kind: str, firewall: str = "none") -> Times:
    """Create, nothing to do, one more, one less, remove; and the memory of it."""
    host = PrivateHost()
    host.firewall = firewall
    try:
        whole = definition(count, kind)
        words = host.command("runcnet-reconcile", "--once", "-q", *host.options)
        host.write("a.yaml", whole)
        times: Times = {}
        times["create"], times["create: MiB"] = timed(host, *words)
        timed(host, *words)
        times["nothing to do"], times["nothing to do: MiB"] = timed(host, *words)
        host.write("b.yaml", "containers: {one-more: {interfaces: n0}}\n")
        times["one more"] = timed(host, *words)[0]
        host.drop("b.yaml")
        times["one less"] = timed(host, *words)[0]
        host.write("a.yaml", "containers: {keep: {mode: none}}\n")
        times["remove"] = timed(host, *words, "--max-removals", "all")[0]
        left = json.loads(host.run(*host.command("runcnet", "status", *host.options, "--json")).out)
        if len(left["containers"]) != 1:
            raise RuntimeError(f"left behind: {left}")
        return times
    finally:
        host.close()


def peer(name: str, count: int) -> Times:
    """What somebody else takes to create N containers on one bridge."""
    host = PrivateHost()
    try:
        words = [sys.executable, str(HERE / "peers.py"), name, "/run/netns", str(count)]
        return {"create": timed(host, *words)[0]}
    finally:
        host.close()
