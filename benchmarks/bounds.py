"""The bounds that the project set itself beforehand, each beside what was measured.

What is shown by a test rather than by a measurement is named with the test.
"""

import statistics
from collections.abc import Callable
from typing import NamedTuple

from benchmarks import hooks, peers, ports, record
from benchmarks.record import Groups

FLAT = 1.02
"""Memory is flat where the last readings are at most so many times the early ones."""


class Bound(NamedTuple):
    """One bound: `figure` is what was measured, None where it was not."""

    what: str
    group: str
    n: int
    limit: float
    unit: str
    figure: Callable[[Groups], float | None]
    at_least: bool = False

    @property
    def stated(self) -> str:
        """`at most 1.1 ×`."""
        return f"at {'least' if self.at_least else 'most'} {self.limit:g} {self.unit}"

    def met(self, figure: float) -> bool:
        """Whether a figure is within it."""
        return figure >= self.limit if self.at_least else figure <= self.limit


class Verdict(NamedTuple):
    """A bound and what was found; `met` is None where it was not measured at the bound's size."""

    bound: Bound
    figure: float | None
    met: bool | None
    why: str


def _floor(group: str, actor: str, case: str) -> Callable[[Groups], float | None]:
    return lambda groups: record.against_floor(groups.get(group), actor, case)


def _peer(name: str) -> Callable[[Groups], float | None]:
    return lambda groups: record.ratio(
        groups.get("peers"), (name, "create"), ("runcnet, bridge", "create")
    )


def _middle(
    group: str, actor: str, case: str, scale: float = 1
) -> Callable[[Groups], float | None]:
    def figure(groups: Groups) -> float | None:
        found = record.middle(groups.get(group), actor, case)
        return None if found is None else found * scale

    return figure


def _one_more(group: str, actor: str) -> Callable[[Groups], float | None]:
    return lambda groups: record.difference(groups.get(group), actor, "one more", "nothing to do")


def _drift(share: float) -> Callable[[Groups], float | None]:
    def figure(groups: Groups) -> float | None:
        found = record.percentile(record.pooled(groups.get("drift"), "daemon"), share)
        return None if found is None else found * 1e3

    return figure


def _against_plugins(group: str, actor: str) -> Callable[[Groups], float | None]:
    return lambda groups: record.ratio(
        groups.get(group), (actor, hooks.ATTACH), (hooks.PLUGINS, hooks.ATTACH)
    )


def growth_of_memory(curve: list[float]) -> float | None:
    """How many times the highest of the early readings the last ones are (the median of three).

    What a pass needs while it works comes and goes: a reading may meet it or not. The first one is
    before any event.
    """
    if len(curve) < 8:
        return None
    return statistics.median(curve[-3:]) / max(curve[1:5])


def _memory(groups: Groups) -> float | None:
    return growth_of_memory(record.values(groups.get("memory"), "daemon", "memory"))


ROUTED, BRIDGED = "runcnet, routed", "runcnet, bridge"
NEW_FILE = "new file, written and closed"
BOUNDS = [
    Bound("create 1,000 on one bridge, against the floor", "bridge", 1000, 1.10, "×",
          _floor("bridge", BRIDGED, "create")),
    Bound("create 4,000 routed, against the floor", "routed", 4000, 1.10, "×",
          _floor("routed", ROUTED, "create")),
    *(
        Bound(f"{name}, a container, against runcnet", "peers", 1000, times, "×", _peer(name),
              at_least=True)
        for name, times in (
            ("ip by hand", 30), ("ip -batch", 2.8), ("pyroute2", 14), ("CNI bridge + loopback", 14),
            ("CNI with masquerade", 14), ("netavark", 28),
        )
    ),
    Bound("nothing to do, 4,000 routed", "routed", 4000, 0.6, "s",
          _middle("routed", ROUTED, "nothing to do")),
    Bound("nothing to do, 4,000 routed: peak memory", "routed", 4000, 120, "MiB",
          _middle("routed", ROUTED, "nothing to do: MiB")),
    Bound("nothing to do, 4,000 on four bridges", "growth, 4000", 4000, 0.6, "s",
          _middle("growth, 4000", BRIDGED, "nothing to do")),
    Bound("nothing to do, 4,000 on four bridges: peak memory", "growth, 4000", 4000, 120, "MiB",
          _middle("growth, 4000", BRIDGED, "nothing to do: MiB")),
    Bound("nothing to do, 10,000 routed, against the C scan", "growth, 10000", 10_000, 2, "×",
          _floor("growth, 10000", ROUTED, "nothing to do")),
    Bound("nothing to do, 10,000 on ten bridges, against the C scan", "growth, 10000", 10_000, 2,
          "×", _floor("growth, 10000", BRIDGED, "nothing to do")),
    Bound("one container added to 4,000 routed, beyond nothing to do", "routed", 4000, 0.15, "s",
          _one_more("routed", ROUTED)),
    Bound("one container added to 4,000 on four bridges, beyond nothing to do", "growth, 4000",
          4000, 0.15, "s", _one_more("growth, 4000", BRIDGED)),
    Bound("remove 4,000 routed, against unmounting in C", "routed", 4000, 1.2, "×",
          _floor("routed", ROUTED, "remove")),
    Bound("remove 4,000 on four bridges, against unmounting in C", "growth, 4000", 4000, 1.2, "×",
          _floor("growth, 4000", BRIDGED, "remove")),
    Bound("daemon: drift repaired, 1,000 standing, median", "drift", 1000, 10, "ms", _drift(0.5)),
    Bound("daemon: drift repaired, 1,000 standing, 99th percentile", "drift", 1000, 50, "ms",
          _drift(0.99)),
    Bound("daemon: a new file among 4,000, closed to complete, median", "files", 4000, 25, "ms",
          _middle("files", "daemon", NEW_FILE, 1e3)),
    Bound("daemon: idle with 4,000, share of a core", "idle", 4000, 1, "%",
          _middle("idle", "daemon", "idle", 100)),
    *(
        Bound(f"{name}, 2,000 ports: {what}", "thousands", 2000, 50, "ms",
              _middle("thousands", name, case))
        for name in ports.BACKENDS
        for what, case in (("compared", ports.COMPARE), ("one more", ports.ADD))
    ),
    *(
        Bound(f"a hook {how}, {beside}, against CNI bridge + loopback", group, n, limit, "×",
              _against_plugins(group, actor))
        for group, n, beside in ((hooks.SMALL, 10, "10 containers"),
                                 (hooks.LARGE, 1000, "beside 1,000"))
        for actor, how, limit in ((hooks.WITH_DAEMON, "with the daemon", 1.0),
                                  (hooks.ALONE, "without a daemon", 4.0))
    ),
    Bound("daemon: memory over 20,000 events, the last readings against the early ones", "memory",
          4000, FLAT, "×", _memory),
]  # fmt: skip
TESTS = {
    "the host pings 3,000 routed and 1,000 bridged members, each a random other":
        "tests/kernel/test_growth.py::test_the_host_reaches_every_member_and_each_reaches_another",
    "thousands routed (`make growth`: 10,000) made, checked, changed and removed, nothing leaked":
        "tests/kernel/test_growth.py::test_thousands_come_change_and_go_without_a_trace",
    "each way of saving a file is picked up":
        "tests/kernel/test_daemon.py::test_each_way_of_saving_is_heard",
    "1,000 files in a burst are few passes":
        "tests/kernel/test_daemon.py::test_a_thousand_files_at_once_are_few_passes",
    "sysctls and legacy rules are repaired at the next check":
        "tests/kernel/test_daemon.py::test_sysctls_and_legacy_rules_are_repaired_at_the_next_check",
    "two daemons: one writes":
        "tests/kernel/test_daemon.py::test_a_second_daemon_says_who_serves",
    "a daemon and --once: nothing is done twice":
        "tests/kernel/test_daemon.py::test_a_run_beside_it_is_waited_for_and_nothing_is_done_twice",
    "a truncated, an emptied and a vanished folder remove nothing":
        "tests/kernel/test_daemon.py::test_a_folder_that_says_nothing_removes_nothing",
}  # fmt: skip
"""Bounds that are not figures, and the test that shows each."""


def verdicts(groups: Groups) -> list[Verdict]:
    """Every bound beside what was measured."""
    found = []
    for bound in BOUNDS:
        figure = bound.figure(groups)
        if figure is None:
            found.append(Verdict(bound, None, None, "not measured"))
        elif groups[bound.group]["n"] != bound.n:
            why = f"measured with {groups[bound.group]['n']:,}, not {bound.n:,}"
            found.append(Verdict(bound, figure, None, why))
        else:
            met = bound.met(figure)
            found.append(Verdict(bound, figure, met, "met" if met else "NOT MET"))
    return found


def like_with_like(groups: Groups, name: str) -> str:
    """Of a peer that masquerades: how it stands against runcnet that does, too."""
    rules = ("runcnet with masquerade, bridge", "create")
    times = record.ratio(groups.get("peers"), (name, "create"), rules)
    if name not in peers.MASQUERADING or times is None:
        return ""
    return f" ({times:.3g} × against runcnet with masquerade)"


def table(groups: Groups) -> str:
    """Bounds, figures and verdicts as Markdown."""
    lines = ["| | bound | measured | |", "|---|---|---|---|"]
    for bound, figure, _, why in verdicts(groups):
        shown = "" if figure is None else f"{figure:.3g} {bound.unit}"
        shown += like_with_like(groups, bound.what.partition(",")[0])
        lines.append(f"| {bound.what} | {bound.stated} | {shown} | {why} |")
    lines += ["", "Shown by tests:", ""]
    lines += [f"- {what}: `{test}`" for what, test in TESTS.items()]
    return "\n".join(lines) + "\n"


def summary(groups: Groups) -> str:
    """One sentence: how many are met, and which are not."""
    found = verdicts(groups)
    met = sum(v.met is True for v in found)
    text = f"Of {len(found)} bounds set beforehand, {met} are met"
    missed = [f"{v.bound.what} ({v.figure:.3g} {v.bound.unit}, bound {v.bound.stated})"
              for v in found if v.met is False]  # fmt: skip
    unknown = sum(v.met is None for v in found)
    if missed:
        text += f"; not met: {'; '.join(missed)}"
    if unknown:
        text += f"; {unknown} not measured at their size"
    return text + "."
