"""`runcnet status --watch`: look again and again, and say which object's state has changed."""

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec

from reconciler.core.errors import RuncnetError
from reconciler.core.troubles import FILE
from reconciler.status import about, absent, moment, rfc3339

LOOKING = "status"
"""The object that stands for the watch itself; it is `blind` while it cannot look."""


class Condition(msgspec.Struct, frozen=True, kw_only=True):
    """How one object is."""

    state: str
    since: float | None = None
    """Since when it is not ok (seconds since the epoch); None: it is, or nobody knows."""
    problems: tuple[str, ...] = ()


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """An object whose state is another than at the look before."""

    object: str
    before: str | None
    """None: it is new, or this is the first look."""
    now: Condition
    """Its state is `gone` where it is neither declared nor stands any more."""


class Look(msgspec.Struct, frozen=True):
    """One look, and what it found new."""

    time: float
    """When it ended (seconds since the epoch)."""
    conditions: Mapping[str, Condition]
    """Object → how it is. Networks come first, then containers."""
    changes: list[Change]
    """At the first look, all that is not ok."""
    errors: list[dict[str, Any]]
    """As in `status --json`."""
    daemon: dict[str, Any] | None
    """As in `status --json`."""


def conditions(found: dict[str, Any]) -> dict[str, Condition]:
    """Every object of a status."""
    result = {
        f"{kind}/{one['name']}": _condition(one["state"], one["since"], one["problems"])
        for kind in ("network", "container", "file")
        for one in found[f"{kind}s"]
    }
    for name in ("firewall", "host"):
        state = "differs" if found[name] else "ok"
        result[name] = _condition(state, found[f"{name}_since"], found[name])
    return result


def _condition(state: str, since: str | None, problems: list[str]) -> Condition:
    return Condition(state=state, since=moment(since) if since else None, problems=tuple(problems))


def changes(before: Mapping[str, Condition] | None, after: Mapping[str, Condition]) -> list[Change]:
    """What is in another state `after`, in the order of the objects; what is gone comes last.

    `before` None: there was no look before; all that is not ok.
    """
    if before is None:
        firsts = [Change(object=name, before=None, now=one) for name, one in after.items()]
        return [change for change in firsts if change.now.state != "ok"]
    found = []
    for name, one in after.items():
        was = before[name].state if name in before else _unheard(name)
        if was != one.state:
            found.append(Change(object=name, before=was, now=one))
    for name, one in before.items():
        if name not in after:
            end = Condition(state=_unheard(name) or "gone")
            found.append(Change(object=name, before=one.state, now=end))
    return found


def _unheard(name: str) -> str | None:
    """The state of an object that is only spoken of while something is wrong with it."""
    return "ok" if name == LOOKING or name.startswith(FILE) else None


def looks(
    look: Callable[[], dict[str, Any]], *, name: str | None, interval_s: float
) -> Iterator[Look]:
    """Look for ever, with at least `interval_s` and at least as long as a look takes in between.

    `name`: the one container or network to look at; None: all. Raises what the first look raises, and
    RuncnetError where it finds none of that name; a later one that fails with an operator's error is
    a condition of the watch itself, and what was known stays.
    """
    # As in a pass: hardly any object is in a cycle, and to look for them costs a third of the time.
    gc.disable()
    gc.freeze()
    try:
        yield from _looks(look, name, interval_s)
    finally:
        gc.unfreeze()
        gc.enable()


def _looks(
    look: Callable[[], dict[str, Any]], name: str | None, interval_s: float
) -> Iterator[Look]:
    known: dict[str, Condition] | None = None
    turned: dict[str, float] = {}
    errors: list[dict[str, Any]] = []
    daemon: dict[str, Any] | None = None
    while True:
        began = time.monotonic()
        try:
            found = look()
            after = {n: one for n, one in conditions(found).items() if about(n, name)}
            errors = [error for error in found["errors"] if about(error["object"], name)]
            daemon = found["daemon"]
            if known is None and not after:
                raise absent(name)
        except (RuncnetError, OSError) as error:
            if known is None:
                raise
            after = known | {LOOKING: Condition(state="blind", problems=(str(error),))}
        now = time.time()
        _note_turns(turned, known or {}, after, now)
        news = changes(known, after)
        known = after
        gc.collect()
        took_s = time.monotonic() - began
        yield Look(now, after, news, errors, daemon)
        time.sleep(max(interval_s, took_s))


def _note_turns(
    turned: dict[str, float],
    before: Mapping[str, Condition],
    after: dict[str, Condition],
    now: float,
) -> None:
    """Fill in since when objects are not ok that were ok before, where no pass has noted it."""
    for name, one in after.items():
        if one.state == "ok":
            turned.pop(name, None)
            continue
        if name in before and before[name].state == "ok":
            turned[name] = now
        if one.since is None and name in turned:
            after[name] = msgspec.structs.replace(one, since=turned[name])


def as_json(change: Change, when: float) -> dict[str, Any]:
    """The object that `status --watch --json` prints for a change seen then."""
    one = change.now
    return {
        "time": rfc3339(when),
        "object": change.object,
        "before": change.before,
        "state": one.state,
        "since": rfc3339(one.since) if one.since is not None else None,
        "problems": list(one.problems),
    }
