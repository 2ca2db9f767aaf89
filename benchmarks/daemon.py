"""The daemon: how soon it repairs, how soon it makes what is new, what it costs when nothing is to do."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.measure import HERE
from tests.support.host import PrivateHost, RunningDaemon

BARE = 10
IDLE_S = 300.0
"""A whole pass, of which there is one in some 200 s, and several checks fall into it."""
LOOKS = 8
"""Whole passes after which what a daemon holds of freed memory has come to its level."""
EVENTS = 20_000
STEPS = 10
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


@contextmanager
def kept(bridged: int, routed: int, *words: str) -> Iterator[tuple[PrivateHost, RunningDaemon]]:
    """A private host with that many containers and a daemon that keeps them."""
    host = PrivateHost()
    try:
        host.firewall = "none"
        lines = [
            "networks:",
            "  n0: {subnets: 10.0.0.0/16}",
            "  far: {type: routed, subnets: 10.1.0.0/16}",
            "containers:",
            *(f"  bare-{i}: {{mode: none}}" for i in range(BARE)),
            *(f"  b-{i}: {{interfaces: n0}}" for i in range(bridged)),
            *(f"  r-{i}: {{interfaces: far}}" for i in range(routed)),
        ]
        host.write("a.yaml", "\n".join(lines) + "\n")
        with host.daemon(*words) as running:
            yield host, running
    finally:
        host.close()


def prober(host: PrivateHost, running: RunningDaemon, **asked: object) -> dict[str, list[float]]:
    """Let the prober work inside the host; seconds by kind."""
    asked |= {"pid": running.child.pid, "config": str(host.config)}
    child = subprocess.run(
        host.enter(sys.executable, "-m", "benchmarks.drift"),
        input=json.dumps(asked),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        # In another mount namespace the working directory is another one, too.
        env={**os.environ, "PYTHONPATH": str(HERE.parent)},
    )
    said = json.loads(child.stdout)
    for line in said["late"]:
        print(f"not repaired in time: {line}", file=sys.stderr)
    if said["half-made"]:
        raise RuntimeError(f"half-made: {said['half-made']}")
    return said["times"]  # type: ignore[no-any-return]


def drift(count: int, trials: int) -> dict[str, list[float]]:
    """Every kind of drift with `count` containers standing, a quarter of them on a bridge."""
    bridged = count // 4
    groups = {"b": bridged, "r": count - bridged - BARE, "bare": BARE}
    with kept(bridged, groups["r"]) as (host, running):
        return prober(host, running, trials=trials, groups=groups)


def files(count: int, trials: int) -> dict[str, list[float]]:
    """A file with one new container beside `count` routed ones."""
    with kept(0, count) as (host, running):
        return prober(host, running, trials=0, groups={}, files=trials)


def idle(count: int, seconds: float = IDLE_S) -> dict[str, list[float]]:
    """The share of a core that a daemon takes while nothing happens."""
    with kept(0, count) as (_, running):
        time.sleep(2)
        before, since = _cpu_s(running.child.pid), time.monotonic()
        time.sleep(seconds)
        share = (_cpu_s(running.child.pid) - before) / (time.monotonic() - since)
        return {"idle": [share]}


def memory(count: int, changes: int = EVENTS) -> dict[str, list[float]]:
    """MiB resident after each tenth of the changes, the first before any."""
    with kept(0, count, "--resync", "30") as (host, running):
        for _ in range(LOOKS):
            running.child.send_signal(signal.SIGHUP)
            time.sleep(2)
        curve = [_resident(running.child.pid)]
        for step in range(STEPS):
            said = host.sh(toggle(step, changes // STEPS, count)).out
            if said.count("gone") < 0.9 * (changes // STEPS):
                raise RuntimeError(f"of {changes // STEPS} routes only {said.count('gone')} went")
            time.sleep(2)
            curve.append(_resident(running.child.pid))
        return {"memory": curve}


def toggle(step: int, times: int, count: int) -> str:
    """A script that takes the default routes of some containers away, in bursts of forty."""
    lines = ["set -e"]
    for i in range(times):
        lines.append(
            f"ip -n r-{(step * times + i) * 7 % count} route del default && echo gone || true"
        )
        if i % 40 == 39:
            lines.append("sleep 0.1")
    return "\n".join(lines)


def _cpu_s(pid: int) -> float:
    """Seconds on a core, those of children that have ended included."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(word) for word in words[11:15]) / TICKS_PER_S


def _resident(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE / 2**20
