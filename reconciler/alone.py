"""A small pass in a process of its own: what a daemon's small pass knows from the passes before it, this
one looks up, in the index of the run dir and in the books. Where that does not do, it raises Widen."""

import _socket as socket
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from reconciler.attachment import Attachments, renew_hosts
from reconciler.core.amend import containers_of
from reconciler.core.desired import with_members
from reconciler.core.errors import FirewallError
from reconciler.core.known import claims_of, fits
from reconciler.core.leases import Assignment, Book, Key, assign, is_usable
from reconciler.core.memory import Grown, Memory
from reconciler.core.model import FORWARDING, Address, Container, Loaded, Network, Range, Spec
from reconciler.core.observed import Observed
from reconciler.core.ops import Operation
from reconciler.core.policy import Publication, Sender
from reconciler.core.tree import Tree
from reconciler.core.wanted import Desired, Member
from reconciler.declared import Declared
from reconciler.host.apply import SPARE, Outcome
from reconciler.host.index import Index, Known
from reconciler.host.record import Record
from reconciler.host.store import Store
from reconciler.localnet import Localnet
from reconciler.part import Part, Widen
from reconciler.prospect import Prospect, Settings
from reconciler.wall import senders

if TYPE_CHECKING:
    from reconciler.core.resolver import Hosts

BOTH = frozenset(FORWARDING)


class Edit(msgspec.Struct, frozen=True):
    """What a container's own file is to say."""

    file: str
    content: bytes | None
    tree: Tree | None


class Glimpse:
    """What a small pass must know of everything else (see `Surroundings`), looked up."""

    def __init__(
        self,
        known: Known,
        index: Index,
        store: Store,
        record: Record,
        names: frozenset[str],
        edits: Mapping[str, Edit],
    ) -> None:
        """`names`: the containers that are concerned. Raises Widen."""
        self._index, self._store = index, store
        self.networks: Desired = known.resolved
        self.before = index.containers(names)
        for name in names - self.before.keys() - edits.keys():
            raise Widen(f"{name} is not declared")
        self.fresh = {
            name: fresh
            for name, edit in edits.items()
            if (fresh := self._judged(name, edit, known.networks)) is not None
        }
        changed = edits.keys() & self.before.keys()
        if index.joiners(changed):
            raise Widen("somebody lives in the namespace of a container that changes")
        now = {**{n: c for n, c in self.before.items() if n not in edits}, **self.fresh}
        joined = {c.join for c in now.values() if c.join} - now.keys()
        now |= index.containers(joined)
        contents = {e.file: e.content for e in edits.values() if e.content is not None}
        loaded = Loaded(
            spec=Spec(networks=known.networks, containers=now),
            rejections=(),
            accepted=frozenset(contents),
            remembered=frozenset(),
            lost=frozenset(),
            waiting={},
        )
        said = store.remembered([e.file for e in edits.values()]) if edits else {}
        self.declared = Declared(
            loaded=loaded,
            contents=contents,
            times=dict.fromkeys(contents, time.time_ns()),
            rest={},
            grown=Grown({}, frozenset()),
            memory=Memory(said, {}),
        )
        held = store.leases([*now.keys(), *names])
        self.book = Book(held=held, freed={}, serial=store.serial())
        self.held = dict(held)
        """Leases as they were before."""
        self.top = _free_above(record.last_end(), sum(len(c.interfaces) for c in now.values()))

    def _judged(self, name: str, edit: Edit, networks: dict[str, Network]) -> Container | None:
        """What is declared by an edit; None: nothing. Raises Widen where that needs a closer look."""
        old = self.before.get(name)
        if old is not None:
            here = old.place.file == edit.file and self._index.declared_in(edit.file) == {name}
            if not here:
                raise Widen(f"{name} is declared elsewhere")
        if edit.tree is None:
            if old is None:
                raise Widen(f"{name} is not declared")
            return None
        found = containers_of(edit.tree, networks)
        fresh = (found or {}).get(name)
        if fresh is None or fresh.join or not self._fits(fresh, networks):
            raise Widen(f"{name} needs a closer look")
        return fresh

    def _fits(self, fresh: Container, networks: dict[str, Network]) -> bool:
        if self._index.holders(claims_of(fresh)) - {fresh.name}:
            return False
        near = {i.network for i in fresh.interfaces}
        counts = {name: self._index.count(name, [fresh.name]) for name in near}
        return fits(fresh, networks, counts)

    def container(self, name: str) -> Container | None:
        """See `World`."""
        return self.declared.loaded.spec.containers.get(name)

    def file(self, name: str) -> str:
        """The file of the netns dir at which a container was to be before."""
        old = self.before.get(name)
        return old.netns if old is not None and old.mode in ("network", "none") else ""

    def holder(self, container: Container) -> str | None:
        """Somebody else who has what this one is declared to have."""
        others = self._index.holders(claims_of(container)) - {container.name}
        return min(others, default=None)

    def member(self, name: str, machine: str) -> Member | None:
        """A container as it was to be before."""
        old = self.before.get(name)
        if old is None:
            return None
        spec = Spec(networks=self.declared.loaded.spec.networks, containers={name: old})
        return with_members(self.networks, spec, self.held, machine=machine).members.get(name)

    def publications(self, name: str) -> tuple[Publication, ...]:
        """The published ports that the rules lead to a container."""
        old = self.before.get(name)
        if old is None or not old.ports:
            return ()
        member = self.member(name, "")
        return member.publications if member is not None else ()

    @property
    def ledger(self) -> "Glimpse":
        """Leases are looked up as well."""
        return self

    def excerpt(self, names: Collection[str] | None) -> Book:
        """See `Ledger`; of what was freed, `Alone` looks up what it needs."""
        return self.book

    def lessee(self, network: str, address: Address) -> str | None:
        """See `Ledger`."""
        return self._store.leased(network, address.version).get(f"{address.value:x}")

    def assign(
        self,
        spec: Spec,
        excerpt: Book,
        *,
        standing: Mapping[Key, Address],
        busy: Callable[[str], bool],
        kept: Collection[str],
    ) -> tuple[Book, Assignment]:
        """As a look at everything would; only the addresses that are next are looked for."""
        wanted = Counter(
            (i.network, version)
            for c in spec.containers.values()
            for i in c.interfaces
            for version in i.automatic
        )
        near = {i.network for c in spec.containers.values() for i in c.interfaces}
        networks, freed = {}, dict(excerpt.freed)
        for network in (spec.networks[name] for name in near):
            ranges = []
            for version in (s.version for s in network.subnets):
                for value, serial in self._next(network, version, wanted[network.name, version]):
                    ranges.append(Range(version, value, value))
                    if serial:
                        freed[network.name, Address(version, value)] = serial
            networks[network.name] = msgspec.structs.replace(network, ranges=tuple(ranges))
        # What is taken out of the freed ones was among them.
        self.book = msgspec.structs.replace(excerpt, freed=freed)
        narrowed = Spec(networks=networks, containers=spec.containers)
        return self.book, assign(narrowed, self.book, standing=standing, busy=busy, kept=kept)

    def _next(self, network: Network, version: int, count: int) -> Iterator[tuple[int, int]]:
        """So many addresses that are next, each with the number of its last release (0: never used)."""
        if not count:
            return
        subnet = network.subnet(version)
        assert subnet is not None  # its version is that of a subnet
        held = self._store.leased(network.name, version)
        freed = self._store.freed(network.name, version)
        taken = {claim[2:] for claim in self.claimed(network.name) if claim[0] == str(version)}
        taken |= {f"{g.value:x}" for g in network.gateways if g.version == version}
        ranges = [r for r in network.ranges if r.version == version]
        for r in ranges:
            for value in range(r.first, r.last + 1):
                text = f"{value:x}"
                if text in held or text in freed or text in taken or not is_usable(subnet, value):
                    continue
                yield value, 0
                count -= 1
                if not count:
                    return
        for text, serial in freed.items():
            value = int(text, 16)
            inside = is_usable(subnet, value) and any(r.first <= value <= r.last for r in ranges)
            if inside and text not in held and text not in taken:
                yield value, serial
                count -= 1
                if not count:
                    return

    def hosts(self, addresses: Mapping[Key, Address]) -> "Callable[[], Hosts]":
        """See `World`."""
        return lambda: self._hosts(self.declared.loaded.spec.containers, addresses)

    def _hosts(self, whose: Mapping[str, Container], addresses: Mapping[Key, Address]) -> "Hosts":
        """Of all that is in the networks of these containers."""
        from reconciler.core.resolver import Hosts

        near = {i.network for c in whose.values() for i in c.interfaces}
        names = {name for network in near for name in self._index.members(network)}
        now = self.declared.loaded.spec.containers
        every = {**self._index.containers(names - self.before.keys()), **now}
        leases = {k: a for n in near for k, a in self._store.leases_in(n).items()}
        return Hosts(Spec(networks={}, containers=every), {**leases, **addresses})

    def renew_hosts(self, run_dir: str, addresses: Mapping[Key, Address]) -> None:
        """Bring the hosts files of their fellows up to date: of those they have and of those they had."""
        now = self.declared.loaded.spec.containers
        both = [*self.before.values(), *now.values()]
        near = {i.network for c in both for i in c.interfaces}
        names = {name for network in near for name in self._index.readers(network)}
        readers = self._index.containers(names - self.before.keys() - now.keys())
        if readers:
            renew_hosts(run_dir, self._hosts(readers, addresses), readers.values())

    def claimed(self, network: str) -> set[str]:
        """The addresses of a network that others declare or carry."""
        return self._index.claimed(network)


class Alone(Part):
    """A small pass by somebody who has seen nothing before."""

    world: Glimpse

    def __init__(
        self, settings: Settings, *, store: Store, record: Record, world: Glimpse, **more: Any
    ) -> None:
        super().__init__(
            settings,
            store=store,
            record=record,
            world=world,
            guarded=lambda: BOTH if settings.firewall == "none" else frozenset(),
            admit=self._admit,
            published=lambda name: tuple(sorted(world.publications(name), key=lambda p: p.rank)),
            publish=self._publish,
            **more,
        )

    def desire(self, spec: Spec, addresses: Mapping[Key, Address], observed: Observed) -> Desired:
        """As any small pass; but rules need a look at all of them."""
        found = super().desire(spec, addresses, observed)
        if self.ports:
            raise Widen(f"the published ports of {min(self.ports)} have changed")
        return found

    def _publish(self, names: Collection[str], wanted: Iterable[Publication]) -> Operation:
        raise FirewallError(f"the published ports of {min(names)} have changed")

    def after(self, prospect: Prospect) -> Prospect | None:
        """How things stand once all of it is carried out; None: that takes another look."""
        left = self.left
        if left is None or left.operations or prospect.plan.removals:
            return None
        return msgspec.structs.replace(
            prospect,
            observed=self.seen,
            plan=msgspec.structs.replace(left, states={**prospect.plan.states, **left.states}),
            local=Localnet(self.store),
            attached=Attachments(run_dir=self.settings.run_dir, netns_dir=self.settings.netns_dir),
            moves=(),
        )

    def carry_out(self, prospect: Prospect) -> list[Outcome]:
        """As any small pass; then, what these may no longer send from is refused."""
        outcomes = super().carry_out(prospect)
        if outcomes and self.settings.firewall != "none":
            members = [self.world.member(name, self.machine) for name in self.names]
            before = senders([m for m in members if m is not None], frozenset())
            now = senders(prospect.desired.members.values(), frozenset())
            if set(before) - set(now):
                from reconciler.host.firewall import nfnl, probe

                if probe.present(nfnl.BRIDGE):
                    from reconciler.host.firewall.nftables import Nftables

                    try:
                        Nftables().strike(before, now)
                    except FirewallError as error:
                        raise Widen(str(error)) from error
        return outcomes

    def _admit(self, members: Iterable[Member]) -> None:
        """Let them send from their addresses, where that is checked. Raises FirewallError."""
        found: tuple[Sender, ...] = senders(members, frozenset())
        if not found or self.settings.firewall == "none":
            return
        from reconciler.host.firewall import nfnl, probe

        if not probe.present(nfnl.BRIDGE):
            if probe.present():
                raise FirewallError("the table that checks what members send from is not there")
            return  # iptables cannot check it
        from reconciler.core.policy import Policy
        from reconciler.host.firewall.nftables import Nftables

        Nftables().admit(Policy(), found)


def _free_above(last: int, count: int) -> int:
    """A number above which so many link numbers are free, as far as one can tell: others may be making
    links at the same time."""
    top = last
    for _ in range(64):
        taken = [n for n in range(top + SPARE, top + SPARE + count + 2) if _is_link(n)]
        if not taken:
            return top
        top = taken[-1] + SPARE
    raise Widen("the host's link numbers are not known")


def _is_link(number: int) -> bool:
    try:
        socket.if_indextoname(number)
    except OSError:
        return False
    return True
