"""What the benchmarks make of their measurements: ratios, bounds, tables, plots, and turns kept."""

import argparse
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks import bench, bounds, hooks, peers, plots, ports, record, report
from benchmarks.record import Cases, Group, Groups
from tests.support.host import ROOT

OPTIONS = argparse.Namespace(by=1, turns=5, growth_turns=3, largest_turns=2, trials=30)
ABOUT = {"kernel": "6.1", "processors": "2"}
OURS, FLOOR = "runcnet, bridge", "floor, bridge"


def group(actors: dict[str, Cases], *, part: str = "floor", n: int = 1000, turns: int = 3) -> Group:
    return {"part": part, "n": n, "turns": turns, "about": ABOUT, "actors": actors}


def whole() -> Groups:
    """Every group that a full run leaves, each bound just met."""
    looked = {"create": [1.0], "nothing to do": [0.5], "nothing to do: MiB": [100.0],
              "one more": [0.6], "one less": [0.6], "remove": [1.0]}  # fmt: skip
    least = {"create": [1.0], "scan": [0.3], "remove": [1.0]}

    def both(*kinds: str) -> dict[str, Cases]:
        return {f"{who}, {kind}": cases for kind in kinds
                for who, cases in (("floor", least), ("runcnet", looked))}  # fmt: skip

    masked: dict[str, Cases] = {"runcnet with masquerade, bridge": {"create": [2.0]}}
    others: dict[str, Cases] = {name: {"create": [40.0]} for name in peers.PEERS}
    return {
        "bridge": group(both("bridge") | masked),
        "routed": group(both("routed"), n=4000),
        "peers": group(both("bridge") | masked | others, part="peers"),
        **{
            f"growth, {n}": group(both("routed", "bridge"), part="growth", n=n)
            for n in (1000, 2000, 4000, 10000)
        },
        "drift": group({"daemon": {"a": [0.004] * 99, "b": [0.006]}}, part="daemon"),
        "files": group({"daemon": {bounds.NEW_FILE: [0.02]}}, part="daemon", n=4000),
        "idle": group({"daemon": {"idle": [0.004]}}, part="daemon", n=4000),
        "memory": group({"daemon": {"memory": [60.0] * 11}}, part="daemon", n=4000),
        "thousands": group(
            {
                name: {ports.COMPARE: [12.0], ports.ADD: [30.0], ports.CHANGE: [400.0]}
                for name in ports.BACKENDS
            },
            part="ports",
            n=2000,
        ),
        **{
            name: group(
                {
                    actor: {hooks.ATTACH: [seconds], hooks.DETACH: [0.03]}
                    for actor, seconds in (
                        (hooks.WITH_DAEMON, 0.014),
                        (hooks.ALONE, 0.06),
                        (hooks.PLUGINS, 0.015),
                    )
                },
                part="hooks",
                n=n,
            )
            for name, n in ((hooks.SMALL, 10), (hooks.LARGE, 1000), (hooks.PORT, 10))
        },
        "throughput": group(
            {name: {ports.STRAIGHT: [10.0], ports.PUBLISHED: [9.0]} for name in ports.BACKENDS},
            part="ports",
            n=1,
        ),
    }


# -- the record ---------------------------------------------------------------------------------


def test_a_ratio_is_taken_against_the_floor_of_the_same_group() -> None:
    slow = group({OURS: {"create": [4.0]}, FLOOR: {"create": [4.0]}})
    quick = group({OURS: {"create": [2.0]}, FLOOR: {"create": [1.0]}}, part="peers")
    assert record.against_floor(slow, OURS, "create") == 1.0
    assert record.against_floor(quick, OURS, "create") == 2.0
    assert record.against_floor(group({OURS: {"create": [2.0]}}), OURS, "create") is None
    assert record.against_floor(None, OURS, "create") is None


def test_each_case_has_its_own_floor() -> None:
    both = group(
        {
            OURS: {"create": [3.0], "nothing to do": [4.0], "one more": [5.0], "remove": [6.0]},
            FLOOR: {"create": [1.0], "scan": [2.0], "remove": [4.0]},
            "floor, routed": {"create": [9.0]},
        }
    )
    found = [record.against_floor(both, OURS, case) for case in both["actors"][OURS]]
    assert found == [3.0, 2.0, None, 1.5]
    assert record.floor_of("runcnet with masquerade, bridge") == FLOOR
    assert record.floor_of("runcnet, routed") == "floor, routed"
    assert record.floor_of("ip -batch") == FLOOR


def test_one_more_is_held_against_nothing_to_do_of_the_same_turn() -> None:
    # The machine grew slower from turn to turn: the medians' difference would be -0.4.
    drifting = group({OURS: {"nothing to do": [0.2, 0.9, 0.9], "one more": [0.3, 0.5, 1.0]}})
    assert record.difference(drifting, OURS, "one more", "nothing to do") == pytest.approx(0.1)


def test_a_percentile_is_a_value_that_was_measured() -> None:
    found = [float(i) for i in range(1, 101)]
    assert [record.percentile(found, share) for share in (0.5, 0.99, 1)] == [50.0, 99.0, 100.0]
    assert record.percentile([3.0], 0.99) == 3.0
    assert record.percentile([], 0.5) is None


def test_a_turn_is_added_as_a_whole() -> None:
    one = record.with_turn(group({}, turns=0), {"a": {"x": 1.0}, "b": {"x": [2.0, 3.0]}})
    two = record.with_turn(one, {"a": {"x": 4.0}, "b": {"x": [5.0]}})
    assert two["turns"] == 2
    assert two["actors"] == {"a": {"x": [1.0, 4.0]}, "b": {"x": [2.0, 3.0, 5.0]}}


def test_a_part_that_is_measured_anew_drops_its_old_groups_alone() -> None:
    groups = {"old": group({}), "bridge": group({}), "peers": group({}, part="peers")}
    assert list(record.without_strangers(groups, "floor", ["bridge"])) == ["bridge", "peers"]


def test_saving_leaves_one_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "out" / "bench.json"
    assert record.load(path) == {}
    record.save(path, whole())
    record.save(path, {"bridge": whole()["bridge"]})
    assert record.load(path) == {"bridge": whole()["bridge"]}
    assert [p.name for p in path.parent.iterdir()] == ["bench.json"]
    assert json.loads(path.read_text())["groups"]["bridge"]["about"] == ABOUT


# -- running --------------------------------------------------------------------------------------


class Actor:
    """Counts its turns, and fails in the turns told."""

    def __init__(self, *fails: int) -> None:
        self.turns = 0
        self.fails = fails

    def __call__(self) -> dict[str, float]:
        self.turns += 1
        if self.turns in self.fails:
            raise KeyboardInterrupt
        return {"create": float(self.turns)}


def run_of(first: Actor, second: Actor, turns: int = 3) -> bench.Run:
    return bench.Run("bridge", "floor", 10, turns, {"a": first, "b": second})


def test_a_run_cut_short_keeps_its_whole_turns_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    first, second = Actor(), Actor(3)
    with pytest.raises(KeyboardInterrupt):
        bench.measured(run_of(first, second), path, missing=False, versions=ABOUT)
    kept = record.load(path)["bridge"]
    assert kept["turns"] == 2
    assert {len(cases["create"]) for cases in kept["actors"].values()} == {2}
    bench.measured(run_of(first, second), path, missing=True, versions=ABOUT)
    assert record.load(path)["bridge"]["turns"] == 3
    assert (first.turns, second.turns) == (4, 4)  # the broken turn is taken again as a whole


@pytest.mark.parametrize("other", ["versions", "actors", "size", "not asked"])
def test_turns_are_never_put_beside_others_of_their_kind(tmp_path: Path, other: str) -> None:
    path = tmp_path / "bench.json"
    run = run_of(Actor(), Actor(), 2)
    bench.measured(run, path, missing=True, versions=ABOUT)
    if other == "actors":
        run = run._replace(actors={**run.actors, "c": Actor()})
    versions = {"kernel": "6.2"} if other == "versions" else ABOUT
    run = run._replace(turns=3, n=11 if other == "size" else 10)
    bench.measured(run, path, missing=other != "not asked", versions=versions)
    kept = record.load(path)["bridge"]
    assert kept["actors"]["a"]["create"] == [3.0, 4.0, 5.0]
    assert kept["about"] == versions


def test_a_group_that_fails_ends_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> dict[str, float]:
        raise RuntimeError("asked for 10, 9 stand")

    runs = [
        bench.Run("bridge", "floor", 10, 2, {FLOOR: broken}),
        bench.Run("routed", "floor", 10, 2, {"floor, routed": Actor()}),
    ]
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    monkeypatch.setattr(bench, "OUT", tmp_path)
    monkeypatch.setattr(bench, "floor_part", lambda options: runs)
    monkeypatch.setattr(bench.measure, "build", lambda: None)
    monkeypatch.setattr("sys.argv", ["bench", "floor"])
    assert bench.main() == 1
    assert list(record.load(tmp_path / "bench.json")) == ["routed"]
    assert "routed" in (tmp_path / "bench.md").read_text()


def quick(create: list[float], idle: list[float]) -> Group:
    return group({OURS: {"create": create, "nothing to do": idle},
                  FLOOR: {"create": [0.3] * 5, "scan": [0.02] * 5}}, n=300)  # fmt: skip


@pytest.mark.parametrize(
    "create,idle,beyond",
    [
        ([0.5, 0.5, 0.5, 0.5, 0.5], [0.15] * 5, 0),
        ([0.4, 0.8, 0.9, 0.9, 0.5], [0.15] * 5, 0),  # noise: not every turn is slow
        ([0.7, 0.7, 0.7, 0.7, 0.7], [0.15] * 5, 1),
        ([0.5, 0.5, 0.5, 0.5, 0.5], [0.35] * 5, 1),  # 200 ms more at each start
        ([0.5, 0.5, 0.9, 0.5, 0.5], [0.15, 0.15, 0.4, 0.15, 0.15], 0),
    ],
)
def test_the_quick_check_fails_on_a_regression_and_not_on_noise(
    create: list[float], idle: list[float], beyond: int
) -> None:
    assert len(bench.quick_verdict("bridge", quick(create, idle))[1]) == beyond


# -- bounds -----------------------------------------------------------------------------------------


def test_every_bound_is_of_a_group_that_a_full_run_measures() -> None:
    parts = (
        bench.floor_part,
        bench.peers_part,
        bench.growth_part,
        bench.daemon_part,
        bench.ports_part,
        bench.hooks_part,
    )
    runs = {run.name: run for part in parts for run in part(OPTIONS)}
    for bound in bounds.BOUNDS:
        assert runs[bound.group].n == bound.n, bound.what
    assert {name: run.n for name, run in runs.items() if name in report.FULL} == report.FULL
    assert [runs[f"growth, {n}"].turns for n in (1000, 10000)] == [3, 2]
    assert set(runs) == set(whole())


def test_every_bound_is_met_by_a_run_that_meets_it() -> None:
    assert {v.why for v in bounds.verdicts(whole())} == {"met"}


@pytest.mark.parametrize("number", range(len(bounds.BOUNDS)))
def test_every_bound_can_be_missed(number: int) -> None:
    groups = whole()
    bound = bounds.BOUNDS[number]
    for actor, cases in groups[bound.group]["actors"].items():
        for values in cases.values():
            slower = actor.startswith("runcnet") or actor in ("daemon", *ports.BACKENDS)
            for i, value in enumerate(values):
                values[i] = value * (40 if slower and (actor != "daemon" or i > 4 or i < 1) else 1)
    if bound.group == "drift":
        groups["drift"]["actors"]["daemon"]["a"] = [0.4] * 99
    verdict = bounds.verdicts(groups)[number]
    assert (verdict.met, verdict.why) == (False, "NOT MET")
    assert bound.what in bounds.summary(groups)
    assert "NOT MET" in bounds.table(groups)


def test_what_was_not_measured_at_its_size_is_neither_met_nor_missed() -> None:
    groups = whole()
    del groups["idle"]
    groups["routed"]["n"] = 400
    why = {v.bound.group: v.why for v in bounds.verdicts(groups) if v.met is None}
    assert why == {"idle": "not measured", "routed": "measured with 400, not 4,000"}
    assert "5 not measured at their size" not in bounds.summary(whole())
    assert all(v.met is None for v in bounds.verdicts({}))


def test_a_median_of_the_daemon_does_not_hide_its_slowest_hundredth() -> None:
    groups = whole()
    groups["drift"]["actors"]["daemon"]["b"] = [0.2] * 2
    found = {v.bound.what: v.met for v in bounds.verdicts(groups) if v.bound.group == "drift"}
    assert set(found.values()) == {False, True}


def test_memory_that_creeps_is_not_flat() -> None:
    assert bounds.growth_of_memory([60, 61, *([62.0] * 8), 70]) == 1.0  # one pass in mid-work
    creeping = bounds.growth_of_memory([60 + 0.5 * i for i in range(11)])
    assert creeping is not None and creeping > bounds.FLAT
    assert bounds.growth_of_memory([60, 60]) is None


def test_bounds_that_tests_show_name_tests_that_are_there() -> None:
    for place in bounds.TESTS.values():
        file, _, name = place.partition("::")
        assert f"def {name}(" in (ROOT / file).read_text(), place


def test_a_peer_that_masquerades_is_held_against_the_like_too() -> None:
    table = bounds.table(whole())
    assert "40 × (20 × against runcnet with masquerade)" in table
    assert table.count("with masquerade)") == len(peers.MASQUERADING)


# -- tables and plots -------------------------------------------------------------------------------


def test_the_readme_is_filled_between_its_marks_alone() -> None:
    text = f"before\n{report.MARK}\nold\n{report.END}\nafter\n"
    once = report.filled(text, "new\n")
    assert once == f"before\n{report.MARK}\nnew\n{report.END}\nafter\n"
    assert report.filled(once, "new\n") == once
    with pytest.raises(ValueError):
        report.filled("no marks", "new\n")


def test_the_readmes_figures() -> None:
    text = report.readme(whole())
    assert "| create, one bridge | 1,000 | 1.00 s | 1.00 s | 1.00 × |" in text
    assert "| nothing to do, routed | 4,000 | 0.50 s | 0.30 s | 1.67 × |" in text
    assert "| one container more, beyond nothing to do | 4,000 | +0.100 s |  |  |" in text
    assert "| netavark | 40.00 s | 40.00 ms | 40.0 × | 20.0 × |" in text
    assert "| pyroute2 | 40.00 s | 40.00 ms | 40.0 × |  |" in text
    assert "(2 kinds, 100 trials)" in text
    assert f"Of {len(bounds.BOUNDS)} bounds set beforehand, {len(bounds.BOUNDS)} are met." in text
    assert "kernel 6.1, processors 2." in text


def test_a_rehearsal_is_never_shown_as_figures() -> None:
    groups = whole()
    assert not report.rehearsed(groups)
    groups["growth, 10000"]["n"] = 1000
    assert report.rehearsed(groups)
    assert report.readme(groups) == report.NO_FIGURES == report.readme({})
    assert "rehearsal" in plots.growth(groups, report.note(groups))
    assert "rehearsal" in report.markdown(groups)


def test_groups_of_other_versions_are_told_apart() -> None:
    groups = whole()
    assert report.versions(groups).count("\n") == 1
    groups["peers"]["about"] = {"kernel": "6.2"}
    assert "- peers: kernel 6.2." in report.versions(groups)


def test_the_whole_table_has_rows_of_one_width() -> None:
    text = report.markdown(whole())
    for block in text.split("\n\n"):
        rows = [line for line in block.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in rows}) <= 1, block
    assert "+0.100 s beyond nothing to do" in text
    assert text.count("### ") == len(whole())


@pytest.mark.parametrize("groups", [{}, whole()], ids=["nothing", "all"])
@pytest.mark.parametrize("plot", [plots.growth, plots.bars])
def test_labels_of_a_plot_are_in_it_and_apart(plot: object, groups: Groups) -> None:
    text = plot(groups, " (rehearsal: no figures)")  # type: ignore[operator]
    root = ElementTree.fromstring(text)
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    boxes = []
    for label in root.iter("{http://www.w3.org/2000/svg}text"):
        wide = 7.2 * len(label.text or "")  # a character of 12 px, on the safe side
        share = {"middle": 0.5, "end": 1.0}.get(label.get("text-anchor", ""), 0.0)
        left, low = float(label.attrib["x"]) - wide * share, float(label.attrib["y"])
        assert left >= 0 and left + wide <= width and 12 <= low <= height, label.text
        boxes.append((left, low - 10, left + wide, low, label.text))
    for i, one in enumerate(boxes):
        for other in boxes[i + 1 :]:
            apart = (one[2] <= other[0] or other[2] <= one[0]
                     or one[3] <= other[1] or other[3] <= one[1])  # fmt: skip
            assert apart, (one, other)


def test_labels_are_moved_apart_and_stay_inside() -> None:
    assert plots.spread([10, 12, 50], 15, 100) == [10, 25, 50]
    assert plots.spread([90, 95, 99], 15, 100) == [70, 85, 100]


def test_grid_lines_are_round_and_few() -> None:
    for top in (0.7, 3, 99, 1234, 8000):
        each = plots.step(top)
        assert re.fullmatch(r"[125]e[+-]\d+", f"{each:.0e}")
        assert 2 <= top / each <= 5
