"""What a pass says when it is over: for people, for scripts, and as an exit code."""

from typing import Any

import msgspec

from reconciler.core.model import Rejection
from reconciler.core.netplan import Held
from reconciler.core.ops import Operation

MOTION = "files changed a moment ago; the next pass looks again"


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """An operation and what became of it; `ok` None: it was only planned."""

    operation: Operation
    ok: bool | None
    error: str | None = None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """One pass. A dry run's `operations` have `ok` None."""

    operations: tuple[Done, ...]
    problems: dict[str, list[str]]
    """Object → why it is not as declared, where no operation could mend it."""
    held: tuple[Held, ...]
    rejections: tuple[Rejection, ...]
    notes: tuple[str, ...]
    declared: frozenset[str]
    """Every declared object."""
    duration_s: float
    dry: bool = False
    """Nothing was carried out."""
    stopped: bool = False
    """A signal ended the pass early."""

    @property
    def failed(self) -> frozenset[str]:
        """Objects that are not as declared."""
        broken = {done.operation.object for done in self.operations if done.ok is False}
        return frozenset(broken | set(self.problems))

    @property
    def converged(self) -> bool:
        """Whether the kernel matches all that is declared."""
        clean = not (self.failed or self.held or self.rejections or self.stopped)
        return clean and not (self.dry and self.operations)

    @property
    def removed(self) -> int:
        """How many objects went, or would go."""
        return len(self._objects("remove"))

    @property
    def changed(self) -> int:
        """How many objects were made or altered, or would be."""
        return len(self._objects("create", "update"))

    @property
    def unchanged(self) -> int:
        """How many declared objects needed nothing."""
        touched = {done.operation.object for done in self.operations}
        return len(self.declared - touched - set(self.problems))

    def _objects(self, *actions: str) -> set[str]:
        return {
            done.operation.object
            for done in self.operations
            if done.ok is not False and done.operation.action in actions
        }

    @property
    def exit_code(self) -> int:
        """0, 1 (not applied or held back) or 2 (a file was rejected)."""
        if self.rejections:
            return 2
        return 1 if self.failed or self.held or self.stopped else 0

    def as_json(self) -> dict[str, Any]:
        """The object that `--json` prints; readers ignore keys they do not know."""
        return {
            "version": 1,
            "converged": self.converged,
            "changed": self.changed,
            "unchanged": self.unchanged,
            "removed": self.removed,
            "failed": len(self.failed),
            "held_back": [{"object": h.object, "reason": h.reason} for h in self.held],
            "duration_s": round(self.duration_s, 6),
            "operations": [
                {
                    "object": done.operation.object,
                    "action": done.operation.action,
                    "description": done.operation.describe(),
                    "interrupts": done.operation.interrupts,
                    "ok": done.ok,
                    "error": done.error,
                }
                for done in self.operations
            ],
            "problems": [
                {"object": name, "message": text}
                for name, texts in sorted(self.problems.items())
                for text in texts
            ],
            "rejected": [
                {
                    "file": r.place.file,
                    "line": r.place.line,
                    "column": r.place.column,
                    "path": r.path,
                    "message": r.message,
                }
                for r in self.rejections
            ],
            "notes": list(self.notes),
        }


SIGNS = {"create": "+", "update": "~", "remove": "-"}


def line(operation: Operation) -> str:
    """`+ container web  eth1 176.10.0.101/16 in runc0`; `!` behind the sign: it interrupts."""
    sign = SIGNS[operation.action] + ("!" if operation.interrupts else "")
    kind, _, name = operation.object.partition("/")
    return f"{sign:<2}{kind}{' ' + name if name else ''}  {operation.describe()}"


def summary(report: Report) -> str:
    """One line: how much was, or would be, done."""
    verb = "would change" if report.dry else "changed"
    parts = [f"{verb}: {report.changed}", f"removed: {report.removed}"]
    parts += [f"unchanged: {report.unchanged}", f"failed: {len(report.failed)}"]
    if report.held:
        parts.append(f"held back: {len({h.object for h in report.held})}")
    if report.rejections:
        parts.append(f"rejected files: {len({r.place.file for r in report.rejections})}")
    return ", ".join(parts)
