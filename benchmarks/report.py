"""The record as tables and plots.

python -m benchmarks.report            out/bench.md, out/bounds.md and the plots, anew
python -m benchmarks.report --bounds   the bounds, each beside its figure
python -m benchmarks.report --readme   README.md between its marks, and the plots into docs/
"""

import argparse
import os
import statistics
from pathlib import Path

from benchmarks import bounds, hooks, peers, plots, ports, record
from benchmarks.record import Group, Groups

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
NO_FIGURES = """\
No figures here yet: `make bench` makes them, `python -m benchmarks.report --readme` puts them here.
Both plots are from a rehearsal with a tenth of the containers: they show the form, not the speed.
"""
MARK, END = "<!-- figures -->", "<!-- /figures -->"
FULL = {"bridge": 1000, "routed": 4000, "peers": 1000, "drift": 1000, "files": 4000, "idle": 4000,
        "memory": 4000, "thousands": 2000, "throughput": 1}  # fmt: skip
UNITS = {"memory": (1, "MiB"), "idle": (100, "%"), "drift": (1e3, "ms"), "files": (1e3, "ms")}
"""What the daemon's values are multiplied with, and shown in."""
CORE = (
    ("create", "bridge", "runcnet, bridge", "create, one bridge"),
    ("create", "bridge", "runcnet with masquerade, bridge", "create, one bridge, with masquerade"),
    ("create", "routed", "runcnet, routed", "create, routed"),
    ("nothing to do", "routed", "runcnet, routed", "nothing to do, routed"),
    ("one more", "routed", "runcnet, routed", "one container more, beyond nothing to do"),
    ("remove", "routed", "runcnet, routed", "remove, routed"),
    ("create", "growth, 10000", "runcnet, routed", "create, routed"),
    ("nothing to do", "growth, 10000", "runcnet, routed", "nothing to do, routed"),
    ("remove", "growth, 10000", "runcnet, routed", "remove, routed"),
    ("create", "growth, 10000", "runcnet, bridge", "create, ten bridges"),
)


def rehearsed(groups: Groups) -> bool:
    """Whether anything on record was measured with fewer containers than it should be."""
    return any(
        group["n"] != FULL.get(name, int(name.rpartition(", ")[2]) if ", " in name else group["n"])
        for name, group in groups.items()
    )


def note(groups: Groups) -> str:
    """What a plot's title ends with."""
    return " (rehearsal: no figures)" if rehearsed(groups) else ""


def versions(groups: Groups) -> str:
    """What was measured on what; more than one line where groups differ."""
    lines: dict[str, list[str]] = {}
    for name, group in groups.items():
        said = ", ".join(f"{what} {version}" for what, version in group["about"].items())
        lines.setdefault(said, []).append(name)
    if len(lines) == 1:
        return f"{next(iter(lines))}.\n"
    return "".join(f"- {'; '.join(names)}: {said}.\n" for said, names in lines.items())


def seconds_row(group: Group, actor: str, case: str) -> str:
    """One case of one actor, in seconds."""
    found = record.values(group, actor, case)
    middle, least, most = statistics.median(found), min(found), max(found)
    ours, theirs = ("runcnet, bridge", case), ("runcnet with masquerade, bridge", case)
    each = f"{middle / group['n'] * 1e6:.0f}" if case in ("create", "remove") else ""
    beside = record.against_floor(group, actor, case)
    ratio = f"{beside:.2f} ×" if beside and actor.startswith("runcnet") else ""
    if case == "one more":
        more = record.difference(group, actor, case, "nothing to do")
        ratio = f"{more:+.3f} s beyond nothing to do"
    cells = [actor, case, f"{middle:.3f} s", f"{least:.3f} to {most:.3f}", each, ratio]
    if group["part"] == "peers":
        for base in (ours, theirs):
            times = record.ratio(group, (actor, case), base)
            alike = peers.PEERS if base is ours else peers.MASQUERADING
            cells.append(f"{times:.1f} ×" if times and actor in alike else "")
    return f"| {' | '.join(cells)} |"


def section(name: str, group: Group) -> str:
    """A group's table."""
    turns = f"{group['turns']} turn{'s' if group['turns'] != 1 else ''}"
    lines = [f"### {name.partition(',')[0]}: {group['n']:,} containers, {turns}", ""]
    if group["part"] == "daemon":
        return "\n".join(lines + daemon_rows(name, group)) + "\n"
    if group["part"] == "hooks":
        return "\n".join(lines + hooks_rows(group)) + "\n"
    if group["part"] == "ports":
        return "\n".join(lines + ports_rows(group)) + "\n"
    head = ["", "case", "median", "least to most", "µs a container", "against the floor"]
    if group["part"] == "peers":
        head += ["against runcnet", "against runcnet with masquerade"]
    lines += [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for actor, cases in group["actors"].items():
        for case, found in cases.items():
            if case.endswith("MiB"):
                what = f"{case.removesuffix(': MiB')}: peak memory"
                cells = [actor, what, f"{statistics.median(found):.0f} MiB",
                         f"{min(found):.0f} to {max(found):.0f}"]  # fmt: skip
                lines.append(f"| {' | '.join(cells + [''] * (len(head) - 4))} |")
            else:
                lines.append(seconds_row(group, actor, case))
    return "\n".join(lines) + "\n"


def daemon_rows(name: str, group: Group) -> list[str]:
    """What the daemon does of itself: by kind, and all kinds together."""
    scale, unit = UNITS[name]
    cases = group["actors"]["daemon"]
    if name in ("memory", "idle"):
        found = [value * scale for value in next(iter(cases.values()))]
        shown = ", ".join(f"{value:.2f}" for value in found)
        what = (
            "resident before, and after each tenth of the events"
            if name == "memory"
            else "share of a core"
        )
        return [f"{what}: {shown} {unit}"]
    lines = ["| | trials | median | 99th percentile | most |", "|---|---|---|---|---|"]
    everything = {"all together": record.pooled(group, "daemon")} if name == "drift" else {}
    for case, found in {**cases, **everything}.items():
        cells = [
            f"{(record.percentile(found, share) or 0) * scale:.1f} {unit}"
            for share in (0.5, 0.99, 1)
        ]
        lines.append(f"| {case} | {len(found)} | {' | '.join(cells)} |")
    return lines


def ports_rows(group: Group) -> list[str]:
    """What published ports cost, by backend."""
    lines = ["| | | median | least to most |", "|---|---|---|---|"]
    for actor, cases in group["actors"].items():
        for case, found in cases.items():
            what, _, unit = case.rpartition(": ")
            middle, least, most = statistics.median(found), min(found), max(found)
            cells = [actor, what, f"{middle:.1f} {unit}", f"{least:.1f} to {most:.1f}"]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def hooks_rows(group: Group) -> list[str]:
    """What a container's start and its end wait for."""
    lines = ["| | | median | least to most | against CNI |", "|---|---|---|---|---|"]
    for case in (hooks.ATTACH, hooks.DETACH):
        for actor in group["actors"]:
            found = [seconds * 1e3 for seconds in record.values(group, actor, case)]
            middle, least, most = statistics.median(found), min(found), max(found)
            times = record.ratio(group, (actor, case), (hooks.PLUGINS, case))
            cells = [actor, case, f"{middle:.1f} ms", f"{least:.1f} to {most:.1f}"]
            cells.append(f"{times:.2f} ×" if times is not None and actor != hooks.PLUGINS else "")
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def hooks_table(groups: Groups) -> list[str]:
    """What the README says of hooks."""
    lines = []
    for name, beside in (
        (hooks.SMALL, "10 containers"),
        (hooks.LARGE, "beside 1,000"),
        (hooks.PORT, "10 containers, a published port"),
    ):
        for case in (hooks.ATTACH, hooks.DETACH):
            cells = [f"{case}, {beside}"]
            for actor in (hooks.WITH_DAEMON, hooks.ALONE, hooks.PLUGINS):
                middle = record.middle(groups.get(name), actor, case)
                times = record.ratio(groups.get(name), (actor, case), (hooks.PLUGINS, case))
                shown = f"{middle * 1e3:.1f} ms" if middle is not None else ""
                more = f" ({times:.2f} ×)" if times is not None and actor != hooks.PLUGINS else ""
                cells.append(shown + more)
            if any(cells[1:]):
                lines.append(f"| {' | '.join(cells)} |")
    if lines:
        head = [
            "",
            "`runcnet-hook`, the daemon serves",
            "`runcnet-hook`, no daemon",
            hooks.PLUGINS,
        ]
        lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *lines]
    return lines


def ports_sentences(groups: Groups) -> list[str]:
    """What the README says of published ports."""
    lines = []
    fast, many = groups.get("throughput"), groups.get("thousands")
    for name in fast["actors"] if fast else ():
        share = record.ratio(fast, (name, ports.PUBLISHED), (name, ports.STRAIGHT))
        if share is not None:
            lines.append(
                f"- {name}: throughput through a published port {share:.2f} of that straight to the "
                "container"
            )
    for name in many["actors"] if many else ():
        figures = [record.middle(many, name, c) for c in (ports.COMPARE, ports.ADD, ports.CHANGE)]
        shown = [f"{figure:.0f} ms" for figure in figures if figure is not None]
        if many and len(shown) == 3:
            lines.append(
                f"- {name}, {many['n']:,} ports: compared in {shown[0]}, one more in {shown[1]}, all "
                f"changed in {shown[2]}"
            )
    return lines


def markdown(groups: Groups) -> str:
    """All of it."""
    parts = [section(name, group) for name, group in groups.items()]
    lead = "A rehearsal with fewer containers: no figures.\n\n" if rehearsed(groups) else ""
    return lead + "\n".join(parts) + "\n" + versions(groups)


def core_rows(groups: Groups) -> list[str]:
    """The rows on runcnet and the floor that the README shows."""
    lines = []
    for case, name, actor, label in CORE:
        group = groups.get(name)
        ours = record.middle(group, actor, case)
        if group is None or ours is None:
            continue
        floor = record.middle(group, record.floor_of(actor), record.FLOOR_CASE.get(case, ""))
        ratio = record.against_floor(group, actor, case)
        shown = f"{ours:.2f} s"
        if case == "one more":
            shown = f"{record.difference(group, actor, case, 'nothing to do'):+.3f} s"
        least = f"{floor:.2f} s" if floor is not None else ""
        times = f"{ratio:.2f} ×" if ratio is not None else ""
        lines.append(f"| {label} | {group['n']:,} | {shown} | {least} | {times} |")
    return lines


def daemon_sentences(groups: Groups) -> list[str]:
    """What the README says of the daemon."""
    lines = []
    drift = record.pooled(groups.get("drift"), "daemon")
    if drift:
        half, most = (record.percentile(drift, share) or 0 for share in (0.5, 0.99))
        lines.append(
            f"- something broken by hand, {groups['drift']['n']:,} standing, to repaired: median "
            f"{half * 1e3:.1f} ms, 99th percentile {most * 1e3:.1f} ms "
            f"({len(groups['drift']['actors']['daemon'])} kinds, {len(drift)} trials)"
        )
    fresh = record.middle(groups.get("files"), "daemon", bounds.NEW_FILE)
    if fresh is not None:
        lines.append(
            f"- a new file among {groups['files']['n']:,} standing, closed to container complete: "
            f"median {fresh * 1e3:.1f} ms"
        )
    idle = record.middle(groups.get("idle"), "daemon", "idle")
    if idle is not None:
        lines.append(f"- idle with {groups['idle']['n']:,}: {idle * 100:.2f} % of a core")
    curve = record.values(groups.get("memory"), "daemon", "memory")
    if len(curve) > 2:
        lines.append(
            f"- memory with {groups['memory']['n']:,}, after a fifth of 20,000 events and after all: "
            f"{curve[2]:.1f} and {curve[-1]:.1f} MiB"
        )
    return lines


def peer_rows(groups: Groups) -> list[str]:
    """The rows on what people use instead."""
    group = groups.get("peers")
    lines = []
    for actor in group["actors"] if group else ():
        ours = record.ratio(group, (actor, "create"), ("runcnet, bridge", "create"))
        rules = ("runcnet with masquerade, bridge", "create")
        masked = record.ratio(group, (actor, "create"), rules)
        middle = record.middle(group, actor, "create")
        if group is None or middle is None or ours is None:
            continue
        label = actor.removesuffix(", bridge").replace("floor", "C floor")
        alike = masked is not None and actor in peers.MASQUERADING
        like = f"{masked:.1f} ×" if alike else ""
        each = f"{middle / group['n'] * 1e3:.2f} ms"
        lines.append(f"| {label} | {middle:.2f} s | {each} | {ours:.1f} × | {like} |")
    return lines


def readme(groups: Groups) -> str:
    """What stands between the README's marks."""
    if not groups or rehearsed(groups):
        return NO_FIGURES
    lines = []
    core, others, kept = core_rows(groups), peer_rows(groups), daemon_sentences(groups)
    if core:
        lines += [
            "| | containers | runcnet | C floor | ratio |",
            "|---|---|---|---|---|",
            *core,
            "",
        ]
    if others:
        n = groups["peers"]["n"]
        lines += [f"What people use instead, {n:,} containers on one bridge (netavark always masquerades):",
                  "", "| | all | a container | times runcnet | times runcnet with masquerade |",
                  "|---|---|---|---|---|", *others, ""]  # fmt: skip
    if kept:
        lines += ["The daemon:", "", *kept, ""]
    published = ports_sentences(groups)
    if published:
        lines += ["Published ports:", "", *published, ""]
    called = hooks_table(groups)
    if called:
        lines += ["What a hook adds to a container's start, and to its end:", "", *called, ""]
    lines += [bounds.summary(groups), "", f"Measured on: {versions(groups).strip()}"]
    return "\n".join(lines) + "\n"


def filled(text: str, figures: str) -> str:
    """A document with the figures between its marks; ValueError where it has none."""
    head, mark, rest = text.partition(MARK)
    _, end, tail = rest.partition(END)
    if not mark or not end:
        raise ValueError(f"no {MARK} ... {END}")
    return f"{head}{mark}\n{figures}{end}{tail}"


def write(groups: Groups, folder: Path) -> None:
    """`bench.md`, `bounds.md` and the plots."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bench.md").write_text(markdown(groups))
    (folder / "bounds.md").write_text(bounds.table(groups))
    (folder / "growth.svg").write_text(plots.growth(groups, note(groups)))
    (folder / "peers.svg").write_text(plots.bars(groups, note(groups)))


def main() -> int:
    """Write what is on record, and print what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bounds", action="store_true", help="print the table of bounds")
    parser.add_argument("--readme", action="store_true", help="fill README.md and docs/")
    parser.add_argument("--rehearsal", action="store_true", help="of out/rehearsal")
    options = parser.parse_args()
    folder = HERE / "out" / "rehearsal" if options.rehearsal else HERE / "out"
    groups = record.load(folder / "bench.json")
    if not groups:
        parser.error(f"nothing on record in {os.path.relpath(folder)}: make bench")
    write(groups, folder)
    if options.bounds:
        print(bounds.table(groups))
    if options.readme:
        path = ROOT / "README.md"
        path.write_text(filled(path.read_text(), readme(groups)))
        for name in ("growth.svg", "peers.svg"):
            (ROOT / "docs" / name).write_text((folder / name).read_text())
    if not options.bounds and not options.readme:
        print(markdown(groups))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
