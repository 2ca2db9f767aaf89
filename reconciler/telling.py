"""What the daemon says of its passes: a line for each change, and each problem once while it lasts."""

import re

from reconciler.core.report import MOTION, Report, line
from reconciler.terminal import Terminal

PIDS = r"pids? \d+(?:, \d+)*(?: and \d+ more)?"


class Telling:
    """The log of a daemon, and what it has said."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._told: dict[str, tuple[str, ...]] = {}
        """Object → what is wrong with it, as far as that does not change by itself."""

    def tell(self, report: Report, scope: frozenset[str] | None) -> None:
        """A line for each change; what stays wrong is said once."""
        for one in report.operations:
            text = line(one.operation)
            if one.ok is False:
                continue  # it is a problem, too: see below
            self._terminal.log("info", text, object=one.operation.object)
        now: dict[str, list[str]] = {}
        for one in report.operations:
            if one.ok is False:
                now.setdefault(one.operation.object, []).append(
                    f"{line(one.operation)[2:]}: {one.error}"
                )
        for name, texts in report.problems.items():
            now.setdefault(name, []).extend(f"{_called(name)}: {text}" for text in texts)
        for held in report.held:
            if MOTION not in held.reason:
                text = f"{_called(held.object)} is held back: {held.reason}"
                now.setdefault(held.object, []).append(text)
        for rejection in report.rejections if scope is None else ():
            now.setdefault(rejection.place.file, []).append(str(rejection))
        if scope is None:
            now.setdefault("notes", []).extend(report.notes)
        for name, texts in now.items():
            said = tuple(dict.fromkeys(texts))
            known = tuple(map(_lasting, said))
            if self._told.get(name) != known:
                level = "warning" if name == "notes" else "error"
                for text in said:
                    self._terminal.log(level, text, object=name)
            self._told[name] = known
        for name in [n for n in self._told if n not in now and (scope is None or n in scope)]:
            del self._told[name]
            if name != "notes":
                self._terminal.log("info", f"{_called(name)} is fine again", object=name)


def _lasting(text: str) -> str:
    """A reason without the pids in it: processes come and go, and it stays the same reason."""
    return re.sub(PIDS, "pids", text)


def _called(name: str) -> str:
    """An object as people call it; a file by its path."""
    return name if name.startswith("/") else name.replace("/", " ", 1)
