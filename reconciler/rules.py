"""The firewall's rules between two whole passes: whether they stand, and putting them back."""

from collections import deque
from collections.abc import Collection, Iterable

from reconciler.core import ops, xtables
from reconciler.core.errors import FirewallError
from reconciler.core.policy import Publication
from reconciler.core.report import Done, Report
from reconciler.core.wanted import Member
from reconciler.host.apply import Outcome
from reconciler.host.store import Store
from reconciler.wall import Wall

BURST = 10
BURST_S = 10.0
"""Somebody who takes rules away as often as they are put back gets so many answers at once in that
time; what is left waits for the next check."""


class Rules:
    """What the last whole pass wanted of the firewall."""

    def __init__(self, *, resync_s: float) -> None:
        self._resync_s = resync_s
        self._wall: Wall | None = None
        self._moved = float("-inf")
        """When a jump of ours was last put before rules of others."""
        self._mended: deque[float] = deque(maxlen=BURST)

    def learn(self, wall: Wall, outcomes: Iterable[Outcome], now: float) -> None:
        """A whole pass has ended."""
        self._wall = wall
        for outcome in outcomes:
            if outcome.error is None and isinstance(outcome.operation, ops.ReplaceFirewall):
                self._note(outcome.operation, now)

    def _note(self, operation: ops.ReplaceFirewall, now: float) -> None:
        if xtables.moves(operation.differences):
            self._moved = now

    def yielding(self, now: float) -> bool:
        """Whether a jump that stands is to stay where it is: it was moved in this resync already."""
        return now < self._moved + self._resync_s

    def stands(self, now: float) -> bool:
        """Whether all is as it was wanted."""
        return self._wall is None or self._wall.stands(yielding=self.yielding(now))

    def forwardable(self) -> frozenset[int]:
        """The IP versions that may be forwarded with the rules that stand now."""
        return self._wall.forwardable() if self._wall is not None else frozenset()

    def remind(self, store: Store) -> None:
        """Somebody else has written to the state, or it was lost."""
        if self._wall is not None:
            self._wall.remind(store)

    def admit(self, members: Iterable[Member]) -> None:
        """Let these containers send from their addresses, before they have them. Raises FirewallError."""
        if self._wall is not None:
            self._wall.admit(members)

    def published(self, name: str) -> tuple[Publication, ...]:
        """The host ports that lead to a container by the rules that stand."""
        found = self._wall.policy.publications if self._wall is not None else ()
        return tuple(one for one in found if one.container == name)

    def publish(self, names: Collection[str], wanted: Iterable[Publication]) -> ops.ReplaceFirewall:
        """Let host ports lead to these containers as `wanted`. Raises FirewallError."""
        if self._wall is None:
            raise FirewallError("no whole pass has looked at the rules yet")
        return self._wall.publish(names, wanted)

    def dismiss(self, names: Collection[str]) -> None:
        """Let these containers send no longer. Raises FirewallError."""
        if self._wall is not None:
            self._wall.dismiss(names)

    def mend(self, now: float) -> ops.ReplaceFirewall | None:
        """Put back what others have changed; None: nothing was done. Raises FirewallError."""
        if self._wall is None or self._wall.problem:
            return None
        if len(self._mended) == BURST and now - self._mended[0] < BURST_S:
            return None
        found = self._wall.mend(yielding=self.yielding(now))
        if found is not None:
            self._note(found, now)
            self._mended.append(now)
        return found


def mended(operation: ops.ReplaceFirewall, duration_s: float) -> Report:
    """What there is to say of rules that were put back."""
    return Report(
        operations=(Done(operation=operation, ok=True),),
        problems={},
        held=(),
        rejections=(),
        notes=(),
        declared=frozenset(),
        duration_s=duration_s,
    )
