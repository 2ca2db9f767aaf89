"""What is to be looked at again, and when: the daemon's list of things to do.

Names are those of reports (`container/web`, `network/n`, `firewall`); ALL stands for everything. A
mark only says *look there*. Marks are let rest for a moment, so that a burst is one pass; what keeps
failing is looked at again after pauses that grow.
"""

from collections.abc import Callable, Collection, Iterable

ALL = "*"
RULES = "rules"
"""Rules of the firewall, as far as they can be put back without a look at anything else."""
HOSTS = "hosts"
"""Hosts files of those whose fellows have changed, which need no look at the kernel."""
QUIET_S = 0.002
"""How long nothing new must have been marked before a pass begins."""
PATIENCE_S = 0.05
"""How long a mark waits at most, however much comes after it."""
FIRST_PAUSE_S = 1.0
LAST_PAUSE_S = 300.0


class Agenda:
    """Marks with their times; all times are seconds of one monotonic clock."""

    def __init__(self, dice: Callable[[], float]) -> None:
        """`dice` gives numbers between 0 and 1: pauses are spread, so that not all end at once."""
        self._dice = dice
        self._since: dict[str, float] = {}
        """Name → when it was first marked since it was last looked at."""
        self._latest = 0.0
        self._later: dict[str, float] = {}
        """Name → when it is to be looked at though nothing has marked it."""
        self._pauses: dict[str, float] = {}
        """What failed → how long it is to rest."""
        self._resting: dict[str, float] = {}
        """What failed → until when marks do not count."""

    def mark(self, names: Iterable[str], now: float) -> None:
        """Something was heard about these."""
        for name in names:
            self._since.setdefault(name, now)
            self._latest = now

    def postpone(self, names: Iterable[str], until: float) -> None:
        """Look at these then, whatever is heard."""
        for name in names:
            self._later[name] = min(until, self._later.get(name, until))

    def failed(self, names: Iterable[str], now: float) -> None:
        """These are not as they should be: they rest, each time twice as long."""
        for name in names:
            pause = min(self._pauses.get(name, FIRST_PAUSE_S / 2) * 2, LAST_PAUSE_S)
            self._pauses[name] = pause
            rest = now + pause * (0.75 + self._dice() / 2)
            self._resting[name] = self._later[name] = rest

    def fine(self, names: Iterable[str] | None, *, but: Collection[str] = ()) -> None:
        """These (None: all) are as they should be, `but` a few: a new failure rests as long as a first."""
        for name in set(self._pauses if names is None else names) - set(but):
            self._pauses.pop(name, None)
            self._resting.pop(name, None)
            self._later.pop(name, None)

    def wake(self, names: Iterable[str]) -> None:
        """What these are to be has changed: they need not rest any longer."""
        for name in names:
            self._resting.pop(name, None)
            self._later.pop(name, None)

    def seen(self, names: Collection[str] | None) -> float | None:
        """These (None: all) are being looked at now: answers when the oldest mark on them was made."""
        if names is None:
            names = self._since.keys() | self._later.keys()
        marked = [self._since.pop(name) for name in list(names) if name in self._since]
        for name in names:
            self._later.pop(name, None)
        return min(marked, default=None)

    def due(self, now: float) -> frozenset[str]:
        """What is to be looked at now."""
        ready = {name for name, when in self._later.items() if when <= now}
        awake = [name for name in self._since if self._resting.get(name, 0.0) <= now]
        if awake and now >= self._begin(awake):
            ready.update(awake)
        return frozenset(ready)

    def next(self, now: float) -> float | None:
        """When something will be due, if nothing more is heard; None: never."""
        times = list(self._later.values())
        awake = [name for name in self._since if self._resting.get(name, 0.0) <= now]
        if awake:
            times.append(self._begin(awake))
        return min(times, default=None)

    def _begin(self, awake: Iterable[str]) -> float:
        oldest = min(self._since[name] for name in awake)
        return min(self._latest + QUIET_S, oldest + PATIENCE_S)
