"""Reading the fields of one object, with every error noted rather than the first raised."""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from reconciler.core import fields
from reconciler.core.model import Dns, Route, Subnet
from reconciler.core.schema import RawDns, RawRoute, Words
from reconciler.core.tree import Path, Tree

T = TypeVar("T")


class Trouble(Exception):  # noqa: N818 - a bag of errors, not one
    """Errors of one object: (path, message) pairs."""

    def __init__(self, errors: list[tuple[Path, str]]) -> None:
        super().__init__(errors)
        self.errors = errors


class Reader:
    """Reads the fields of one object and collects what is wrong with them."""

    def __init__(self, tree: Tree, path: Path) -> None:
        self.tree = tree
        self.path = path
        self.errors: list[tuple[Path, str]] = []

    def error(self, message: str, *path: str | int) -> None:
        """Note an error at `path` below the object."""
        self.errors.append(((*self.path, *path), message))

    def read(self, parse: Callable[[str], T], text: str, *path: str | int) -> T | None:
        """The value, or None with the error noted."""
        try:
            return parse(text)
        except ValueError as error:
            self.error(str(error), *path)
            return None

    def maybe(self, parse: Callable[[str], T], text: str | None, *path: str | int) -> T | None:
        """As `read`, where the key may be absent."""
        return None if text is None else self.read(parse, text, *path)

    def flag(self, text: str, *path: str | int) -> bool:
        """true or false."""
        return bool(self.read(fields.boolean, text, *path))

    def many(
        self, parse: Callable[[str], T], value: Words | None, *path: str | int
    ) -> Iterator[tuple[T, tuple[str | int, ...]]]:
        """The items of a list, or the one word that stands for a list of one; each with its path."""
        for text, where in words(value, path):
            found = self.read(parse, text, *where)
            if found is not None:
                yield found, where

    def done(self) -> None:
        """Raise what was noted."""
        if self.errors:
            raise Trouble(self.errors)


def words(
    value: Words | None, path: tuple[str | int, ...]
) -> Iterator[tuple[str, tuple[str | int, ...]]]:
    """Each word of a list with its path; a single word stands for a list of one."""
    if value is None:
        return
    if isinstance(value, str):
        yield value, path
        return
    for number, text in enumerate(value):
        yield text, (*path, number)


def items(value: Any, path: tuple[str | int, ...]) -> Iterator[tuple[Any, tuple[str | int, ...]]]:
    if not isinstance(value, list):
        yield value, path
        return
    for number, item in enumerate(value):
        yield item, (*path, number)


def read_routes(r: Reader, raw: RawRoute | list[RawRoute], *path: str | int) -> list[Route]:
    routes = []
    for item, where in items(raw, path):
        to = r.read(
            lambda text: Subnet(4, 0, 0) if text == "default" else fields.subnet(text),
            item.to,
            *where,
            "to",
        )
        via = r.read(fields.address, item.via, *where, "via")
        if to is None or via is None:
            continue
        if item.to == "default":
            to = Subnet(via.version, 0, 0)
        if to.version != via.version:
            r.error(f"{via} and {to} are not of one IP version", *where, "via")
            continue
        routes.append(Route(to=to, via=via))
    return routes


def read_dns(r: Reader, raw: str | RawDns | None) -> Dns | None:
    """None: nothing is said. `none` is a Dns that is empty."""
    if raw is None:
        return None
    if isinstance(raw, str):
        choice = r.read(lambda text: fields.word(text, "host", "none"), raw, "dns")
        return Dns(host=choice == "host")
    servers = tuple(v for v, _ in r.many(fields.address_or_loopback, raw.servers, "dns", "servers"))
    search = tuple(v for v, _ in r.many(_token, raw.search, "dns", "search"))
    options = tuple(v for v, _ in r.many(_token, raw.options, "dns", "options"))
    hosts = []
    for host, text in raw.hosts.items():
        address = r.read(fields.address_or_loopback, text, "dns", "hosts", host)
        if r.read(_token, host, "dns", "hosts", host) and address:
            hosts.append((host, address))
    return Dns(servers=servers, search=search, options=options, hosts=tuple(hosts))


def _token(text: str) -> str:
    if not text or any(c.isspace() or c == "#" or ord(c) < 33 for c in text) or len(text) > 253:
        raise ValueError(f"{text!r} cannot stand in resolv.conf or hosts (no white space, no #)")
    return text


def subnet_list(items: list[Subnet]) -> str:
    return ", ".join(str(i) for i in items) or "every subnet"
