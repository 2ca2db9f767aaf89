"""The C module: dumps as rows, namespaces at paths. (`batch.py` holds the way in for changes.)"""

import struct
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from reconciler import _rtnl  # type: ignore[attr-defined]  # built from _netlink/
from reconciler.core.model import Address, InterfaceAddress, Subnet
from reconciler.core.rows import (
    Link,
    LinkAddress,
    NeighbourRow,
    RouteRow,
    Rows,
    RuleRow,
    Space,
    TableRow,
)
from reconciler.host.batch import BRIDGE, FAMILY, LENGTH, Batch, Failure, Result

ffi, lib = _rtnl.ffi, _rtnl.lib

__all__ = [
    "Batch",
    "Failure",
    "Result",
    "absent_sysctls",
    "bind",
    "cookie",
    "scan",
    "scan_host",
    "share",
    "unbind",
]

LINK = struct.Struct("=iIIiiiIBBBB2x6s16s16sIIQ")
ADDRESS = struct.Struct("=iI4B16s")
ROUTE = struct.Struct("=iII8B16s16s16s")
RULE = struct.Struct("=II4B16s")
NEIGHBOUR = struct.Struct("=iBx6s16s")
SIZES = (LINK.size, ADDRESS.size, ROUTE.size, RULE.size, NEIGHBOUR.size)
LINKS, ADDRESSES, ROUTES, RULES, NEIGHBOURS, HEAP = range(6)
NO_KEY = bytes(16)
HALVES = 512
"""From so many namespaces on, a scan takes two threads."""


def scan(paths: Sequence[str], *, sysctls: Sequence[str] = (), key: bytes = NO_KEY) -> list[Space]:
    """A dump of each namespace; `error` is set where one could not be read, or is no namespace.

    `key`: 16 bytes, the secret of the digests.
    """
    if len(paths) < HALVES:
        return _scan(paths, sysctls, key=key)
    from reconciler.host.ahead import Ahead

    middle = len(paths) // 2
    # The work is done in C without the interpreter's lock, and the kernel serves both at once.
    second = Ahead(partial(_scan, paths[middle:], sysctls, key=key))
    return _scan(paths[:middle], sysctls, key=key) + second.result()


def owners(paths: Sequence[str]) -> list[Space]:
    """The cookie of each namespace, and nothing else of it; `error` as `scan` has it."""
    return _scan(paths, (), 0)


def scan_host(
    *,
    sysctls: Sequence[str] = (),
    links_only: bool = False,
    links: Sequence[int] | None = None,
    key: bytes = NO_KEY,
) -> Space:
    """A dump of our own namespace; of `links` only those with these numbers, where given.

    Raises OSError where it could not be read.
    """
    what = int(lib.RCN_WHAT_LINKS if links_only else lib.RCN_WHAT_ALL)
    if links is not None and not links:
        what &= ~int(lib.RCN_WHAT_LINKS)
    space = _scan([None], sysctls, what, links or (), key=key)[0]
    if space.error:
        raise OSError(space.error, "the host's links could not be dumped")
    return space


def space_sysctls(
    paths: Sequence[str], names: Sequence[str]
) -> list[tuple[str | None, ...] | None]:
    """The values of these sysctls in each namespace, and nothing else; None: it could not be read."""
    return [None if s.error else s.sysctls for s in _scan(paths, names, 0)]


def host_sysctls(names: Sequence[str]) -> dict[str, str | None]:
    """The host's own, and nothing else; None: there is no such entry."""
    return dict(zip(names, _scan([None], names, 0)[0].sysctls, strict=True)) if names else {}


def absent_sysctls(names: Sequence[str]) -> list[str]:
    """Which of these a fresh network namespace does not have."""
    space = _scan([""], names)[0]
    if space.error:
        raise OSError(space.error, "no network namespace could be made")
    return [name for name, value in zip(names, space.sysctls, strict=True) if value is None]


def _scan(
    paths: Sequence[str | None],
    sysctls: Sequence[str],
    what: int = lib.RCN_WHAT_ALL,
    links: Sequence[int] = (),
    *,
    key: bytes = NO_KEY,
) -> list[Space]:
    """None stands for our own namespace, an empty path for a fresh one."""
    if not paths:
        return []
    # One block for all paths: an object each is what a scan would spend its time on.
    block = b"".join(path.encode() + b"\0" for path in paths if path is not None)
    held = ffi.from_buffer("char[]", block)
    pointers = ffi.new("char *[]", len(paths))
    at = 0
    for number, path in enumerate(paths):
        if path is not None:
            pointers[number] = held + at
            at += len(path.encode()) + 1
    names = [ffi.new("char[]", name.encode()) for name in sysctls]
    found = ffi.new("struct rcn_scan *")
    try:
        error = lib.rcn_scan_run(
            pointers,
            len(paths),
            ffi.new("char *[]", names),
            len(names),
            what,
            ffi.new("int32_t[]", list(links)),
            len(links),
            ffi.new("uint8_t[16]", key),
            found,
        )
        if error:
            raise OSError(-error, "the netlink thread could not start")
        return list(_spaces(found, len(names)))
    finally:
        lib.rcn_scan_free(found)


def _text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode("utf-8", "replace")


SPACE = struct.Struct("=QQQiIIIIII4x")


def _decode(
    scanned: tuple[bytes, ...],
    starts: tuple[int, ...],
    ends: tuple[int, ...],
    sysctls: int,
    n_sysctls: int,
) -> Rows:
    """The rows of one namespace, from what the C layer packed for all of them."""
    heap = scanned[HEAP]
    links, addresses, routes, rules, neighbours = (
        scanned[i][starts[i] * SIZES[i] : ends[i] * SIZES[i]] for i in range(HEAP)
    )
    known, table = _neighbours(neighbours)
    return Rows(
        tuple(_links(links, heap)),
        tuple(_addresses(addresses)),
        tuple(_routes(routes)),
        tuple(_rules(rules)),
        known,
        _values(heap, sysctls, n_sysctls),
        table,
    )


def _spaces(found: Any, n_sysctls: int) -> Iterator[Space]:
    scanned = tuple(
        bytes(ffi.buffer(found.rows[i], found.used[i])) if found.used[i] else b"" for i in range(6)
    )
    spaces = bytes(ffi.buffer(found.spaces, found.n_spaces * SPACE.size))
    a, b, c, d, e = 0, 0, 0, 0, 0
    for cookie, inode, digest, error, na, nb, nc, nd, ne, sysctls in SPACE.iter_unpack(spaces):
        starts = (a, b, c, d, e)
        a, b, c, d, e = ends = (a + na, b + nb, c + nc, d + nd, e + ne)
        yield Space(
            error=error,
            cookie=cookie,
            inode=inode,
            digest=digest,
            rows=Rows() if error else partial(_decode, scanned, starts, ends, sysctls, n_sysctls),
        )


def _values(heap: bytes, at: int, count: int) -> tuple[str | None, ...]:
    values: list[str | None] = []
    for _ in range(count):
        end = heap.index(b"\0", at)
        text = heap[at:end]
        at = end + 1
        values.append(" ".join(text[1:].decode().split()) if text[:1] == b"+" else None)
    return tuple(values)


def _links(raw: bytes, heap: bytes) -> list[Link]:
    return [
        Link(index, _text(name), _text(kind), mac, mtu, flags, master, peer, nsid, gen_mode,
             port, heap[alias : alias + size].decode("utf-8", "replace") if size else "",
             group, accept_ra, ipv6_off, digest)
        for index, flags, mtu, master, peer, nsid, group, gen_mode, accept_ra, port, ipv6_off, mac, name,
            kind, alias, size, digest in LINK.iter_unpack(raw)
    ]  # fmt: skip


def _version(family: int) -> int:
    return 6 if family == 10 else 4


def _value(family: int, raw: bytes) -> int:
    return int.from_bytes(raw if family == 10 else raw[:4], "big")


def _addresses(raw: bytes) -> list[LinkAddress]:
    return [
        LinkAddress(
            index,
            InterfaceAddress(_version(family), _value(family, address), prefix),
            scope,
            flags,
            protocol,
        )
        for index, flags, family, prefix, scope, protocol, address in ADDRESS.iter_unpack(raw)
    ]


def _routes(raw: bytes) -> list[RouteRow]:
    return [
        RouteRow(
            Subnet(_version(family), _value(family, to), prefix),
            Address(_version(family), _value(family, via)) if has_via else None,
            index,
            table,
            protocol,
            scope,
            metric,
            Address(_version(family), _value(family, source)) if has_source else None,
            kind,
        )
        for index, table, metric, family, prefix, protocol, scope, kind, has_via, has_source, _,
            to, via, source in ROUTE.iter_unpack(raw)
    ]  # fmt: skip


def _rules(raw: bytes) -> list[RuleRow]:
    return [
        RuleRow(
            _version(family),
            priority,
            Subnet(_version(family), _value(family, source), prefix) if prefix else None,
            table,
            protocol,
            bool(plain),
        )
        for priority, table, family, prefix, protocol, plain, source in RULE.iter_unpack(raw)
    ]


def _neighbours(raw: bytes) -> tuple[tuple[NeighbourRow, ...], tuple[TableRow, ...]]:
    rows: list[NeighbourRow] = []
    table: list[TableRow] = []
    for index, family, mac, address in NEIGHBOUR.iter_unpack(raw):
        if family == BRIDGE:
            table.append(TableRow(index, mac))
        else:
            at = Address(_version(family), _value(family, address))
            rows.append(NeighbourRow(index, at, mac))
    return tuple(rows), tuple(table)


def routes_to(addresses: Sequence[Address]) -> list[RouteRow | None]:
    """The host's route to each of these, as the kernel looks it up. Raises OSError."""
    to = ffi.new("struct rcn_peer[]", len(addresses))
    for one, address in zip(to, addresses, strict=True):
        version, value = address.version, address.value
        one.family = FAMILY[version]
        size = LENGTH[version]
        one.address[0:size] = list(value.to_bytes(size, "big"))
    found = ffi.new("struct rcn_route[]", len(addresses))
    error = lib.rcn_routes_to(to, len(addresses), found)
    if error:
        raise OSError(-error, "the host's routes could not be asked for")
    rows = _routes(bytes(ffi.buffer(found)))
    return [row if raw.family else None for row, raw in zip(rows, found, strict=True)]


def cookie() -> int:
    """The cookie of our own network namespace (SO_NETNS_COOKIE)."""
    return int(lib.rcn_cookie())


def nsid(path: str) -> int:
    """The id that the namespace at `path` has on the host; negative: it has none."""
    return int(lib.rcn_nsid_of(path.encode()))


def unbind(paths: Sequence[str]) -> list[int]:
    """Unmount and unlink each; an errno each (0: it is gone). The kernel reaps what nobody holds."""
    return [-int(lib.rcn_unbind(path.encode())) for path in paths]


def bind(source: str, path: str) -> int:
    """Bind the namespace `source` to `path`, whose mount point is made or used again; an errno."""
    return -int(lib.rcn_bind(source.encode(), path.encode()))


def share(directory: str) -> int:
    """Make `directory` a shared mount, as `ip netns add` does; an errno."""
    return -int(lib.rcn_share(directory.encode()))
