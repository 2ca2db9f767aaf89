"""`make bench`: N containers on one bridge, `runcnet-reconcile --once` from exec to exit, beside a
straight C program that asks the kernel for the same. Interleaved; medians of five."""

import argparse
import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.host import PrivateHost

HERE = Path(__file__).resolve().parent
OUT = HERE / "out"


def build() -> Path:
    """Compile the floor."""
    OUT.mkdir(exist_ok=True)
    program = OUT / "floor"
    words = ["cc", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-o", str(program)]
    subprocess.run([*words, str(HERE / "floor.c")], check=True)
    return program


def timed(host: PrivateHost, *words: str) -> float:
    """Seconds from exec to exit."""
    started = time.monotonic()
    host.run(*words)
    return time.monotonic() - started


def floor(program: Path, count: int) -> float:
    """One turn of the C program, in a host of its own."""
    host = PrivateHost()
    try:
        return timed(host, str(program), "/run/netns", str(count))
    finally:
        host.close()


def runcnet(count: int, firewall: str) -> dict[str, float]:
    """One turn of runcnet, in a host of its own: create, nothing to do, remove."""
    host = PrivateHost()
    host.firewall = firewall
    try:
        text = "networks: {n: {subnets: 10.0.0.0/16}}\n"
        one = text + "containers: {k: {mode: none}}\n"
        many = (
            text + f"containers: {{k: {{mode: none}}, w: {{replicas: {count}, interfaces: n}}}}\n"
        )
        words = host.command("runcnet-reconcile", "--once", "-q", *host.options)
        host.write("a.yaml", many)
        times = {"create": timed(host, *words)}
        times["nothing to do"] = timed(host, *words)
        host.write("a.yaml", one)
        times["remove"] = timed(host, *words, "--max-removals", "all")
        return times
    finally:
        host.close()


def main() -> None:
    """Run, print a Markdown table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=1000, help="containers (at most 1,022)")
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    # An installed program has its bytecode beside it; some build machines forbid that.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    program = build()
    turns: dict[str, list[float]] = {}
    actors: list[tuple[str, Callable[[], Any]]] = [
        ("C floor: create", lambda: {"": floor(program, options.n)}),
        ("runcnet", lambda: runcnet(options.n, "none")),
        ("runcnet with masquerade", lambda: runcnet(options.n, "iptables")),
    ]
    for _ in range(options.turns):
        for name, act in actors:
            for case, seconds in act().items():
                turns.setdefault(f"{name}: {case}".removesuffix(": "), []).append(seconds)
    base = statistics.median(turns["C floor: create"])
    print(f"N = {options.n}, medians of {options.turns}, whole process\n")
    print("| case | median s | least | most | µs a container | against the floor's create |")
    print("|---|---|---|---|---|---|")
    for name, values in turns.items():
        median = statistics.median(values)
        print(
            f"| {name} | {median:.3f} | {min(values):.3f} | {max(values):.3f} | "
            f"{median / options.n * 1e6:.0f} | {median / base:.2f} × |"
        )
    (OUT / "bench.json").write_text(json.dumps({"n": options.n, "seconds": turns}, indent=1))


if __name__ == "__main__":
    main()
