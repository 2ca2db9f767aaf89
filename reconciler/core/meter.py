"""What the daemon tells about its work while it works, and the listener for when nobody asked."""

import functools
import re
from collections.abc import Mapping
from typing import Protocol

from reconciler.core.ops import Operation
from reconciler.core.report import Report
from reconciler.core.room import Pool

STATES = ("ok", "missing", "differs", "foreign", "failed", "held")
"""What a container can be."""


class Meter(Protocol):
    """Is told what happens, by one thread. No method takes long, or raises for what it is told."""

    def passed(self, kind: str, seconds: float, report: Report | None) -> None:
        """A pass of `kind` full or part is over; `report` None: an error stopped it before its end."""

    def repaired(self, seconds: float) -> None:
        """What an event told of is as declared again, `seconds` after the event."""

    def containers(self, states: Mapping[str, int]) -> None:
        """How many containers are in each state now; a state that is absent has none."""

    def rejected(self, files: int) -> None:
        """How many files are rejected now."""

    def leases(self, used: Mapping[Pool, int], free: Mapping[Pool, int]) -> None:
        """How many automatic addresses are in use and left now (`room`), for all networks there are."""

    def events(self, count: int, lost: bool) -> None:
        """`count` events came in; `lost`: and others were lost on the way."""


class NoMetrics:
    """Forgets it all."""

    def passed(self, kind: str, seconds: float, report: Report | None) -> None:
        pass

    def repaired(self, seconds: float) -> None:
        pass

    def containers(self, states: Mapping[str, int]) -> None:
        pass

    def rejected(self, files: int) -> None:
        pass

    def leases(self, used: Mapping[Pool, int], free: Mapping[Pool, int]) -> None:
        pass

    def events(self, count: int, lost: bool) -> None:
        pass


@functools.cache
def operation_kind(kind: type[Operation]) -> str:
    """The kind of an operation in words: `add_address` for AddAddress."""
    return re.sub(r"\B(?=[A-Z])", "_", kind.__name__).lower()


def operation_kinds() -> list[str]:
    """Every kind that a pass can carry out."""
    return sorted(operation_kind(kind) for kind in Operation.__subclasses__())
