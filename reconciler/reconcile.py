"""One pass: load → desired → observe → plan → apply → look again → report."""

import contextlib
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial

import msgspec

from reconciler import trial
from reconciler.attachment import Attachments
from reconciler.core import ops
from reconciler.core.desired import PING_GROUPS, desired_state
from reconciler.core.leases import Book, assign
from reconciler.core.model import Spec
from reconciler.core.netplan import Options, Scene
from reconciler.core.observed import Observed
from reconciler.core.plan import Plan, plan
from reconciler.core.report import Done, Report
from reconciler.core.seal import fresh_seals, settled
from reconciler.core.standing import standing_addresses, without
from reconciler.host import lock, netns, rtnl
from reconciler.host.ahead import Ahead
from reconciler.host.apply import Kernel, Outcome
from reconciler.host.machine import machine_id
from reconciler.host.observe import Dumps, busy_in, dump, dump_part, observe, read_witness
from reconciler.host.record import Record
from reconciler.host.store import Store
from reconciler.load import read_declared
from reconciler.prospect import (
    Declined,
    Prospect,
    Settings,
    absent_sysctls,
    held_once,
    takes_away,
)
from reconciler.wall import Wall

READS = 5
"""How often files that keep changing are read again before what they no longer declare is kept."""

FEW = 256
"""Up to so many touched objects, only they are looked at again after a change."""
SYSCTLS_FACT = "sysctls"


class Pass:
    """One pass over the host, with what it holds open."""

    def __init__(
        self,
        settings: Settings,
        *,
        store: Store,
        record: Record,
        changing: bool,
        only: frozenset[str] | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.settings = settings
        self.store = store
        self.record = record
        self.only = only
        self.stop = stop
        self.progress: Callable[[int], None] = lambda count: None
        self.changing = changing
        self.machine = machine_id()
        self._ahead: Ahead[Dumps] | None = None

    # -- reading ----------------------------------------------------------------------------

    def prospect(self) -> Prospect:
        """Read files and kernel and decide what is to be done; wait for files that are in motion."""
        for reads in range(READS):
            result = self._prospect(restless="")
            restless_s = result.declared.restless_s
            expected = trial.expected(self.store, result.declared)
            if not restless_s or not takes_away(result.plan, expected):
                return result
            if reads == READS - 1:
                break
            time.sleep(min(restless_s, 1.0))
        return self._prospect(restless="the files keep changing; the next pass looks again")

    def _prospect(self, *, restless: str) -> Prospect:
        settings = self.settings
        self.look_ahead()
        declared = read_declared(
            settings.config_dirs, self.store.remembered(), self.store.trials.doubts()
        )
        spec = declared.loaded.spec
        book = self.store.book()
        seals = self.record.seals()
        observed = self.observe(spec)
        if not self.record.present and self.changing:
            self.adopt(observed)
        busy = busy_in(observed)
        kept = set(observed.containers) | set(declared.loaded.waiting)
        if restless or declared.keep:
            kept |= {key.container for key in book.held}
        assignment = assign(
            spec,
            book,
            standing=standing_addresses(observed, spec, book),
            busy=lambda name: bool(busy(name)),
            kept=kept,
        )
        refused = assignment.rejections + absent_sysctls(spec)
        usable = without(spec, refused, assignment.problems)
        desired = desired_state(
            usable, assignment.addresses, machine=self.machine, host=observed.host
        )
        modes = {name: c.mode for name, c in spec.containers.items()}
        modes |= {name: "network" for name in declared.loaded.waiting if name not in modes}
        scene = Scene(
            declared=modes,
            networks=frozenset(spec.networks),
            busy=busy,
            settled=settled(desired, observed, seals),
            keep=restless or declared.keep,
            expected=trial.expected(self.store, declared),
        )
        options = Options(
            max_removals=settings.max_removals,
            no_interrupt=settings.no_interrupt,
            only=self.only,
        )
        decided = plan(desired, observed, scene, options)
        problems = {name: list(texts) for name, texts in decided.problems.items()}
        for name, text in {**assignment.problems, **declared.loaded.waiting}.items():
            problems.setdefault(f"container/{name}", []).append(text)
        wall = Wall(settings.firewall, self.store)
        wall.look(desired, decided, scene, observed)
        if wall.problem:
            problems.setdefault("firewall", []).append(wall.problem)
        attached = Attachments(run_dir=settings.run_dir, netns_dir=settings.netns_dir)
        attached.look(usable, assignment.addresses, only=self.only)
        for name, text in attached.problems:
            problems.setdefault(name, []).append(text)
        for container in spec.containers.values():
            if container.ports:
                problems.setdefault(f"container/{container.name}", []).append(
                    "published ports are not built yet (drop `ports`)"
                )
        return Prospect(
            declared=declared,
            spec=spec,
            observed=observed,
            desired=desired,
            assignment=assignment,
            plan=decided,
            wall=wall,
            attached=attached,
            moves=tuple(
                ops.MoveLease(
                    object=f"container/{move.key.container}",
                    old=move.old,
                    new=move.new,
                    reason=move.reason,
                )
                for move in assignment.moves
            ),
            problems=problems,
            rejections=declared.loaded.rejections + refused,
            notes=self.store.notes,
        )

    def look_ahead(self) -> None:
        """Begin to dump while the files are read; what namespaces are asked for, the last pass says."""
        names = tuple((self.store.get(SYSCTLS_FACT) or PING_GROUPS[0]).split())
        self._ahead = Ahead(partial(dump, self.settings.netns_dir, names))

    def observe(self, spec: Spec, *, touched: Mapping[str, str] | None = None) -> Observed:
        """The host and every namespace of the netns dir; where few objects were `touched`, theirs.

        `touched`: object → its file of the netns dir, as far as it has one.
        """
        wanted = {PING_GROUPS[0]}
        expected = []
        for container in spec.containers.values():
            wanted.update(name for name, _ in container.sysctls)
            if container.mode in ("network", "none"):
                name = f"container/{container.name}"
                if touched is None or name in touched:
                    expected.append(container.netns)
        names = tuple(sorted(wanted))
        witness = read_witness(self.record)
        netns_dir = self.settings.netns_dir
        ahead, self._ahead = self._ahead, None
        dumps = ahead.result() if ahead is not None else None
        if touched is not None:
            containers = {t.partition("/")[2] for t in touched if t.startswith("container/")}
            links = {i for i, (_, name, _) in witness.ends.items() if name in containers}
            links |= {index for index in witness.bridges.values() if index}
            files = {*expected, *containers, *touched.values()}
            dumps = dump_part(netns_dir, names, files=files, links=links)
            inside = {n: c for n, c in witness.spaces.items() if n in containers}
            witness = msgspec.structs.replace(witness, spaces=inside)
        elif dumps is None or dumps.sysctls != names:
            dumps = dump(netns_dir, names)
            if self.changing:
                self.store.put(SYSCTLS_FACT, " ".join(names))
        return observe(
            dumps,
            netns_dir=netns_dir,
            witness=witness,
            expected=expected,
            ipv6=any(s.version == 6 for n in spec.networks.values() for s in n.subnets),
        )

    def adopt(self, observed: Observed) -> None:
        """Begin a lost record anew with what the marks on the objects say."""
        containers = observed.containers.values()
        self.record.adopt(
            {seen.name: seen.space.cookie for seen in containers if seen.space is not None},
            {
                end.host.index: (end.network, seen.name, end.name)
                for seen in containers
                for end in seen.ends
            },
            {network: link.index for network, link in observed.bridges.items()},
        )
        self.record.note_gateways({str(a): n for a, n in observed.gateways.items()})

    # -- changing ---------------------------------------------------------------------------

    def carry_out(self, prospect: Prospect) -> list[Outcome]:
        """Make the kernel match. The leases are on disk before the kernel is touched."""
        outcomes: list[Outcome] = []

        def run(results: Iterable[Outcome]) -> None:
            for outcome in results:
                outcomes.append(outcome)
                self.progress(1)

        decided = prospect.plan
        if not prospect.operations:
            return []
        outcomes += [Outcome(op, None) for op in prospect.moves]
        if decided.creations or decided.repairs:
            netns.prepare(self.settings.netns_dir)
        kernel = Kernel(
            netns_dir=self.settings.netns_dir,
            record=self.record,
            links=prospect.observed.host.links,
            stop=self.stop,
        )
        kernel.finish_removals()
        run(kernel.remove(decided.removals))
        run(kernel.perform(decided.networks))
        guarded = prospect.wall.raise_(
            prospect.observed, lambda op, error: run([Outcome(op, error)])
        )
        if guarded:
            run(kernel.perform(decided.host))
        else:
            text = "not set: the firewall, and with it the router guard, is not in place"
            run(Outcome(op, text) for op in decided.host)
        run(kernel.create(decided.creations))
        if not self.stop():
            run(kernel.perform(decided.repairs))
        if not self.stop():
            run(prospect.attached.carry_out(prospect.attached.operations))
            run(kernel.perform(decided.last))
        return outcomes

    def prune(self, spec: Spec, observed: Observed) -> None:
        """Strike out of the record what is no more: it went with a kill, or by somebody's hand.

        Not what is declared: it may stand in another netns dir, which this run was not given.
        """
        links = {link.index for link in observed.host.links}
        gateways = {str(address) for address in observed.gateways}
        kept = observed.containers.keys() | spec.containers.keys()
        self.record.forget(
            containers=[n for n in self.record.spaces() if n not in kept],
            # A deleted end of a container that stands says that it had one.
            ends=[
                index
                for index, (_, container, _) in self.record.ends().items()
                if index not in links and container not in observed.containers
            ],
            gateways=self.record.gateways().keys() - gateways,
        )

    def keep_books(self, prospect: Prospect, old: Book) -> None:
        """Write leases and the content of good files; before the kernel is changed."""
        loaded = prospect.declared.loaded
        contents = prospect.declared.contents
        self.store.save_book(old, prospect.assignment.book)
        remembered = self.store.remembered()
        fresh = {f: contents[f] for f in loaded.accepted if remembered.get(f) != contents.get(f)}
        spec = loaded.spec
        gone = set(remembered) - loaded.accepted - loaded.remembered - loaded.lost
        if not (spec.networks or spec.containers):
            gone = set()
        if fresh or gone:
            self.store.remember(fresh, forget=gone)
        trial.keep(self.store, prospect)

    def verify(self, prospect: Prospect, outcomes: list[Outcome]) -> list[Outcome]:
        """Look again: what is still to be done failed, whatever the kernel answered."""
        done = {outcome.operation.object for outcome in outcomes}
        broken = {outcome.operation.object for outcome in outcomes if outcome.error}
        files = {outcome.operation.object: outcome.operation.netns for outcome in outcomes}
        observed = self.observe(prospect.spec, touched=files if len(done) <= FEW else None)
        left = plan(
            prospect.desired,
            observed,
            Scene(
                declared={name: c.mode for name, c in prospect.spec.containers.items()},
                networks=frozenset(prospect.spec.networks),
                busy=busy_in(observed),
                keep="verifying",
            ),
            Options(only=frozenset(done)),
        )
        wrong = [
            Outcome(op, f"still to be done after the change: {op.describe()}")
            for op in left.operations
            if op.object in done and op.object not in broken
        ]
        self.seal(prospect, observed, done - {outcome.operation.object for outcome in wrong}, left)
        return wrong

    def seal(
        self, prospect: Prospect, observed: Observed, objects: Collection[str], found: Plan
    ) -> None:
        """Write down which of these are as wanted, so that the next pass need not look closer."""
        old = self.record.seals()
        fine = [
            name.partition("/")[2]
            for name in objects
            if name.startswith("container/") and found.states.get(name) == "ok"
        ]
        gone = old.keys() - prospect.desired.members.keys()
        self.record.note_seals(fresh_seals(prospect.desired, observed, fine, old), gone)


@contextlib.contextmanager
def opened(settings: Settings, *, change: bool) -> Iterator[tuple[Store, Record]]:
    """The state and run dirs, under the lock where something is to be changed."""
    with contextlib.ExitStack() as stack:
        if change:
            stack.enter_context(
                lock.hold(
                    settings.run_dir,
                    settings.state_dir,
                    timeout_s=settings.lock_timeout_s,
                )
            )
        store = Store.open(settings.state_dir, read_only=not change)
        stack.callback(store.close)
        trial.settle(store, settings.config_dirs)
        record = Record.open(settings.run_dir, cookie=rtnl.cookie(), read_only=not change)
        stack.callback(record.close)
        yield store, record


def reconcile(
    settings: Settings,
    *,
    dry_run: bool = False,
    only: frozenset[str] | None = None,
    stop: Callable[[], bool] = lambda: False,
    begin: Callable[[int], Callable[[int], None]] = lambda total: lambda count: None,
    first: Callable[[Store], None] = lambda store: None,
    decide: Callable[[Store, Prospect], None] = lambda store, prospect: None,
) -> Report:
    """One pass. `begin` is told how many operations there are and answers with a progress callback.

    `first` and `decide` are called inside its transaction, before anything is read and before the
    kernel is changed; where one raises Declined, nothing is changed and the plan is the report.

    Raises LockedError, StoreError and ObjectError for what stops the whole pass.
    """
    started = time.monotonic()
    with opened(settings, change=not dry_run) as (store, record):
        one = Pass(settings, store=store, record=record, changing=not dry_run, only=only, stop=stop)
        try:
            with store.transaction():
                first(store)
                old = store.book()
                prospect = one.prospect()
                if dry_run:
                    raise Declined
                one.keep_books(prospect, old)
                decide(store, prospect)
        except Declined:
            done = [Done(operation=op, ok=None) for op in prospect.operations]
            return _report(prospect, done, started, dry=True)
        one.prune(prospect.spec, prospect.observed)
        total = len(prospect.operations)
        one.progress = begin(total)
        outcomes = one.carry_out(prospect)
        if outcomes and not stop():
            outcomes += one.verify(prospect, outcomes)
        elif not outcomes:
            one.seal(prospect, prospect.observed, prospect.plan.states, prospect.plan)
        if only is None and not prospect.declared.keep:
            prospect.attached.sweep(
                set(prospect.spec.containers) | set(prospect.observed.containers)
            )
        done = [Done(operation=o.operation, ok=o.error is None, error=o.error) for o in outcomes]
        return _report(prospect, done, started, dry=False, stopped=len(outcomes) < total)


def _report(
    prospect: Prospect,
    done: list[Done],
    started: float,
    *,
    dry: bool,
    stopped: bool = False,
) -> Report:
    declared = {f"network/{name}" for name in prospect.spec.networks}
    declared |= {f"container/{name}" for name in prospect.spec.containers}
    return Report(
        operations=tuple(done),
        problems=prospect.problems,
        held=held_once(prospect.plan.held),
        rejections=prospect.rejections,
        notes=tuple(dict.fromkeys([*prospect.notes, *prospect.wall.notes])),
        declared=frozenset(declared),
        duration_s=time.monotonic() - started,
        dry=dry,
        stopped=stopped,
    )
