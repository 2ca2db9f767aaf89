"""A pass over a few containers: it costs what it touches, however many others stand beside them.

The same steps as a whole pass (`reconcile.py`); what concerns the others is taken from what the last
whole pass has found out. Where that does not suffice, it raises Widen. It takes no container and no
network away: whether they may go, only a look at everything can tell.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from reconciler.core.desired import with_members
from reconciler.core.errors import FirewallError
from reconciler.core.hostview import in_the_way
from reconciler.core.leases import Assignment, Book, Key
from reconciler.core.model import FORWARDING, Address, Container, Spec
from reconciler.core.observed import Observed
from reconciler.core.ops import MakeContainer, Operation, SetSysctl
from reconciler.core.policy import Publication
from reconciler.core.standing import standing_addresses
from reconciler.core.wanted import Desired, Member
from reconciler.declared import Declared
from reconciler.hooked import Hooked
from reconciler.host.apply import Outcome
from reconciler.host.rtnl import routes_to
from reconciler.prospect import Prospect
from reconciler.reconcile import Pass
from reconciler.settling import FEW
from reconciler.wall import Wall

if TYPE_CHECKING:  # a protocol takes time to make
    from typing import Protocol

    from reconciler.core.resolver import Hosts

    class Leases(Protocol):
        """What a small pass must know of other containers' addresses; see `Ledger`."""

        def excerpt(self, names: Collection[str] | None) -> Book: ...
        def lessee(self, network: str, address: Address) -> str | None: ...
        def assign(
            self,
            spec: Spec,
            excerpt: Book,
            *,
            standing: Mapping[Key, Address],
            busy: Callable[[str], bool],
            kept: Collection[str],
        ) -> tuple[Book, Assignment]: ...

    class Surroundings(Protocol):
        """What a small pass must know of everything else; see `World`."""

        declared: Declared
        networks: Desired
        top: int

        @property
        def ledger(self) -> Leases: ...

        def container(self, name: str) -> Container | None: ...
        def file(self, name: str) -> str: ...
        def holder(self, container: Container) -> str | None: ...
        def hosts(self, addresses: Mapping[Key, Address]) -> Callable[[], Hosts]: ...


GOING = 3
"""So many that are no longer declared are looked at; where more are, a look at everything is due."""


class Widen(Exception):  # noqa: N818 - no error: it asks for a whole pass
    """Why a look at a few containers is not enough."""


class Part(Pass):
    """A pass over the containers and networks of `only`, and over whom these containers join."""

    def __init__(
        self,
        *words: Any,
        world: "Surroundings",
        only: frozenset[str],
        guarded: Callable[[], frozenset[int]],
        admit: Callable[[Iterable[Member]], None],
        published: Callable[[str], tuple[Publication, ...]],
        publish: Callable[[Collection[str], Iterable[Publication]], Operation],
        **more: Any,
    ) -> None:
        """`guarded`: the IP versions that may be forwarded, as far as the firewall goes;
        `admit`: lets containers send from their addresses, or raises FirewallError; `published`: the
        host ports that lead to a container now; `publish`: has them lead elsewhere, or raises
        FirewallError."""
        only |= {
            f"container/{c.join}"
            for name in only
            if name.startswith("container/")
            and (c := world.container(name.partition("/")[2])) is not None
            and c.join
        }
        super().__init__(*words, changing=True, only=only, **more)
        self.world = world
        self.guarded = guarded
        self.admit = admit
        self.published = published
        self.publish = publish
        self.ports: dict[str, tuple[Publication, ...]] = {}
        """Containers whose host ports lead elsewhere from now on."""
        self.above = world.top
        self._looked = False
        self.names: frozenset[str] = frozenset(
            name.partition("/")[2] for name in only if name.startswith("container/")
        )
        self.hooked = Hooked(self.store, machine=self.machine, names=self.names)
        if len(self.names) > FEW:
            raise Widen(f"{len(self.names)} containers are concerned")

    def read(self) -> tuple[Declared, Spec, Book]:
        """What these containers are to be."""
        declared = self.world.declared
        spec = declared.loaded.spec
        gone = self.names - spec.containers.keys()
        if len(gone) > GOING:
            raise Widen(f"{len(gone)} containers are no longer declared")
        if not self.record.present:
            raise Widen("the record in the run dir is lost")
        # In the order of the files: it decides who gets which address.
        some = {n: c for n, c in spec.containers.items() if n in self.names}
        for container in some.values():
            other = self.world.holder(container)
            if other is not None and other not in self.names:
                raise Widen(f"{container.name} wants what {other} has")
        self.book = self.world.ledger.excerpt(self.names)
        return declared, Spec(networks=spec.networks, containers=some), self.book

    def read_again(self) -> tuple[Declared, Spec]:
        """What hooks attached has come or gone by itself."""
        raise Widen("an attachment is over, or was found again")

    def look(self, *, restless: str = "") -> Prospect:
        """As that of a whole pass; Widen, where it would take something away."""
        found = super().look(restless=restless)
        going = [
            op.object
            for op in found.operations
            if op.action == "remove" and op.object not in self.hooked.going | self.going
        ]
        if going and not found.declared.restless_s:
            raise Widen(f"{going[0]} is to go")
        for name in self.names - found.spec.containers.keys() - found.observed.containers.keys():
            if self.world.file(name) and not self._looked:
                raise Widen(f"what is left of {name} may be anywhere")
        self._looked = True
        names = {op.name for op in found.plan.host if isinstance(op, SetSysctl)}
        versions = {version for version, name in FORWARDING.items() if name in names}
        if versions - self.guarded():
            raise Widen("the host is to forward, and the router guard does not stand")
        if found.local.on and not self.ports:
            raise Widen("packets from the loopback are to be let through, which rules must guard")
        return found

    def observe(self, spec: Spec, *, touched: Mapping[str, str] | None = None) -> Observed:
        """These containers and the networks that they are in."""
        scope = {name: "" for name in self.only or () if name.startswith("network/")}
        for name in self.names:
            scope[f"container/{name}"] = self.world.file(name)
        return super().observe(spec, touched={**scope, **(touched or {})})

    def assign(
        self,
        spec: Spec,
        book: Book,
        observed: Observed,
        kept: Collection[str],
        busy: Callable[[str], bool],
    ) -> Assignment:
        """Leases of these containers; everybody else's stay as they are."""
        wanted = {
            Key(c.name, i.network, i.name, version)
            for c in spec.containers.values()
            for i in c.interfaces
            for version in i.automatic
        }
        interfaces = [i for c in spec.containers.values() for i in c.interfaces]
        if book.held.keys() == wanted and not any(i.addresses for i in interfaces):
            addresses = dict(book.held)
            return Assignment(addresses=addresses, book=book, moves=(), problems={}, rejections=())
        ledger = self.world.ledger
        for interface in interfaces:
            for address in interface.addresses:
                if ledger.lessee(interface.network, address) not in (None, *self.names):
                    raise Widen("a declared address is held by another container's lease")
        standing = standing_addresses(observed, spec, book, but=self.hooked.gone)
        self.book, found = ledger.assign(spec, book, standing=standing, busy=busy, kept=kept)
        return found

    def desire(self, spec: Spec, addresses: Mapping[Key, Address], observed: Observed) -> Desired:
        """These containers, in networks as the last whole pass resolved them."""
        whole = self.world.networks
        near = {i.network for c in spec.containers.values() for i in c.interfaces}
        near |= {n.partition("/")[2] for n in self.only or () if n.startswith("network/")}
        absent = near - whole.bridges.keys() - whole.routed.keys()
        if absent & spec.networks.keys():
            raise Widen(f"network {min(absent)} is not resolved yet")
        networks = msgspec.structs.replace(
            whole,
            bridges={n: b for n, b in whole.bridges.items() if n in near},
            routed={n: r for n, r in whole.routed.items() if n in near},
            problems={n: t for n, t in whole.problems.items() if n.partition("/")[2] in near},
        )
        lost = networks.bridges.keys() - observed.bridges.keys()
        if any(not networks.bridges[name].external for name in lost):
            raise Widen(f"the bridge of network {min(lost)} is not there")
        desired = with_members(networks, spec, addresses, machine=self.machine, groups=self.groups)
        members = desired.members.values()
        to = [
            Address(r.to.version, r.to.value)
            for m in members
            for e in m.endpoints
            for r in e.routes
        ]
        for route in routes_to(to) if to else ():
            # Of the host's routes only those through links of ours were looked at.
            if route is not None and in_the_way(route):
                raise Widen(f"the host's route to {route.to} is not runcnet's")
        for name in self.names:
            member = desired.members.get(name)
            wanted = member.publications if member is not None else ()
            if sorted(wanted, key=lambda one: one.rank) != list(self.published(name)):
                self.ports[name] = wanted
        return desired

    def carry_out(self, prospect: Prospect) -> list[Outcome]:
        """As a whole pass; addresses are let through before they are given, and ports before they are
        answered."""
        published = []
        try:
            if prospect.operations:
                self.admit(prospect.desired.members.values())
            if self.ports:
                wanted = [one for several in self.ports.values() for one in several]
                published = [Outcome(self.publish(self.ports.keys(), wanted), None)]
        except FirewallError as error:
            raise Widen(str(error)) from error
        return published + super().carry_out(prospect)

    def wall(self) -> Wall:
        """Rules are the same for everybody: a whole pass looks after them."""
        return Wall("none", self.store, serving=False)

    def hosts(self, spec: Spec, assignment: Assignment) -> "Callable[[], Hosts]":
        """Hosts files name everybody."""
        return self.world.hosts(assignment.addresses)


def stuck(prospect: Prospect, outcomes: Collection[Outcome]) -> bool:
    """Whether a container could not be made while something of it is there: what holds it may be
    another link of the host, of which only a look at everything knows."""
    return any(
        o.error and isinstance(o.operation, MakeContainer)
        and o.operation.member.name in prospect.observed.containers
        for o in outcomes
    )  # fmt: skip
