"""Who has which address, by lease or by declaration, found without going through everybody.

A whole pass takes leases from the state dir and hands addresses out anew. A pass over a few containers
takes an excerpt of this, and puts back what has become of it.
"""

from collections.abc import Callable, Collection, Iterable, Mapping

import msgspec

from reconciler.core.leases import Assignment, Book, Key, Place, assign
from reconciler.core.model import Address, Container, Spec


class Ledger:
    """All leases, and all addresses that are declared. Kept by one thread."""

    def __init__(self, book: Book) -> None:
        self._held: dict[Key, Address] = {}
        self._freed: dict[Place, dict[int, int]] = {}
        """Address → serial number of its release, in that order."""
        self._serial = book.serial
        self._leases: dict[str, dict[Key, Address]] = {}
        """By container."""
        self._lessees: dict[Place, dict[int, Key]] = {}
        self._given: dict[Place, dict[int, str]] = {}
        """Declared addresses, and the container that declares each."""
        self.turn(Book(held={}, freed={}), book)

    def says(self, book: Book) -> bool:
        """Whether that is what it holds. A release raises the serial number, and what is handed out
        again is held."""
        freed = sum(map(len, self._freed.values()))
        return (book.serial, len(book.freed)) == (self._serial, freed) and book.held == self._held

    def excerpt(self, names: Collection[str] | None = None) -> Book:
        """The leases of these containers (None: of all), without what was released."""
        held: dict[Key, Address] = {} if names is not None else dict(self._held)
        for name in names or ():
            held |= self._leases.get(name, {})
        return Book(held=held, freed={}, serial=self._serial)

    def assign(
        self,
        spec: Spec,
        excerpt: Book,
        *,
        standing: Mapping[Key, Address],
        busy: Callable[[str], bool],
        kept: Collection[str],
    ) -> tuple[Book, Assignment]:
        """Hand addresses out to the containers of `spec`; everybody else keeps theirs.

        Answers with the excerpt, as far as it matters to what has become of it, too.
        """
        near = {i.network for c in spec.containers.values() for i in c.interfaces}
        networks = {name: spec.networks[name] for name in sorted(near)}
        places = [(name, s.version) for name, net in networks.items() for s in net.subnets]
        found = assign(
            msgspec.structs.replace(spec, networks=networks),
            excerpt,
            standing=standing,
            busy=busy,
            kept=kept,
            taken=self.taken(places, but=spec.containers),
            freed=self._freed,
        )
        again = {
            (key.network, address): serial
            for key, address in found.book.held.items()
            if (serial := self._freed.get((key.network, key.version), {}).get(address.value))
        }
        return msgspec.structs.replace(excerpt, freed=again), found

    def turn(self, old: Book, new: Book) -> None:
        """An excerpt has become another one."""
        if old is new:
            return
        for key, address in old.held.items():
            if new.held.get(key) != address:
                self._strike(key, address)
        for network, address in old.freed.keys() - new.freed.keys():
            self._freed.get((network, address.version), {}).pop(address.value, None)
        for key, address in new.held.items():
            self._held[key] = address
            self._leases.setdefault(key.container, {})[key] = address
            self._lessees.setdefault((key.network, key.version), {})[address.value] = key
        for (network, address), serial in sorted(new.freed.items(), key=lambda item: item[1]):
            released = self._freed.setdefault((network, address.version), {})
            released.pop(address.value, None)
            released[address.value] = serial
        self._serial = new.serial

    def _strike(self, key: Key, address: Address) -> None:
        self._held.pop(key, None)
        mine = self._leases.get(key.container, {})
        mine.pop(key, None)
        if not mine:
            self._leases.pop(key.container, None)
        lessees = self._lessees.get((key.network, key.version), {})
        if lessees.get(address.value) == key:
            del lessees[address.value]

    def give(self, containers: Iterable[Container]) -> None:
        """These are all that are declared."""
        self._given = {}
        for container in containers:
            self._give(container)

    def change(
        self, names: Iterable[str], old: Mapping[str, Container], new: Mapping[str, Container]
    ) -> None:
        """These containers are declared in another way than before."""
        names = list(names)
        for name in names:
            for place, value in _declared(old.get(name)):
                given = self._given.get(place, {})
                if given.get(value) == name:
                    del given[value]
        for name in names:
            container = new.get(name)
            if container is not None:
                self._give(container)

    def _give(self, container: Container) -> None:
        for place, value in _declared(container):
            self._given.setdefault(place, {})[value] = container.name

    def lessee(self, network: str, address: Address) -> str | None:
        """The container that has the address by lease."""
        key = self._lessees.get((network, address.version), {}).get(address.value)
        return key.container if key is not None else None

    def taken(
        self, places: Iterable[Place], *, but: Mapping[str, Container]
    ) -> dict[Place, set[int]]:
        """The addresses that others than these have, by lease or by declaration."""
        found: dict[Place, set[int]] = {}
        for place in places:
            leased, given = self._lessees.get(place, {}), self._given.get(place, {})
            own = {
                address.value
                for name in but
                for key, address in self._leases.get(name, {}).items()
                if leased.get(address.value) == key
            }
            said = {v for name, c in but.items() for p, v in _declared(c) if given.get(v) == name}
            found[place] = (set(leased) - own) | (set(given) - said)
        return found


def _declared(container: Container | None) -> list[tuple[Place, int]]:
    return [
        ((interface.network, address.version), address.value)
        for interface in (container.interfaces if container is not None else ())
        for address in interface.addresses
    ]
