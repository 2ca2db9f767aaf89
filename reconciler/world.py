"""What the daemon knows between passes: what is declared, who has which address, what stands where.

None of it decides what is changed: a pass looks at the kernel anew. It says where to look when
something is heard, and spares a small pass the reading of everything else.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import TypeVar

import msgspec

from reconciler.core.agenda import ALL
from reconciler.core.leases import Key
from reconciler.core.ledger import Ledger
from reconciler.core.model import PROTOCOL, Address, Container
from reconciler.core.observed import LOOPBACK, Observed, SeenContainer
from reconciler.core.resolver import Hosts
from reconciler.core.wanted import Desired
from reconciler.declared import Declared
from reconciler.host import events
from reconciler.host.events import Event, nsid
from reconciler.prospect import Prospect

ABOUT_LINKS = (
    events.NEW_LINK, events.DEL_LINK, events.NEW_ADDRESS, events.DEL_ADDRESS
)  # fmt: skip
ABOUT_ROUTES = (events.NEW_ROUTE, events.DEL_ROUTE)
ABOUT_NEIGHBOURS = (events.NEW_NEIGHBOUR, events.DEL_NEIGHBOUR)


T = TypeVar("T")
Claim = tuple[str, object]
"""A kind of thing that one container alone can have, and which."""


class Spot(msgspec.Struct, frozen=True):
    """Where a container is found."""

    file: str
    """Of the netns dir; empty: its path was unmounted."""
    ends: tuple[int, ...]
    """Its host ends, by number."""
    nsid: int | None
    holds: tuple[tuple[int, int], ...]
    """Its addresses: IP version and value."""
    sysctls: tuple[tuple[str, str], ...]
    """As they are wanted."""
    claims: tuple[Claim, ...] = ()
    """What nobody else may have while it stands."""


class World:
    """Kept by the daemon's loop, one thread."""

    def __init__(self, first: Prospect) -> None:
        self.declared: Declared = first.declared
        self.ledger = Ledger(first.assignment.book)
        self.networks: Desired = first.desired
        """Networks as the last whole pass resolved them."""
        self.addresses: dict[Key, Address] = {}
        self.spots: dict[str, Spot] = {}
        self.states: dict[str, str] = {}
        """Object → ok, missing, differs, foreign, failed or held."""
        self.top = 0
        """The highest ifindex that was heard of."""
        self._by_end: dict[int, str] = {}
        self._by_nsid: dict[int, str] = {}
        self._by_file: dict[str, str] = {}
        self._by_address: dict[tuple[int, int], str] = {}
        self._by_claim: dict[Claim, str] = {}
        self._bridges: dict[int, str] = {}
        self._others: set[str] = set()
        """Links of others that matter to us: uplinks, bridges that are external or in the way."""
        self._ways_out: set[int] = set()
        """Links with a default route, whose MTU networks may follow."""

    # -- learning -----------------------------------------------------------------------------

    def learn(self, prospect: Prospect, seen: Observed, names: Collection[str] | None) -> None:
        """Take over what a pass found out about these containers (None: about everything)."""
        self.declared = prospect.declared
        if names is None:
            if not self.ledger.says(prospect.assignment.book):
                self.ledger = Ledger(prospect.assignment.book)
            self.ledger.give(prospect.spec.containers.values())
            self.networks = prospect.desired
            self.addresses = dict(prospect.assignment.addresses)
            self.states = {}
            for table in (
                self.spots, self._bridges,
                self._by_end, self._by_nsid, self._by_file, self._by_address, self._by_claim,
            ):  # fmt: skip
                table.clear()
            self._learn_networks(prospect, seen)
            names = {*prospect.spec.containers, *seen.containers}
        else:
            gone = {key for key in self.addresses if key.container in names}
            for key in gone - prospect.assignment.addresses.keys():
                del self.addresses[key]
            self.addresses.update(prospect.assignment.addresses)
            for name in names:
                self.states.pop(f"container/{name}", None)
        self._learn_bridges(seen)
        self.top = max([self.top, *(link.index for link in seen.host.links)])
        for name in names:
            self._place(name, self._spot(name, prospect, seen))

    def _learn_networks(self, prospect: Prospect, seen: Observed) -> None:
        declared = prospect.spec.networks.values()
        self._others = {name for network in declared for name in network.uplinks}
        self._others |= {network.bridge for network in declared if network.bridge}
        self._ways_out = {r.index for r in seen.host.routes if not r.to.prefix and r.table == 254}

    def _learn_bridges(self, seen: Observed) -> None:
        """Those that were looked at: a pass that makes some sees them in its second look."""
        gone = [index for index, network in self._bridges.items() if network in seen.bridges]
        for index in gone:
            del self._bridges[index]
        self._bridges |= {link.index: network for network, link in seen.bridges.items()}

    def container_states(self) -> Counter[str]:
        """How many containers are in each state."""
        return Counter(s for name, s in self.states.items() if name.startswith("container/"))

    def _spot(self, name: str, prospect: Prospect, seen: Observed) -> Spot | None:
        member = prospect.desired.members.get(name)
        found = seen.containers.get(name)
        if member is None and found is None:
            return None
        number = None
        if found is not None:
            number = next((e.host.peer_nsid for e in found.ends if e.host.peer_nsid >= 0), None)
            if number is None and found.source:
                number = nsid(found.source)  # without a veth nobody has given it one
        holds = [a for e in member.endpoints for a in e.addresses] if member else []
        claims: list[Claim] = []
        for endpoint in member.endpoints if member else ():
            claims += [("mac", endpoint.mac), ("link", endpoint.host_name)]
        if found is not None and prospect.plan.states.get(f"container/{name}") != "ok":
            # Who is no longer declared, or is so in another way, has what it carries.
            claims += _carried(found)
        return Spot(
            file=found.netns if found is not None else "",
            ends=tuple(end.host.index for end in found.ends) if found is not None else (),
            nsid=number,
            holds=tuple((a.version, a.value) for a in holds if not a.is_link_local),
            sysctls=member.sysctls if member is not None and found is not None else (),
            claims=tuple(claims),
        )

    def _place(self, name: str, spot: Spot | None) -> None:
        old = self.spots.pop(name, None)
        if old is not None:
            for index in old.ends:
                _strike(self._by_end, index, name)
            for held in old.holds:
                _strike(self._by_address, held, name)
            for claim in old.claims:
                _strike(self._by_claim, claim, name)
            _strike(self._by_file, old.file, name)
            _strike(self._by_nsid, -1 if old.nsid is None else old.nsid, name)
        if spot is None:
            return
        self.spots[name] = spot
        self._by_end.update(dict.fromkeys(spot.ends, name))
        self._by_address.update(dict.fromkeys(spot.holds, name))
        self._by_claim.update(dict.fromkeys(spot.claims, name))
        if spot.file:
            self._by_file[spot.file] = name
        if spot.nsid is not None:
            self._by_nsid[spot.nsid] = name

    # -- what is heard --------------------------------------------------------------------------

    def concerned(self, heard: Iterable[Event]) -> Iterator[str]:
        """The objects that notifications are about; ALL: all of them."""
        for event in heard:
            name = self._concerned(event)
            if name:
                yield name

    def _concerned(self, event: Event) -> str:
        if event.nsid != events.HOST:
            return _object(self._by_nsid.get(event.nsid))
        kind, index = event.type, event.index
        if kind in ABOUT_LINKS:
            if kind == events.NEW_LINK:
                self.top = max(self.top, index)
            if event.name and event.name in self._others and index not in self._bridges:
                return ALL
            return self._behind(index) or (ALL if index in self._ways_out else "")
        if kind in ABOUT_ROUTES:
            if not event.prefix and index not in self._by_end:
                return ALL
            return self._behind(index) or _object(self._by_address.get(event.address))
        if kind in ABOUT_NEIGHBOURS and event.mac:
            # Whose it is, wherever it has been put: to tell the bridge anew takes it away from there.
            return _object(self._by_claim.get(("mac", event.mac))) or self._behind(index)
        if kind in ABOUT_NEIGHBOURS:
            return _object(self._by_address.get(event.address)) or self._behind(index)
        if kind == events.NEW_NETCONF:
            return "host"
        if kind == events.DEL_NSID:
            return _object(self._by_nsid.get(index))
        return ""

    def _behind(self, index: int) -> str:
        """Whose link that is."""
        if index in self._bridges:
            return f"network/{self._bridges[index]}"
        if index == LOOPBACK:
            # Somebody's address on `lo`: the gateways of routed networks stand there.
            return ALL if self.networks.routed else ""
        return _object(self._by_end.get(index))

    def behind_files(self, files: Iterable[str]) -> Iterator[str]:
        """The containers whose files of the netns dir these are, or are to be."""
        unknown = set()
        for file in files:
            name = self._by_file.get(file)
            if name is not None:
                yield f"container/{name}"
            else:
                unknown.add(file)
        if unknown:
            for container in self.declared.loaded.spec.containers.values():
                if container.netns in unknown and container.mode in ("network", "none"):
                    yield f"container/{container.name}"

    def holder(self, container: Container) -> str | None:
        """Another container that has something which this one is declared to have."""
        others = [self._by_file.get(container.netns)] if container.mode != "join" else []
        for interface in container.interfaces:
            for address in interface.addresses:
                others += [
                    self._by_address.get((address.version, address.value)),
                    self._by_claim.get(("address", address)),
                ]
            others.append(self._by_claim.get(("mac", interface.mac)))
            others.append(self._by_claim.get(("link", interface.host_interface)))
        return next((other for other in others if other not in (None, container.name)), None)

    def container(self, name: str) -> Container | None:
        """What is declared under that name."""
        return self.declared.loaded.spec.containers.get(name)

    def file(self, name: str) -> str:
        """The file of the netns dir at which a container was seen; empty: at none."""
        spot = self.spots.get(name)
        return spot.file if spot is not None else ""

    def hosts(self, addresses: Mapping[Key, Address]) -> Callable[[], Hosts]:
        """Where the text of hosts files comes from: they name everybody, with these addresses new."""
        return lambda: Hosts(self.declared.loaded.spec, {**self.addresses, **addresses})

    def declare(self, declared: Declared, objects: Collection[str]) -> None:
        """Files say something else now, and that of these containers alone."""
        names = [name.partition("/")[2] for name in objects]
        old, new = self.declared.loaded.spec, declared.loaded.spec
        self.ledger.change(names, old.containers, new.containers)
        self.declared = declared

    def differing(self, after: Declared) -> set[str] | None:
        """The objects that another declaration concerns; None: all."""
        one, other = self.declared.loaded, after.loaded
        if one is other:
            return set()
        faults = (one.rejections, one.waiting, one.stuck, one.lost, self.declared.keep)
        if faults != (other.rejections, other.waiting, other.stuck, other.lost, after.keep):
            return None
        if one.spec.networks != other.spec.networks:
            return None
        old, new = one.spec.containers, other.spec.containers
        # What has not been read again is the same object: to ask that first costs the least.
        names = old.keys() - new.keys()
        names |= {n for n, c in new.items() if (was := old.get(n)) is not c and _differ(was, c)}
        # Whoever lives in another's namespace follows it.
        names |= {c.name for c in new.values() if c.join in names}
        return {f"container/{name}" for name in names}


def _differ(one: Container | None, other: Container) -> bool:
    """Whether a container says something else, wherever it does; its networks being the same."""
    return one is None or _body(one) != _body(other)


def _body(container: Container) -> tuple[object, ...]:
    return container.shape, container.netns, container.bundle, container.ports


def _carried(found: SeenContainer) -> Iterator[Claim]:
    """What a container has that stands."""
    for row in found.space.addresses if found.space is not None else ():
        if row.protocol == PROTOCOL and not row.address.is_link_local:
            yield "address", row.address.address
    for end in found.ends:
        yield "link", end.host.name
        if end.inner is not None:
            yield "mac", end.inner.mac


def _object(name: str | None) -> str:
    return f"container/{name}" if name else ""


def _strike(table: dict[T, str], key: T, name: str) -> None:
    if table.get(key) == name:
        del table[key]
