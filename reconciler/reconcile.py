"""One pass: load → desired → observe → plan → apply → look again → report."""

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from reconciler import trial
from reconciler.attachment import Attachments
from reconciler.books import digest_of, write_down
from reconciler.core import ops
from reconciler.core.desired import EVERY_GROUP, resolved, with_members
from reconciler.core.leases import Assignment, Book, Key, assign
from reconciler.core.model import Address, Spec
from reconciler.core.netplan import Options, Scene
from reconciler.core.observed import Observed
from reconciler.core.plan import Plan, plan
from reconciler.core.seal import settled
from reconciler.core.standing import standing_addresses, without
from reconciler.core.wanted import Desired
from reconciler.declared import Declared
from reconciler.hooked import Hooked
from reconciler.host import netns, userns
from reconciler.host.apply import Kernel, Outcome
from reconciler.host.creation import crowded
from reconciler.host.machine import machine_id
from reconciler.host.observe import Dumps, adopt, busy_in
from reconciler.host.record import Record
from reconciler.host.store import Store
from reconciler.localnet import Localnet
from reconciler.looking import begun, sysctls_of
from reconciler.prospect import Prospect, Settings, absent_sysctls, taking_away
from reconciler.settling import FEW, Settling
from reconciler.wall import Wall

if TYPE_CHECKING:  # a small pass needs none of these
    from reconciler.core.resolver import Hosts
    from reconciler.host.ahead import Ahead
    from reconciler.host.derived import Derived
    from reconciler.host.fresh import Fresh
    from reconciler.load import Shelf

READS = 5
"""How often files that keep changing are read again before what they no longer declare is kept."""


class Pass(Settling):
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
        shelf: "Shelf | None" = None,
        looking: Callable[[Collection[str] | None], None] | None = None,
        ahead: "Ahead[Dumps] | None" = None,
    ) -> None:
        """`looking` is called just before each look at the kernel, with the objects that are looked at
        (None: all of the pass): what was heard of them up to then is seen. Where nobody listens,
        what is made is looked at while the rest is being made. `ahead`: the first look, begun."""
        self.settings = settings
        self.store = store
        self.record = record
        self.only = only
        self.stop = stop
        self._shelf = shelf
        self.listening = looking is not None
        self.looking = looking or (lambda objects: None)
        self.progress: Callable[[int], None] = lambda count: None
        self.changing = changing
        self.machine = machine_id()
        self.groups = userns.groups() or EVERY_GROUP
        self.yielding = False  # see Policy
        self.hooked = Hooked(store, machine=self.machine)
        self.going: frozenset[str] = frozenset()
        """Objects that somebody has asked to go by name: they go if nobody declares them."""
        self.forced: frozenset[str] = frozenset()
        """Containers that go, when they go, also while they are in use."""
        self.above = 0
        """Link numbers up to this one are known to be taken."""
        self.left: Plan | None = None
        self._ahead = ahead
        self._derived: Derived | None = None
        self._fresh: Fresh | None = None

    @property
    def shelf(self) -> "Shelf":
        """The definition files."""
        if self._shelf is None:
            from reconciler.load import Shelf

            self._shelf = Shelf(self.settings.config_dirs)
        return self._shelf

    # -- reading ----------------------------------------------------------------------------

    def prospect(self) -> Prospect:
        """Read files and kernel and decide what is to be done; wait for files that are in motion."""
        for reads in range(READS):
            result = self.look()
            restless_s = result.declared.restless_s
            expected = trial.expected(self.store, result.declared) | self.going
            if not restless_s or not taking_away(result.plan) - expected - self.hooked.going:
                return result
            if reads == READS - 1:
                break
            time.sleep(min(restless_s, 1.0))
        return self.look(restless="the files keep changing; the next pass looks again")

    def look(self, *, restless: str = "") -> Prospect:
        """As `prospect`, but without waiting; `restless` says why nothing undeclared may be removed."""
        settings = self.settings
        declared, spec, book = self.read()
        wall = self.wall()
        if self.changing and declared.news and any(c.ports for c in spec.containers.values()):
            wall.stand_by(wanted=True)
        seals = self.record.seals(self.names)
        observed = self.observe(spec)
        if not self.record.present and self.changing:
            adopt(self.record, observed, netns_dir=settings.netns_dir)
        if self.hooked.settle(spec, observed, lambda: self.wall().published(observed.containers)):
            declared, spec = self.read_again()
        busy = busy_in(observed)
        kept = set(observed.containers) | set(declared.loaded.waiting)
        kept |= declared.loaded.orphans.keys()
        if restless or declared.keep:
            kept |= {key.container for key in book.held}
        kept -= self.hooked.gone.keys()
        assignment = self.assign(spec, book, observed, kept, lambda name: bool(busy(name)))
        refused = assignment.rejections + absent_sysctls(spec)
        usable = without(spec, refused, assignment.problems)
        desired = self.desire(usable, assignment.addresses, observed)
        modes = {name: c.mode for name, c in spec.containers.items()}
        unjudged = {**declared.loaded.waiting, **declared.loaded.orphans}
        modes |= {name: "network" for name in unjudged if name not in modes}
        scene = Scene(
            declared=modes,
            networks=frozenset(spec.networks),
            busy=busy,
            settled=settled(desired, observed, seals),
            keep=restless or declared.keep,
            expected=trial.expected(self.store, declared) | self.going | self.hooked.going,
            forced=self.forced.union(self.hooked.gone),
            freed=self.hooked.freed(book),
        )
        options = Options(
            max_removals=settings.max_removals,
            no_interrupt=settings.no_interrupt,
            # What has ended goes at once, whatever else is looked at: nobody else has heard of it.
            only=None if self.only is None else self.only | self.hooked.going,
        )
        decided = plan(desired, observed, scene, options)
        problems = {name: list(texts) for name, texts in decided.problems.items()}
        for name, text in {**assignment.problems, **unjudged}.items():
            problems.setdefault(f"container/{name}", []).append(text)
        wall.look(desired, decided, scene, observed)
        if wall.problem:
            problems.setdefault("firewall", []).append(wall.problem)
        attached = Attachments(run_dir=settings.run_dir, netns_dir=settings.netns_dir)
        attached.look(usable, self.hosts(usable, assignment), only=self.only)
        for name, text in attached.problems:
            problems.setdefault(name, []).append(text)
        for name, text in wall.refused.items():
            problems.setdefault(name, []).append(text)
        local = Localnet(self.store)
        if settings.firewall != "none":
            gone = self.hooked.gone or self.going
            whole = self.names is None and (self.only is None or bool(gone))
            kept = {whose.partition("/")[0] for whose in wall.policy.kept_ports}
            going = {o.object.partition("/")[2] for o in decided.removals if o.action == "remove"}
            kept |= wall.policy.kept
            published = wall.policy.publications
            local.look(desired, published, observed, whole=whole, kept=kept, going=going)
        return Prospect(
            declared=declared,
            spec=spec,
            observed=observed,
            desired=desired,
            assignment=assignment,
            plan=decided,
            wall=wall,
            local=local,
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

    # What a pass over a few containers does in another way (`part.py`).

    def read(self) -> tuple[Declared, Spec, Book]:
        """What is declared, as far as it is looked at, and the leases; dumping begins meanwhile."""
        self.looking(None)
        if self._ahead is None:
            met = self.hooked.met.values()
            self._ahead = begun(self.settings, self.store, self.record, met)
        # Who stays looks at everything now and then, and would hold it twice meanwhile.
        if self._derived is None and not self.listening:
            from reconciler.host.derived import Derived

            self._derived = Derived(self.settings.run_dir)
        declared, spec = self.read_again()
        if self._derived is not None:
            self._derived.load(spec)
        return declared, spec, self.store.book()

    def read_again(self) -> tuple[Declared, Spec]:
        """What is declared and attached now."""
        memory, doubts = self.store.memory(), self.store.trials.doubts()
        declared = self.shelf.read(memory, doubts, self.hooked.known)
        return declared, declared.loaded.spec

    def assign(
        self,
        spec: Spec,
        book: Book,
        observed: Observed,
        kept: Collection[str],
        busy: Callable[[str], bool],
    ) -> Assignment:
        """Hand out addresses."""
        standing = standing_addresses(observed, spec, book, but=self.hooked.gone)
        return assign(spec, book, standing=standing, busy=busy, kept=kept)

    def desire(self, spec: Spec, addresses: Mapping[Key, Address], observed: Observed) -> Desired:
        """What the kernel is to hold."""
        machine, groups = self.machine, self.groups
        networks = resolved(spec, machine=machine, host=observed.host)
        if self._derived is None:
            return with_members(networks, spec, addresses, machine=machine, groups=groups)
        return self._derived.members(
            networks, spec, addresses, machine=machine, groups=groups, keep=self.changing
        )

    def wall(self) -> Wall:
        """The firewall's part."""
        return Wall(
            self.settings.firewall,
            self.store,
            patience_s=self.settings.firewall_patience_s,
            yielding=self.yielding,
        )

    def hosts(self, spec: Spec, assignment: Assignment) -> "Callable[[], Hosts]":
        """Where the text of hosts files comes from, if it is needed."""

        def made() -> "Hosts":
            from reconciler.core.resolver import Hosts

            return Hosts(spec, assignment.addresses)

        return made

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
        if prospect.wall.operation is not None:
            prospect.wall.stand_by(wanted=True)
        if decided.creations or decided.repairs:
            netns.prepare(self.settings.netns_dir)
        kernel = Kernel(
            netns_dir=self.settings.netns_dir,
            record=self.record,
            links=prospect.observed.host.links,
            ipv6=prospect.observed.ipv6,
            above=self.above,
            cookies={
                seen.source: seen.space.cookie
                for seen in prospect.observed.containers.values()
                if seen.space is not None
            },
            stop=self.stop,
        )
        kernel.finish_removals()
        run(kernel.perform(prospect.local.off))
        prospect.local.forget()
        run(kernel.remove(decided.removals))
        crowds = crowded(decided.creations)
        run(kernel.perform(decided.networks, crowded=crowds))
        try:
            guarded = prospect.wall.raise_(
                prospect.observed, lambda op, error: run([Outcome(op, error)])
            )
            if guarded:
                run(kernel.perform(decided.host))
            else:
                text = "not set: the firewall, and with it the router guard, is not in place"
                run(Outcome(op, text) for op in decided.host)
            if crowds and len(decided.creations) > FEW and not self.listening:
                from reconciler.host.fresh import Fresh

                self._fresh = Fresh(
                    self.settings.netns_dir, sysctls_of(prospect.spec), key=self.record.key
                )
            run(kernel.create(decided.creations, self._fresh.look if self._fresh else _ignore))
        finally:
            outcomes += kernel.raise_bridges()
        if not self.stop():
            run(kernel.perform(decided.repairs))
        if not self.stop() and prospect.wall.raised:
            prospect.local.note()
            run(kernel.perform(prospect.local.on))
        if not self.stop():
            run(prospect.attached.carry_out(prospect.attached.operations))
            run(kernel.perform(decided.last))
        return outcomes

    def settle(self, prospect: Prospect) -> list[Outcome]:
        """Carry everything out, look again, and write down what is as wanted."""
        self.prune(prospect.spec, prospect.observed)
        self.tidy(prospect.declared.loaded.spec, prospect.observed)
        outcomes = self.carry_out(prospect)
        if outcomes and not self.stop():
            outcomes += self.verify(prospect, outcomes)
        elif not outcomes:
            self.seal(prospect, prospect.observed, prospect.plan.states, prospect.plan)
        self.hooked.clear(self.settings.run_dir)
        if self.only is None:
            self.record.note_resolved(digest_of(prospect.desired))
        if self.only is None and not prospect.declared.keep:
            prospect.attached.sweep(
                set(prospect.spec.containers) | set(prospect.observed.containers)
            )
        return outcomes

    def keep_books(self, prospect: Prospect, old: Book) -> None:
        """Write leases and the content of good files; before the kernel is changed."""
        declared = prospect.declared
        loaded = declared.loaded
        self.store.save_book(old, prospect.assignment.book)
        self.store.settle(declared.grown)
        spec = loaded.spec
        gone = set(declared.memory.said) - loaded.accepted - loaded.remembered - loaded.lost
        if not (spec.networks or spec.containers):
            gone = set()
        write_down(self.store, declared, declared.memory, loaded.accepted, forget=gone)
        trial.keep(self.store, prospect)


def _ignore(files: Sequence[str]) -> None:
    """Nobody looks before all is done."""
