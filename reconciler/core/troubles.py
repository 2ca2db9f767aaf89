"""Since when something is not as declared, and what went wrong lately: from one pass to the next."""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from reconciler.core.report import Report

FILE = "file/"
"""Before the path of a rejected definition file, where the name of an object stands."""
A_PASS = 20
"""So many mishaps of one pass are kept: a thousand that fail alike must not push out all else."""


class Trouble(msgspec.Struct, frozen=True, kw_only=True):
    """An object that is not as declared."""

    since: float
    """Seconds since the epoch: the first of the passes in a row that found it so."""
    text: str
    """Why, as the last of them found it; one line a reason."""


class Mishap(msgspec.Struct, frozen=True, kw_only=True):
    """Something that went wrong, whether or not it has been mended since."""

    time: float
    """Seconds since the epoch."""
    object: str
    text: str


class News(msgspec.Struct, frozen=True, kw_only=True):
    """What one pass found that the passes before it did not know. False where there is nothing."""

    troubles: dict[str, Trouble]
    """Objects that came into trouble, or are in it for another reason now."""
    mended: tuple[str, ...]
    """Objects that are out of it."""
    mishaps: tuple[Mishap, ...]

    def __bool__(self) -> bool:
        return bool(self.troubles or self.mended or self.mishaps)


class _Reasons(msgspec.Struct):
    """Why one object is not as declared."""

    errors: list[str]
    held: list[str]


def _reasons(report: "Report") -> dict[str, _Reasons]:
    found: dict[str, _Reasons] = {}

    def at(name: str) -> _Reasons:
        return found.setdefault(name, _Reasons([], []))

    for done in report.operations:
        if done.ok is False:
            text = f"{done.operation.describe()}: {done.error}"
            at(done.operation.object).errors.append(_one_line(text))
    for name, texts in report.problems.items():
        at(name).errors.extend(_one_line(text) for text in texts)
    for rejection in report.rejections:
        at(FILE + rejection.place.file).errors.append(_one_line(str(rejection)))
    for held in report.held:
        at(held.object).held.append(_one_line(f"held back: {held.reason}"))
    return found


def _one_line(text: str) -> str:
    return " ".join(text.split())


def news(
    known: Mapping[str, Trouble],
    report: "Report",
    *,
    scope: frozenset[str] | None,
    accepted: Collection[str],
    now: float,
) -> News:
    """What a pass that was carried out found, compared with the troubles known before it.

    `scope`: the objects that it looked at; None: all. `accepted`: the definition files that it read
    and found good. `now`: seconds since the epoch.
    """
    looked_at = scope
    if looked_at is not None:
        looked_at |= {done.operation.object for done in report.operations}
    found = {
        name: reasons
        for name, reasons in _reasons(report).items()
        if looked_at is None or name in looked_at or name.startswith(FILE)
    }
    troubles, mishaps = {}, []
    for name, reasons in found.items():
        old = known.get(name)
        text = "\n".join(dict.fromkeys(reasons.errors + reasons.held))
        if old is None or old.text != text:
            troubles[name] = Trouble(since=old.since if old else now, text=text)
        before = old.text.split("\n") if old else []
        mishaps += [
            Mishap(time=now, object=name, text=error)
            for error in dict.fromkeys(reasons.errors)
            if error not in before
        ]

    def mended(name: str) -> bool:
        if name in found:
            return False
        if looked_at is None:
            return True
        return name in looked_at or name.removeprefix(FILE) in accepted

    return News(
        troubles=troubles,
        # A pass that was ended early does not know what it would have found.
        mended=() if report.stopped else tuple(name for name in known if mended(name)),
        mishaps=tuple(_shortened(mishaps)),
    )


def _shortened(mishaps: list[Mishap]) -> list[Mishap]:
    more = len(mishaps) - A_PASS
    if more <= 0:
        return mishaps
    last = mishaps[A_PASS - 1]
    text = f"{last.text} (and {more} more of the same pass)"
    return [*mishaps[: A_PASS - 1], msgspec.structs.replace(last, text=text)]
