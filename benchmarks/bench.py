"""`make bench`: runcnet beside the C floor and beside what people use instead.

Turns are interleaved (A B C A B C ...), in private hosts. Each whole turn is saved to
`benchmarks/out/bench.json` as it ends, so that a run which is cut short goes on with `--missing`.
Parts: floor, peers, growth, daemon, ports, hooks (all where none is given).
"""

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

from benchmarks import daemon, hooks, measure, peers, ports, record, report
from benchmarks.about import about
from benchmarks.measure import OUT
from benchmarks.record import Group, Groups

Act = Callable[[], Mapping[str, float | list[float]]]
PARTS = ("floor", "peers", "growth", "daemon", "ports", "hooks")
LARGEST = 10_000
QUICK_N = 300
QUICK_TURNS = 5
QUICK_CREATE = 1.6
"""How many times the floor `--quick` may take to create, without the time of a pass that looks."""
QUICK_LOOK = 14.0
"""How many times the C scan `--quick` may take for nothing to do. At this size Python's start and
imports are most of it (7 to 9 times in all where the tools for tests are installed, too): that everything
is imported twice as slowly, or looked at one by one, is what it catches."""
QUICK_NOISE = 0.9
"""The least of the turns must be beyond so much of a bound, too, before `--quick` fails: a regression
moves all turns, noise some."""

FAILURES = (RuntimeError, AssertionError, OSError, subprocess.SubprocessError)
"""What ends a group alone: an actor failed, or did not make what was asked. The others go on."""


class Run(NamedTuple):
    """Actors that are measured side by side."""

    name: str
    part: str
    n: int
    turns: int
    actors: dict[str, Act]
    close: Callable[[], None] = lambda: None
    """Ends what the actors keep between turns."""


def pair(count: int, kind: str) -> dict[str, Act]:
    """The floor and runcnet at one size."""
    return {
        f"floor, {kind}": partial(measure.floor, count, kind),
        f"runcnet, {kind}": partial(measure.runcnet, count, kind),
    }


def masquerade(count: int) -> dict[str, Act]:
    """runcnet with its rules."""
    return {
        "runcnet with masquerade, bridge": partial(measure.runcnet, count, "bridge", "iptables")
    }


def floor_part(options: argparse.Namespace) -> list[Run]:
    """The two sizes that bounds are stated for."""
    one, many = 1000 // options.by, 4000 // options.by
    beside = {**pair(one, "bridge"), **masquerade(one)}
    return [
        Run("bridge", "floor", one, options.turns, beside),
        Run("routed", "floor", many, options.turns, pair(many, "routed")),
    ]


def growth_part(options: argparse.Namespace) -> list[Run]:
    """From a thousand to ten thousand, routed and on bridges of a thousand."""
    runs = []
    for full in (1000, 2000, 4000, LARGEST):
        count = full // options.by
        turns = options.largest_turns if full == LARGEST else options.growth_turns
        actors = {**pair(count, "routed"), **pair(count, "bridge")}
        runs.append(Run(f"growth, {full}", "growth", count, turns, actors))
    return runs


def peers_part(options: argparse.Namespace) -> list[Run]:
    """What people use instead, on one bridge."""
    count = 1000 // options.by
    actors = {**pair(count, "bridge"), **masquerade(count)}
    for name in peers.PEERS:
        why = peers.absent(name)
        if why:
            print(f"skipped: {name}: {why}", file=sys.stderr)
        else:
            actors[name] = partial(measure.peer, name, count)
    return [Run("peers", "peers", count, options.turns, actors)]


def daemon_part(options: argparse.Namespace) -> list[Run]:
    """One turn each: it is many trials against one daemon."""
    one, many = 1000 // options.by, 4000 // options.by
    acts: dict[str, tuple[int, Act]] = {
        "drift": (one, partial(daemon.drift, one, options.trials)),
        "files": (many, partial(daemon.files, many, options.trials)),
        "idle": (many, partial(daemon.idle, many, daemon.IDLE_S / options.by)),
        "memory": (many, partial(daemon.memory, many, daemon.EVENTS // options.by)),
    }
    return [Run(name, "daemon", n, 1, {"daemon": act}) for name, (n, act) in acts.items()]


def ports_part(options: argparse.Namespace) -> list[Run]:
    """Both backends of the firewall, in turns."""
    runs = []
    able = [name for name in ports.BACKENDS if not ports.absent(name)]
    for name in set(ports.BACKENDS) - set(able):
        print(f"skipped: {name}: {ports.absent(name)}", file=sys.stderr)
    acts: dict[str, Act] = {name: partial(ports.throughput, name) for name in able}
    runs.append(Run("throughput", "ports", 1, options.growth_turns, acts))
    count = 2000 // options.by
    acts = {name: partial(ports.thousands, name, count, options.turns) for name in able}
    runs.append(Run("thousands", "ports", count, 1, acts))
    return runs


def hooks_part(options: argparse.Namespace) -> list[Run]:
    """Starts of one container in hosts that stay; what a port adds is for information."""
    runs = []
    for name, full, port in (
        (hooks.SMALL, 10, False),
        (hooks.LARGE, 1000, False),
        (hooks.PORT, 10, True),
    ):
        count = full // options.by
        stage = hooks.Stage(count, port=port)
        runs.append(Run(name, "hooks", count, options.trials, stage.actors(), stage.close))
    return runs


def one_turn(run: Run, number: int) -> record.Turn:
    """Every actor once, one after the other."""
    found = {}
    for name, act in run.actors.items():
        print(
            f"{run.name}, {run.n}: turn {number} of {run.turns}: {name}",
            file=sys.stderr,
            flush=True,
        )
        found[name] = act()
    return found


def begun(run: Run, versions: dict[str, str]) -> Group:
    """A group without a turn."""
    return {"part": run.part, "n": run.n, "turns": 0, "about": versions, "actors": {}}


def measured(run: Run, path: Path, *, missing: bool, versions: dict[str, str]) -> None:
    """Take the turns of a group, and save each as it ends."""
    old = record.load(path).get(run.name)
    group = begun(run, versions)
    if missing and old and record.goes_on(old, run.actors, run.n, versions):
        group = old
    try:
        while group["turns"] < run.turns:
            group = record.with_turn(group, one_turn(run, group["turns"] + 1))
            record.save(path, {**record.load(path), run.name: group})
    finally:
        run.close()


def quick_verdict(kind: str, group: Group) -> tuple[str, list[str]]:
    """A line on a kind, and what of it is beyond a bound."""
    ours, floor = f"runcnet, {kind}", f"floor, {kind}"

    def values(actor: str, case: str) -> list[float]:
        return record.values(group, actor, case)

    idle = values(ours, "nothing to do")
    create = [
        (made - looked) / least
        for made, looked, least in zip(
            values(ours, "create"), idle, values(floor, "create"), strict=True
        )
    ]
    look = [a / b for a, b in zip(idle, values(floor, "scan"), strict=True)]
    line, beyond = [], []
    for what, found, bound in (
        ("create without looking / floor", create, QUICK_CREATE),
        ("nothing to do / scan", look, QUICK_LOOK),
    ):
        median, least = statistics.median(found), min(found)
        line.append(f"{what}: {median:.2f} (least {least:.2f}, bound {bound})")
        if median > bound and least > bound * QUICK_NOISE:
            beyond.append(f"{kind}: {what} is {median:.2f}, more than {bound}")
    return f"{kind}, {group['n']}: {'; '.join(line)}", beyond


def quick() -> int:
    """Two ratios in under two minutes; fails where one is worse than its bound."""
    run = Run(
        "quick", "quick", QUICK_N, QUICK_TURNS, pair(QUICK_N, "bridge") | pair(QUICK_N, "routed")
    )
    group = begun(run, {})
    while group["turns"] < run.turns:
        group = record.with_turn(group, one_turn(run, group["turns"] + 1))
    beyond = []
    for kind in ("bridge", "routed"):
        line, worse = quick_verdict(kind, group)
        print(line)
        beyond += worse
    for line in beyond:
        print(line)
    return 1 if beyond else 0


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="only a check against two bounds")
    parser.add_argument("--turns", type=int, default=5, help="of the floor and the peers (5)")
    parser.add_argument("--growth-turns", type=int, default=3, help="of the growth (3)")
    parser.add_argument("--largest-turns", type=int, default=3, help="of its 10,000 (3)")
    parser.add_argument(
        "--trials",
        type=int,
        default=30,
        help="of each kind of drift, and of starts with a hook (30)",
    )
    parser.add_argument(
        "--missing", action="store_true", help="keep the turns on record, take only those missing"
    )
    parser.add_argument(
        "--rehearsal", action="store_true", help="every N a tenth, into out/rehearsal: no figures"
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    options = parser.parse_args()
    for part in options.parts:
        if part not in PARTS:
            parser.error(f"no part {part!r}: there are {', '.join(PARTS)}")
    options.by = 10 if options.rehearsal else 1
    return options


def main() -> int:
    """Run the parts asked for."""
    options = parsed()
    # An installed program has its bytecode beside it; some build machines forbid that.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    measure.build()
    if options.quick:
        return quick()
    folder = OUT / "rehearsal" if options.rehearsal else OUT
    path = folder / "bench.json"
    versions = about()
    suites: dict[str, Callable[[argparse.Namespace], list[Run]]] = {
        "floor": floor_part, "peers": peers_part, "growth": growth_part, "daemon": daemon_part,
        "ports": ports_part, "hooks": hooks_part,
    }  # fmt: skip
    failed: list[str] = []
    for part in options.parts or PARTS:
        runs = suites[part](options)
        groups: Groups = record.load(path)
        record.save(path, record.without_strangers(groups, part, [run.name for run in runs]))
        for run in runs:
            try:
                measured(run, path, missing=options.missing, versions=versions)
            except FAILURES as e:
                failed.append(f"{run.name}: {e}")
                print(f"given up: {failed[-1]}", file=sys.stderr)
    report.write(record.load(path), folder)
    print((folder / "bench.md").read_text())
    print((folder / "bounds.md").read_text())
    for line in failed:
        print(f"given up: {line}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
