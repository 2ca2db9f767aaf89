"""`make bench`: runcnet beside the C floor and beside what people use instead.

Turns are interleaved (A B C A B C ...), each in a private host; shown are medians and the spread.
Writes JSON, a Markdown table and SVG plots to `benchmarks/out/`.
"""

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable
from functools import partial

from benchmarks import measure, peers, report
from benchmarks.measure import OUT, Times

Results = dict[str, dict[str, list[float]]]
Actor = tuple[str, Callable[[], Times]]
QUICK_BOUND = 1.6
"""How much slower than the floor `--quick` may come out before it fails: machines are noisy, and
fewer containers make Python's start weigh more."""


def interleaved(actors: list[Actor], turns: int) -> Results:
    """Every actor `turns` times, one after the other."""
    found: Results = {}
    for turn in range(turns):
        for name, act in actors:
            print(f"turn {turn + 1} of {turns}: {name}", file=sys.stderr)
            for case, value in act().items():
                found.setdefault(name, {}).setdefault(case, []).append(value)
    return found


def pair(count: int, kind: str) -> list[Actor]:
    """The floor and runcnet at one size."""
    return [
        (f"floor, {kind}, {count}", partial(measure.floor, count, kind)),
        (f"runcnet, {kind}, {count}", partial(measure.runcnet, count, kind)),
    ]


def suite(options: argparse.Namespace) -> list[tuple[list[Actor], int]]:
    """Groups of actors that are measured side by side, each with its number of turns."""
    groups: list[tuple[list[Actor], int]] = []
    if "floor" in options.parts:
        masquerade = partial(measure.runcnet, 1000, "bridge", "iptables")
        one = [*pair(1000, "bridge"), ("runcnet with masquerade, bridge, 1000", masquerade)]
        groups += [(one, options.turns), (pair(4000, "routed"), options.turns)]
    if "growth" in options.parts:
        for count in (1000, 2000, 4000, 10000):
            both = pair(count, "routed") if count != 4000 or "floor" not in options.parts else []
            sharded = (
                [(f"runcnet, bridge, {count}", partial(measure.runcnet, count, "bridge"))]
                if count != 1000 or "floor" not in options.parts
                else []
            )
            groups.append((both + sharded, options.growth_turns))
    if "peers" in options.parts:
        around: list[Actor] = [
            (f"floor, bridge, {options.peers_n}", partial(measure.floor, options.peers_n, "bridge")),
            (f"runcnet, bridge, {options.peers_n}",
             partial(measure.runcnet, options.peers_n, "bridge")),
        ]  # fmt: skip
        for name in peers.PEERS:
            why = peers.absent(name)
            if why:
                print(f"skipped: {name}: {why}", file=sys.stderr)
            else:
                around.append((name, partial(measure.peer, name, options.peers_n)))
        groups.append((around, options.turns))
    return groups


def quick() -> int:
    """Two ratios in under two minutes; fails where one is worse than the bound."""
    found = interleaved([*pair(300, "bridge"), *pair(300, "routed")], 5)
    worst = 0.0
    for kind in ("bridge", "routed"):
        ours = statistics.median(found[f"runcnet, {kind}, 300"]["create"])
        least = statistics.median(found[f"floor, {kind}, 300"]["create"])
        # Python's start and imports are the same whatever N is; at 300 they would be all that shows.
        idle = statistics.median(found[f"runcnet, {kind}, 300"]["nothing to do"])
        ratio = (ours - idle) / least
        worst = max(worst, ratio)
        print(
            f"{kind}: create 300 in {ours:.3f} s, of which {idle:.3f} s for looking; "
            f"floor {least:.3f} s; {ratio:.2f} x"
        )
    if worst > QUICK_BOUND:
        print(f"slower than {QUICK_BOUND} x the floor")
        return 1
    return 0


def main() -> int:
    """Run the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="only a check against a bound")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--growth-turns", type=int, default=3)
    parser.add_argument("--peers-n", type=int, default=1000, help="containers for the peers")
    parser.add_argument(
        "--missing", action="store_true", help="only what is not on record with as many turns"
    )
    parser.add_argument("parts", nargs="*", default=["floor", "growth", "peers"])
    options = parser.parse_args()
    # An installed program has its bytecode beside it; some build machines forbid that.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    measure.build()
    if options.quick:
        return quick()
    path = OUT / "bench.json"
    found: Results = json.loads(path.read_text()) if path.exists() else {}
    for every, turns in suite(options):
        actors = [
            (name, act)
            for name, act in every
            if not options.missing or len(found.get(name, {}).get("create", ())) < turns
        ]
        for name, cases in interleaved(actors, turns).items():
            found[name] = cases
        path.write_text(json.dumps(found, indent=1))
    (OUT / "bench.md").write_text(report.markdown(found))
    report.plots(found, OUT)
    print((OUT / "bench.md").read_text())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
