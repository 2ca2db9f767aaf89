"""The daemon's passes: whole ones and small ones, what they say, and what they leave to be done."""

import time
from collections.abc import Callable, Collection

from reconciler import trial
from reconciler.books import Books, write_down
from reconciler.core import ops
from reconciler.core.agenda import ALL, HOSTS, RULES, Agenda
from reconciler.core.errors import FirewallError
from reconciler.core.leases import Book
from reconciler.core.meter import Meter
from reconciler.core.report import MOTION, Report
from reconciler.fellows import Fellows
from reconciler.host import lock, rtnl
from reconciler.host.apply import Outcome
from reconciler.host.observe import busy_in
from reconciler.host.store import Store
from reconciler.load import Shelf
from reconciler.once import done, report_of
from reconciler.part import Part, Widen, stuck
from reconciler.prospect import Prospect, Settings, taking_away
from reconciler.reconcile import READS, Pass
from reconciler.rules import Rules, mended
from reconciler.telling import Telling
from reconciler.terminal import Terminal
from reconciler.troubles import note_troubles
from reconciler.world import World

CROWD = 16
"""More objects than these are looked at after the networks among them."""
FREED_S = 0.2
"""How long after a container's removal its leases are looked at: the kernel reaps in its own time."""


class Keeper:
    """Keeps one host as its files declare it. Not thread-safe."""

    def __init__(
        self,
        settings: Settings,
        agenda: Agenda,
        *,
        resync_s: float,
        terminal: Terminal,
        meter: Meter,
        hear: Callable[[], None],
        alive: Callable[[], None],
        stop: Callable[[], bool],
    ) -> None:
        """`hear` takes what the kernel has said up to now into the agenda; `alive` is called now and
        then while work goes on."""
        self.settings = settings
        self.agenda = agenda
        self.terminal = terminal
        self.meter = meter
        self.hear = hear
        self.alive = alive
        self.stop = stop
        self.shelf = Shelf(settings.config_dirs)
        self.world: World | None = None
        self.guarded: dict[str, tuple[int, ...]] = {}
        """Containers that are held back because they are in use, and by which pids."""
        self.books = Books(settings)
        self.last_whole_s: float | None = None
        """How long a whole pass took that has just ended."""
        self.last_look_s = 0.0
        """How much of it the look took, which it would have cost without a change: in time, or on all
        cores together, whichever is more."""
        self._edited: set[str] = set()
        """Containers whose declaration has changed since they were last looked at."""
        self._unwritten: set[str] = set()
        """Files that say something else than the state dir remembers."""
        self._fellows = Fellows(settings.run_dir)
        self._reads = 0
        self._oldest: float | None = None
        self.last: tuple[Prospect, Report] | None = None
        """What the last pass has decided, and what came of it."""
        self._telling = Telling(terminal)
        self._rules = Rules(resync_s=resync_s)

    def close(self) -> None:
        """Close state and record."""
        self.books.close()

    def read_again(self, files: Collection[str]) -> set[str] | None:
        """Read these files; answers which objects they change (None: possibly all)."""
        if self.world is None or not self.books.open:
            return None
        trials = self.books.store.trials
        if trials.pending() or trials.doubts():
            return None  # what is tried is noted by whole passes
        declared = self.shelf.read_again(files, self.books.store.memory)
        names = self.world.differing(declared)
        if names is not None:
            edited = {name.partition("/")[2] for name in names}
            for then in (self.world.declared, declared):
                self._fellows.note(then, edited)
            self.world.declare(declared, names)
            self._unwritten.update(files)
            self._edited |= edited
        return names

    # -- passes ---------------------------------------------------------------------------------

    def work(self, due: frozenset[str], *, whole: bool) -> None:
        """One pass over what is due; `whole`: a pass over everything may begin now.

        Raises LockedError at once where somebody else is at it.
        """
        with lock.hold(self.settings.run_dir, self.settings.state_dir, timeout_s=0):
            stale = self.books.renew()
            if stale:
                # Somebody else has worked here, or they were lost. What is known is out of date, and so is
                # no ground for a small pass: it could hand out an address for the second time.
                self.agenda.mark([ALL], time.monotonic())
                due |= {ALL}
                self._rules.remind(self.books.store)
            self._oldest = None
            if self.settled_trial():
                stale = True
                due |= {ALL}
            some = due - {ALL, "firewall", RULES, HOSTS}
            if due - some - {RULES, HOSTS} and (whole or stale):
                self.whole()
                self.books.settle()
                return
            if RULES in due:
                self._mend()
            if some and self.world is not None:
                try:
                    for names in _in_turn(some):
                        self.part(names)
                except Widen:
                    # It is not done yet, and all of it is left to a look at everything.
                    self._looked_at(some)
                    self.agenda.mark([ALL], self._oldest or time.monotonic())
            if HOSTS in due and self.world is not None:
                self.agenda.seen({HOSTS})
                self._fellows.renew(self.world)
            self.books.settle()

    def _mend(self) -> None:
        """Put rules back that others have changed, and look at nothing else."""
        started = time.monotonic()
        marked = self.agenda.seen({RULES})
        try:
            operation = self._rules.mend(started)
        except FirewallError:
            self.agenda.mark([ALL], started)  # which says what is wrong
            return
        if operation is None:
            return
        now = time.monotonic()
        report = mended(operation, now - started)
        self._telling.tell(report, frozenset({"firewall"}))
        self.meter.passed("part", now - started, report)
        if marked is not None:
            self.meter.repaired(now - marked)

    def settled_trial(self) -> bool:
        """Take a trial back of which the process is gone; whether there was one."""
        store = self.books.store
        before = store.trials.serial()
        trial.settle(store, self.settings.config_dirs)
        return store.trials.serial() != before

    def _looking(self, scope: Collection[str] | None) -> Callable[[Collection[str] | None], None]:
        def looking(objects: Collection[str] | None) -> None:
            self.hear()
            # A pass over everything looks at what it changed alone for the second time: of all else,
            # what is heard by then is still to be seen.
            self._looked_at(scope if objects is None else objects)

        return looking

    def _looked_at(self, scope: Collection[str] | None) -> None:
        oldest = self.agenda.seen(scope)
        if oldest is not None:
            self._oldest = min(oldest, self._oldest or oldest)

    def whole(self, *, leaving: str = "") -> None:
        """Look at everything; `leaving`: an attachment that is to go. The lock is held."""
        store, record = self.books.store, self.books.record
        started = time.monotonic()
        busy_s = time.process_time()
        one = Pass(
            self.settings,
            store=store,
            record=record,
            changing=True,
            stop=self.stop,
            shelf=self.shelf,
            looking=self._looking(None),
        )
        one.progress = lambda count: self.alive()
        one.yielding = self._rules.yielding(started)
        with store.transaction():
            if leaving:
                one.hooked.leave(leaving)
            old = store.book()
            prospect = one.look()
            restless_s = prospect.declared.restless_s
            expected = trial.expected(store, prospect.declared)
            if restless_s and taking_away(prospect.plan) - expected - one.hooked.going:
                self._reads += 1
                if self._reads < READS:
                    self.agenda.postpone([ALL], time.monotonic() + restless_s)
                    return
                prospect = one.look(restless=MOTION)
                self.agenda.postpone([ALL], time.monotonic() + restless_s)
            self._reads = 0
            self._unwritten.clear()
            self._edited.clear()
            self._fellows.clear()
            one.keep_books(prospect, old)
        self.last_look_s = max(time.monotonic() - started, time.process_time() - busy_s)
        outcomes = one.settle(prospect)
        if self.world is None:
            self.world = World(prospect)
        self.world.learn(prospect, prospect.observed, None)
        if one.seen is not prospect.observed:
            touched = {o.operation.object for o in outcomes if o.operation.object.startswith("c")}
            names = {name.partition("/")[2] for name in touched}
            self.world.learn(prospect, one.seen, names & one.seen.containers.keys() | names)
        self.shelf.stand(prospect.declared.loaded)
        self._rules.learn(prospect.wall, outcomes, time.monotonic())
        prospect.wall.stand_by(wanted=bool(prospect.wall.policy.publications))
        self.last_whole_s = time.monotonic() - started
        self._close_pass("full", prospect, outcomes, started, scope=None)

    def part(self, names: frozenset[str], *, leaving: str = "") -> None:
        """Look at these; `leaving`: an attachment among them that is to go. The lock is held.

        Raises Widen where that does not do.
        """
        assert self.world is not None  # `work` has looked
        store, record = self.books.store, self.books.record
        started = time.monotonic()
        world = self.world

        def prepared(only: frozenset[str]) -> tuple[Part, Prospect]:
            part = Part(
                self.settings,
                store=store,
                record=record,
                world=world,
                only=only,
                stop=self.stop,
                shelf=self.shelf,
                looking=self._looking(only),
                guarded=self._rules.forwardable,
                admit=self._rules.admit,
                published=self._rules.published,
                publish=self._rules.publish,
            )
            if leaving:
                part.hooked.leave(leaving)
            return part, part.look()

        part, prospect = prepared(names)
        names = part.only or names
        restless_s = prospect.declared.restless_s
        away = taking_away(prospect.plan) - part.hooked.going if restless_s else frozenset()
        if away:
            self.agenda.postpone(away, time.monotonic() + restless_s)
            names -= away
            if not names:
                return
            part, prospect = prepared(names)
            names = part.only or names
            if taking_away(prospect.plan) - part.hooked.going:
                raise Widen("what is to be taken away has changed")
        self._write_books(store, prospect, part.book)
        world.ledger.turn(part.book, prospect.assignment.book)
        outcomes = part.settle(prospect)
        if leaving:
            self._rules.dismiss([leaving])
        world.learn(prospect, part.seen, part.names)
        if stuck(prospect, outcomes):
            self.agenda.mark([ALL], time.monotonic())
        crowd = self._edited & part.names
        self._edited -= crowd
        crowd |= {
            o.operation.object.partition("/")[2] for o in outcomes if o.operation.action != "update"
        }
        if crowd:
            self._fellows.note(world.declared, crowd)
            self.agenda.postpone([HOSTS], time.monotonic() + self._fellows.pause_s)
        self._close_pass("part", prospect, outcomes, started, scope=names)

    def _write_books(self, store: Store, prospect: Prospect, old: Book) -> None:
        """Leases, and what files said when they last loaded; before the kernel is changed."""
        new = prospect.assignment.book
        if new is old or new == old:
            new = old
        if new is old and not self._unwritten:
            return
        with store.transaction():
            store.save_book(old, new)
            here = self._unwritten & prospect.declared.loaded.accepted
            memory = store.memory(self._unwritten)
            write_down(store, prospect.declared, memory, here, forget=self._unwritten - here)
        self._unwritten.clear()

    def _close_pass(
        self,
        kind: str,
        prospect: Prospect,
        outcomes: list[Outcome],
        started: float,
        *,
        scope: frozenset[str] | None,
    ) -> None:
        assert self.world is not None
        report = report_of(prospect, done(outcomes), started, dry=False, stopped=self.stop())
        self.last = prospect, report
        now = time.monotonic()
        broken = {name for name in report.failed if scope is None or name in scope}
        states = {**prospect.plan.states, **dict.fromkeys({o.object for o in report.held}, "held")}
        settled = {d.operation.object for d in report.operations} - broken
        states |= {name: "ok" for name in settled if states.get(name) != "held"}
        states |= {name: "failed" for name in broken if states.get(name, "ok") == "ok"}
        declared = prospect.declared.loaded.spec
        for name, state in states.items():
            if scope is not None and name not in scope:
                continue
            kind_of, _, own = name.partition("/")
            known = own in (declared.containers if kind_of == "container" else declared.networks)
            if known or state != "ok":
                self.world.states[name] = state
        self.agenda.fine(scope, but=broken)
        self.agenda.failed(self._to_try_again(broken), now)
        # Their leases are free once nothing of them is left, and only another look can tell that.
        removed = {
            d.operation.object
            for d in report.operations
            if isinstance(d.operation, ops.RemoveContainer)
            and d.operation.name not in declared.containers
        }
        self.agenda.postpone(removed - broken, now + FREED_S)
        self._guard(prospect, report, scope)
        self._telling.tell(report, scope)
        if self.books.open:
            note_troubles(self.books.record, report, prospect, scope=scope, now=time.time())
        self.meter.passed(kind, now - started, report)
        if self._oldest is not None and any(d.ok for d in report.operations):
            self.meter.repaired(now - self._oldest)

    def _to_try_again(self, broken: Collection[str]) -> set[str]:
        """What failed for itself: members of a network that failed are tried again with it."""
        assert self.world is not None
        containers = self.world.declared.loaded.spec.containers
        networks = {n.partition("/")[2] for n in broken if n.startswith("network/")}
        return {
            name
            for name in broken
            if (container := containers.get(name.partition("/")[2])) is None
            or not name.startswith("container/")
            or not any(i.network in networks for i in container.interfaces)
        }

    def _guard(self, prospect: Prospect, report: Report, scope: frozenset[str] | None) -> None:
        """Remember who is held back because it is in use: it goes when the last process has left."""
        if scope is None:
            self.guarded.clear()
        for name in scope or ():
            self.guarded.pop(name, None)
        busy = busy_in(prospect.observed)
        for held in report.held:
            if held.object.startswith("container/"):
                pids = busy(held.object.partition("/")[2])
                if pids:
                    self.guarded[held.object] = pids

    # -- checks of what the kernel does not announce -----------------------------------------------

    def check(self) -> None:
        """Look at rules and sysctls, which change without a word."""
        if self.world is None or not self.books.open:
            return
        now = time.monotonic()
        tried = self.books.store.trial()
        if self.books.lost() or (tried is not None and not tried.alive):
            self.agenda.mark([ALL], now)
        if not self._rules.stands(now):
            self.agenda.mark([ALL], now)
        spots = {n: s for n, s in self.world.spots.items() if s.file and s.sysctls}
        names = sorted({name for spot in spots.values() for name, _ in spot.sysctls})
        paths = [f"{self.settings.netns_dir}/{spot.file}" for spot in spots.values()]
        for name, values in zip(spots, rtnl.space_sysctls(paths, names), strict=True):
            seen = dict(zip(names, values or (), strict=False))
            if any(seen.get(key) != value for key, value in spots[name].sysctls):
                self.agenda.mark([f"container/{name}"], now)


def _in_turn(names: frozenset[str]) -> list[frozenset[str]]:
    """What is looked at together. A bridge that loses its address loses its neighbours, too: it does
    not wait until the containers behind them have been looked at, which may be hundreds."""
    networks = frozenset(name for name in names if name.startswith("network/"))
    if networks and len(names) > CROWD:
        return [networks, names - networks]
    return [names]
