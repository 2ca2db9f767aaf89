"""Automatic addresses: who holds which, and which is handed out next.

A lease belongs to (container, network, interface, IP version) and outlives everything but its
container. Never-used addresses go first, then the one freed longest ago.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import chain

import msgspec

from reconciler.core.model import (
    BITS,
    Address,
    Container,
    Interface,
    Network,
    Range,
    Rejection,
    Spec,
    Subnet,
)

Place = tuple[str, int]
"""A network and an IP version."""
NOBODY: Mapping[Place, Collection[int]] = {}


class Key(msgspec.Struct, frozen=True, order=True, array_like=True, gc=False):
    """What a lease belongs to."""

    container: str
    network: str
    interface: str
    version: int


class Book(msgspec.Struct, frozen=True, kw_only=True):
    """What the state dir holds about addresses."""

    held: dict[Key, Address]
    freed: dict[tuple[str, Address], int]
    """(network, address) → serial number of its release; a higher one was freed later."""
    serial: int = 0


class Move(msgspec.Struct, frozen=True):
    """A lease whose address changes, and why."""

    key: Key
    old: Address
    new: Address
    reason: str


class Assignment(msgspec.Struct, frozen=True, kw_only=True):
    """An address for every automatic interface that could be given one."""

    addresses: dict[Key, Address]
    book: Book
    moves: tuple[Move, ...]
    problems: dict[str, str]
    """Container → why it has no address."""
    rejections: tuple[Rejection, ...]
    """Declared addresses that the lease of a container in use holds."""


class _Pool:
    """The addresses of one network and IP version, and who has them."""

    def __init__(self, network: Network, version: int, freed: Mapping[int, int]):
        """`freed`: address → serial number of its release."""
        self.network = network
        self.subnet = network.subnet(version)
        self.ranges = [r for r in network.ranges if r.version == version]
        self.taken: set[int] = {g.value for g in network.gateways if g.version == version}
        self.freed = freed
        self.released: dict[int, None] = {}
        """What is freed just now, in that order."""
        self._fresh = self._never_used()
        self._again: Iterator[int] | None = None

    def usable(self, value: int) -> bool:
        """Whether a member may carry it at all."""
        return self.subnet is not None and is_usable(self.subnet, value)

    def offered(self, value: int) -> bool:
        return self.usable(value) and any(r.first <= value <= r.last for r in self.ranges)

    def _never_used(self) -> Iterator[int]:
        taken, freed, released = self.taken, self.freed, self.released
        for r in self.ranges:
            for value in range(r.first, r.last + 1):
                # Thousands may be taken: that is asked first, for it costs least.
                used = value in taken or value in freed or value in released
                if not used and self.usable(value):
                    yield value

    def take(self) -> int | None:
        """The next free address, never-used ones first; None: the range is exhausted."""
        for value in self._fresh:
            if value not in self.taken:
                self.taken.add(value)
                return value
        if self._again is None:
            # In order already where a ledger has kept them so: that costs one walk.
            freed = sorted(self.freed, key=self.freed.__getitem__)
            self._again = chain(freed, self.released)
        for value in self._again:
            if value not in self.taken and self.offered(value):
                self.taken.add(value)
                return value
        return None


def is_usable(subnet: Subnet, value: int) -> bool:
    """Whether a host may carry it: not the network's own nor the broadcast address (RFC 3021, 4291)."""
    if not subnet.value <= value <= subnet.last:
        return False
    spare = BITS[subnet.version] - subnet.prefix
    if spare <= 1:
        return True
    return value != subnet.value and not (subnet.version == 4 and value == subnet.last)


def by_place(freed: Mapping[tuple[str, Address], int]) -> dict[Place, dict[int, int]]:
    """The same, by network and IP version."""
    found: dict[Place, dict[int, int]] = {}
    for (network, address), serial in freed.items():
        found.setdefault((network, address.version), {})[address.value] = serial
    return found


def _declared(spec: Spec) -> Iterator[tuple[Container, Interface]]:
    for container in spec.containers.values():
        for interface in container.interfaces:
            yield container, interface


class _Assigner:
    def __init__(
        self,
        spec: Spec,
        book: Book,
        standing: Mapping[Key, Address],
        busy: Callable[[str], bool],
        kept: Collection[str],
        taken: Mapping[Place, Collection[int]],
        freed: Mapping[Place, Mapping[int, int]] | None,
    ) -> None:
        self.spec, self.book, self.standing, self.busy, self.kept = spec, book, standing, busy, kept
        self.others = taken
        self.pools: dict[Place, _Pool] = {}
        free = by_place(book.freed) if freed is None else freed
        for network in spec.networks.values():
            for subnet in network.subnets:
                place = (network.name, subnet.version)
                self.pools[place] = _Pool(network, subnet.version, free.get(place, {}))
        self.wanted = [
            (Key(c.name, i.network, i.name, version), i)
            for c, i in _declared(spec)
            for version in i.automatic
        ]
        self.keys = {key for key, _ in self.wanted}
        self.held: dict[Key, Address] = {}
        self.moves: list[Move] = []
        self.problems: dict[str, str] = {}
        self.rejections: list[Rejection] = []
        self.refused: set[tuple[str, Address]] = set()
        """Declared addresses that stay with the lease that holds them."""

    def run(self) -> Assignment:
        known = self._known()
        explicit = self._explicit()
        leaving = self._collide(known, explicit)
        self._reserve(known, explicit)
        pending = []
        for key, _ in self.wanted:
            pool = self.pools.get((key.network, key.version))
            old = known.get(key)
            if pool is None:
                self.problems[key.container] = (
                    f"network {key.network} has no IPv{key.version} subnet"
                )
            elif (
                old is None
                or key in leaving
                or not pool.usable(old.value)
                or old.value in pool.taken
            ):
                pending.append((key, pool, old))
            else:
                pool.taken.add(old.value)
                self.held[key] = old
        for key, pool, old in pending:
            self._give(key, pool, old, leaving.get(key, ""))
        return Assignment(
            addresses={key: a for key, a in self.held.items() if key in self.keys},
            book=self._next_book(),
            moves=tuple(self.moves),
            problems=self.problems,
            rejections=tuple(self.rejections),
        )

    def _known(self) -> dict[Key, Address]:
        """What each interface had: by the book or by what the kernel shows, under this name or another."""
        known = {key: a for key, a in self.book.held.items() if key in self.keys}
        self._rename(self.book.held, known)
        for key, _ in self.wanted:
            if key not in known and key in self.standing:
                known[key] = self.standing[key]
        self._rename(self.standing, known)
        return known

    def _rename(self, held: Mapping[Key, Address], known: dict[Key, Address]) -> None:
        """What nobody is asked for any more goes to who has nothing in that network: a new name."""
        orphans: dict[tuple[str, str, int], list[Address]] = {}
        for key, address in held.items():
            if key not in self.keys and key.container in self.spec.containers:
                place = (key.container, key.network, key.version)
                orphans.setdefault(place, []).append(address)
        if not orphans:
            return
        taken = {(key.network, address) for key, address in known.items()}
        for key, _ in self.wanted:
            if key in known:
                continue
            for address in orphans.get((key.container, key.network, key.version), ()):
                if (key.network, address) not in taken:
                    known[key] = address
                    taken.add((key.network, address))
                    break

    def _explicit(self) -> dict[tuple[str, Address], tuple[Container, Interface]]:
        return {
            (interface.network, address): (container, interface)
            for container, interface in _declared(self.spec)
            for address in interface.addresses
        }

    def _collide(
        self,
        known: Mapping[Key, Address],
        explicit: Mapping[tuple[str, Address], tuple[Container, Interface]],
    ) -> dict[Key, str]:
        """Leases that give way to a declared address, with the reason; or the declaration is refused."""
        leaving: dict[Key, str] = {}
        if not explicit:
            return leaving
        # Whoever is no longer declared may carry an address that it declared: no lease says so.
        others = {k: a for k, a in self.standing.items() if k.container not in self.spec.containers}
        holders = {(k.network, a): k for k, a in {**others, **self.book.held, **known}.items()}
        for (network, address), (container, interface) in explicit.items():
            key = holders.get((network, address))
            if key is None or key.container == container.name:
                continue
            if self.busy(key.container):
                position = container.interfaces.index(interface)
                self.refused.add((network, address))
                self.rejections.append(
                    Rejection(
                        place=interface.place,
                        path=f"containers.{container.name}.interfaces[{position}].addresses",
                        message=f"{address} is held by {key.container}, which is in "
                        f"use (declare another address, or stop {key.container} first)",
                    )
                )
            elif key in self.keys:
                leaving[key] = f"{container.name} declares {address}"
        return leaving

    def _reserve(
        self,
        known: Mapping[Key, Address],
        explicit: Mapping[tuple[str, Address], tuple[Container, Interface]],
    ) -> None:
        """Addresses that cannot be handed out: declared ones, and those of whoever still stands."""
        for network, address in explicit.keys() - self.refused:
            pool = self.pools.get((network, address.version))
            if pool is not None:
                pool.taken.add(address.value)
        for place, values in self.others.items():
            if place in self.pools:
                self.pools[place].taken.update(values)
        self.staying: dict[Key, Address] = {}
        pools = {place: pool.taken for place, pool in self.pools.items()}
        held = {**self.standing, **self.book.held} if self.standing else self.book.held
        for key, address in held.items():
            if key in self.keys:
                continue
            container, network, version = key.container, key.network, key.version
            stands = container in self.kept or key in self.standing
            if stands and container not in self.spec.containers:
                taken = pools.get((network, version))
                if taken is not None:
                    taken.add(address.value)
                if not explicit or (network, address) not in explicit:
                    self.staying[key] = address
            elif not stands and (network, version) in self.pools:
                # Freed by this very pass, and so after all others.
                pool = self.pools[network, version]
                if pool.offered(address.value):
                    pool.released.setdefault(address.value)

    def _give(self, key: Key, pool: _Pool, old: Address | None, reason: str) -> None:
        value = None
        if old is not None and not reason and pool.subnet is not None:
            value = _same_host_part(pool, old)
        if value is None:
            value = pool.take()
        else:
            pool.taken.add(value)
        if value is None:
            ranges = ", ".join(str(r) for r in pool.ranges)
            self.problems[key.container] = (
                f"no free IPv{key.version} address is left in {ranges} of network {key.network} "
                "(widen `ranges`, or remove containers)"
            )
            return
        new = Address(key.version, value)
        self.held[key] = new
        if old is not None and old != new:
            why = reason or f"{old} is not free in network {key.network} any more"
            self.moves.append(Move(key, old, new, why))

    def _next_book(self) -> Book:
        held = {**self.staying, **self.held}
        freed = dict(self.book.freed)
        serial = self.book.serial
        before = self.book.held
        # Where only new ones have come, nothing is freed.
        if not before.items() <= held.items():
            in_use = {(key.network, a) for key, a in held.items()}
            for key, address in before.items():
                place = (key.network, address)
                if place not in in_use:
                    serial += 1
                    freed[place] = serial
        if freed:
            for key, address in held.items():
                freed.pop((key.network, address), None)
        return Book(held=held, freed=freed, serial=serial)


def _same_host_part(pool: _Pool, old: Address) -> int | None:
    """The address with the same host part in an edited subnet, where that is free."""
    subnet = pool.subnet
    assert subnet is not None  # callers have looked
    host = old.value & ((1 << (BITS[subnet.version] - subnet.prefix)) - 1)
    value = subnet.value | host
    return value if pool.offered(value) and value not in pool.taken else None


def whole_range(subnet: Subnet) -> Range:
    """Every address of a subnet that a host may carry."""
    first, last = subnet.value, subnet.last
    if not is_usable(subnet, first):
        first += 1
    if not is_usable(subnet, last):
        last -= 1
    return Range(subnet.version, first, last)


def assign(
    spec: Spec,
    book: Book,
    *,
    standing: Mapping[Key, Address],
    busy: Callable[[str], bool],
    kept: Collection[str],
    taken: Mapping[Place, Collection[int]] = NOBODY,
    freed: Mapping[Place, Mapping[int, int]] | None = None,
) -> Assignment:
    """Give every automatic interface its address.

    `standing`: what containers of ours carry in the kernel; it stands in for a lost book, and keeps
    the addresses of those that are no longer declared. `busy`: whether processes live in a container.
    `kept`: containers whose leases stay though they are not declared in `spec`. `taken`:
    addresses that containers beyond `spec` and `book` have. `freed`: what was released, with the
    serial number of its release, where `book` does not say it.
    """
    return _Assigner(spec, book, standing, busy, kept, taken, freed).run()
