"""`runcnet status` for people, and what a watch says: of values, without a kernel."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from reconciler import watching
from reconciler.core.errors import RuncnetError
from reconciler.overview import board, change_line, overview, span
from reconciler.status import moment, rfc3339
from reconciler.watching import Change, Condition, Look, changes, looks

NOW = moment("2026-01-31T12:03:04Z")


def one(name: str, state: str = "ok", *problems: str, since: float | None = None) -> dict[str, Any]:
    return {
        "name": name, "netns": f"/run/netns/{name}", "mode": "none", "interfaces": [], "ports": [],
        "declared": "a.yaml:1", "pids": [], "state": state, "problems": list(problems),
        "since": None if since is None else rfc3339(since),
    }  # fmt: skip


def status(*containers: dict[str, Any], **more: Any) -> dict[str, Any]:
    empty = {
        "version": 1, "daemon": None, "networks": [], "firewall": [], "firewall_since": None, "host": [],
        "host_since": None, "files": [], "rejected": [], "notes": [], "errors": [],
    }  # fmt: skip
    return {**empty, "containers": list(containers), **more}


@pytest.mark.parametrize(
    "seconds,text",
    [(-5, "0 s"), (59.9, "59 s"), (60, "1 min"), (3599, "59 min"), (3600, "1 h"),
     (172_799, "47 h"), (172_800, "2 d")],
)  # fmt: skip
def test_a_span_reads_well(seconds: float, text: str) -> None:
    assert span(seconds) == text


def test_of_thousands_only_those_are_shown_that_are_not_ok() -> None:
    found = status(
        *(one(f"w-{n}") for n in range(3_998)),
        one("web", "differs", "to be done: set eth0 up", since=NOW - 250),
        one("db", "missing", "to be done: lo only"),
    )
    lines = overview(found, now=NOW, everything=False).splitlines()
    assert lines[1].split() == ["web", "differs", "for", "4", "min", "none", "-", "a.yaml:1"]
    assert lines[2].split()[:2] == ["db", "missing"]
    assert "3,998 containers are ok (name one, or --all or --json)" in lines
    assert not any("w-" in line for line in lines)
    assert lines[-1] == "daemon: not running"
    assert sum("w-" in x for x in overview(found, now=NOW, everything=True).splitlines()) == 3_998


def test_two_hundred_are_shown_all() -> None:
    text = overview(status(*(one(f"w-{n}") for n in range(200))), now=NOW, everything=False)
    assert text.count("w-") == 200 and "are ok" not in text


def test_errors_files_and_the_daemon_are_shown() -> None:
    errors = [
        {"time": rfc3339(NOW - n), "object": f"container/c{n}", "message": "EINVAL"}
        for n in range(9, 0, -1)
    ]
    file = {"name": "/etc/b.yaml", "state": "rejected", "since": rfc3339(NOW - 60), "problems": ["/etc/b.yaml:1:2: bad"]}  # fmt: skip
    found = status(
        one("a"),
        files=[file],
        errors=errors,
        firewall=["the lock was held"],
        firewall_since=rfc3339(NOW - 7200),
        daemon={"pid": 123, "since": rfc3339(NOW - 240)},
    )
    lines = overview(found, now=NOW, everything=False).splitlines()
    assert "firewall (for 2 h): the lock was held" in lines
    assert "rejected for 1 min: /etc/b.yaml:1:2: bad" in lines
    shown = lines[lines.index("last errors:") + 1 :][:5]
    assert [line.split("  ")[1] for line in shown] == [
        f"container c{n}: EINVAL" for n in range(5, 0, -1)
    ]
    assert lines[-1] == "daemon: pid 123, up 4 min"


def test_a_link_named_by_a_workload_does_not_command_the_terminal() -> None:
    found = status(one("a", "differs", "\x1b[2Jeth0 is not runcnet's\n"))
    assert "?[2Jeth0 is not runcnet's" in overview(found, now=NOW, everything=False)
    change = Change(object="container/a", before="ok", now=Condition(state="x", problems=("\x07",)))
    assert change_line(change, NOW).endswith("container a: ok -> x: ?")


def test_changes_are_of_state_alone() -> None:
    ok, bad = Condition(state="ok"), Condition(state="differs", problems=("why", "more"))
    before = {"container/a": ok, "container/b": bad, "container/c": ok, "file//x": bad}
    after = {
        "container/a": bad,
        "container/b": Condition(state="differs", problems=("another reason",)),
        "container/d": ok,
    }
    found = changes(before, after)
    assert [(c.object, c.before, c.now.state) for c in found] == [
        ("container/a", "ok", "differs"),
        ("container/d", None, "ok"),
        ("container/c", "ok", "gone"),
        ("file//x", "differs", "ok"),
    ]
    line = change_line(found[0], NOW)
    assert line[8:] == " container a: ok -> differs: why (and 1 more)"
    assert [c.object for c in changes(None, after)] == ["container/a", "container/b"]


def look_of(bad: int, fine: int, errors: int) -> Look:
    conditions = {
        f"container/b{n}": Condition(state="differs", since=NOW - 60, problems=("why",))
        for n in range(bad)
    } | {f"container/f{n}": Condition(state="ok") for n in range(fine)}
    mishaps = [{"time": rfc3339(NOW), "object": "host", "message": str(n)} for n in range(errors)]
    return Look(NOW, conditions, [], mishaps, None)


@pytest.mark.parametrize("height", range(4, 40))
@pytest.mark.parametrize("bad,fine,errors", [(0, 3, 0), (3, 30, 0), (3, 4_000, 7), (50, 4_000, 7)])
def test_the_board_fits_and_tells_of_all(height: int, bad: int, fine: int, errors: int) -> None:
    lines = [text for text, _ in board(look_of(bad, fine, errors), height)]
    assert len(lines) <= height
    shown_bad = sum(line.startswith("container b") for line in lines)
    shown_fine = sum(line.startswith("container f") for line in lines)
    assert shown_bad == min(bad, height - 3)
    if shown_bad < bad:
        assert lines[-1] == f"… and {bad - shown_bad} more that are not ok, {fine:,} fine"
    elif shown_fine < fine:
        assert f"… and {fine - shown_fine:,} more fine" in lines
    if shown_bad:
        assert lines[2].split() == ["container", "b0", "differs", "for", "1", "min", "why"]


class Clock:
    """A clock that moves when somebody sleeps or works."""

    def __init__(self) -> None:
        self.now = NOW
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(watching, "time", clock)
    return clock


def scripted(*answers: Any) -> Callable[[], dict[str, Any]]:
    rest = iter(answers)

    def look() -> dict[str, Any]:
        answer = next(rest)
        if isinstance(answer, Exception):
            raise answer
        return answer  # type: ignore[no-any-return]

    return look


def said(seen: Iterator[Look], count: int) -> list[list[tuple[str, str | None, str]]]:
    return [
        [(c.object, c.before, c.now.state) for c in look.changes]
        for look in itertools.islice(seen, count)
    ]


def test_a_watch_that_cannot_look_says_so_once_and_goes_on(clock: Clock) -> None:
    seen = looks(
        scripted(status(one("a")), RuncnetError("no"), OSError("still no"), status(one("a", "differs"))),
        name=None,
        interval_s=1,
    )  # fmt: skip
    assert said(seen, 4) == [
        [],
        [("status", "ok", "blind")],
        [],
        [("container/a", "ok", "differs"), ("status", "blind", "ok")],
    ]
    with pytest.raises(RuncnetError, match="no"):
        next(looks(scripted(RuncnetError("no")), name=None, interval_s=1))


def test_a_watch_of_one_name(clock: Clock) -> None:
    first = status(one("a"), one("b", "missing"), host=["what of it"])
    seen = looks(scripted(first, status(one("a", "differs")), status()), name="a", interval_s=1)
    assert said(seen, 3) == [
        [],
        [("container/a", "ok", "differs")],
        [("container/a", "differs", "gone")],
    ]
    with pytest.raises(RuncnetError, match="c: nothing of that name is declared or stands"):
        next(looks(scripted(first), name="c", interval_s=1))


def test_a_watch_knows_since_when_where_no_pass_has_noted_it(clock: Clock) -> None:
    since = NOW - 1000
    seen = looks(
        scripted(
            status(one("a"), one("b", "differs")),
            status(one("a", "missing"), one("b", "differs")),
            status(one("a", "differs"), one("b", "differs", since=since)),
            status(one("a"), one("b", "differs", since=since)),
        ),
        name=None,
        interval_s=1,
    )
    found = [
        tuple(look.conditions[f"container/{n}"].since for n in "ab")
        for look in itertools.islice(seen, 4)
    ]
    assert found == [(None, None), (NOW + 1, None), (NOW + 1, since), (None, since)]


def test_a_watch_rests_as_long_as_it_works(clock: Clock) -> None:
    def look() -> dict[str, Any]:
        clock.now += 3
        return status(one("a"))

    list(itertools.islice(looks(look, name=None, interval_s=1), 3))
    assert clock.slept == [3, 3]
    clock.slept.clear()
    list(itertools.islice(looks(look, name=None, interval_s=5), 2))
    assert clock.slept == [5]
