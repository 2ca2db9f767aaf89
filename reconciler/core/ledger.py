"""Who has which address, by lease or by declaration, found without going through everybody.

A whole pass takes leases from the state dir and hands addresses out anew. A pass over a few containers
takes an excerpt of this, and puts back what has become of it.
"""

from collections.abc import Collection, Iterable, Mapping

from reconciler.core.leases import Book, Key
from reconciler.core.model import Address, Container

Place = tuple[str, int]
"""A network and an IP version."""


class Ledger:
    """All leases, and all addresses that are declared. Kept by one thread."""

    def __init__(self, book: Book) -> None:
        self._held: dict[Key, Address] = {}
        self._freed: dict[tuple[str, Address], int] = {}
        self._serial = book.serial
        self._leases: dict[str, dict[Key, Address]] = {}
        """By container."""
        self._lessees: dict[Place, dict[int, Key]] = {}
        self._given: dict[Place, dict[int, str]] = {}
        """Declared addresses, and the container that declares each."""
        self.turn(Book(held={}, freed={}), book)

    @property
    def book(self) -> Book:
        """All leases, as of now: to be read at once."""
        return Book(held=self._held, freed=self._freed, serial=self._serial)

    def excerpt(self, names: Collection[str], networks: Collection[str]) -> Book:
        """The leases of these containers, and what was freed in these networks."""
        held: dict[Key, Address] = {}
        for name in names:
            held |= self._leases.get(name, {})
        freed = {place: n for place, n in self._freed.items() if place[0] in networks}
        return Book(held=held, freed=freed, serial=self._serial)

    def turn(self, old: Book, new: Book) -> None:
        """An excerpt has become another one."""
        if old is new:
            return
        for key, address in old.held.items():
            if new.held.get(key) != address:
                self._strike(key, address)
        for key, address in new.held.items():
            self._held[key] = address
            self._leases.setdefault(key.container, {})[key] = address
            self._lessees.setdefault((key.network, key.version), {})[address.value] = key
        for place in old.freed.keys() - new.freed.keys():
            self._freed.pop(place, None)
        self._freed |= new.freed
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
