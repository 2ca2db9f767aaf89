"""The C module: dumps as rows, namespaces at paths. (`batch.py` holds the way in for changes.)"""

import struct
from collections.abc import Iterator, Sequence
from typing import Any

from reconciler import _rtnl  # type: ignore[attr-defined]  # built from _netlink/
from reconciler.core.model import Address, InterfaceAddress, Subnet
from reconciler.core.rows import Link, LinkAddress, RouteRow, RuleRow, Space
from reconciler.host.batch import Batch, Failure, Result

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

LINK = struct.Struct("=iIIiiiBB6s16s16sII")
ADDRESS = struct.Struct("=iI4B16s")
ROUTE = struct.Struct("=iII8B16s16s16s")
RULE = struct.Struct("=II4B16s")
LINKS, ADDRESSES, ROUTES, RULES, HEAP = range(5)


def scan(paths: Sequence[str], *, sysctls: Sequence[str] = ()) -> list[Space]:
    """A dump of each namespace; `error` is set where one could not be read, or is no namespace."""
    return _scan([ffi.new("char[]", path.encode()) for path in paths], sysctls)


def scan_host(*, sysctls: Sequence[str] = ()) -> Space:
    """A dump of our own namespace. Raises OSError where it could not be read."""
    space = _scan([ffi.NULL], sysctls)[0]
    if space.error:
        raise OSError(space.error, "the host's links could not be dumped")
    return space


def absent_sysctls(names: Sequence[str]) -> list[str]:
    """Which of these a fresh network namespace does not have."""
    space = _scan([ffi.new("char[]", b"")], names)[0]
    if space.error:
        raise OSError(space.error, "no network namespace could be made")
    return [name for name, value in zip(names, space.sysctls, strict=True) if value is None]


def _scan(paths: list[Any], sysctls: Sequence[str]) -> list[Space]:
    if not paths:
        return []
    names = [ffi.new("char[]", name.encode()) for name in sysctls]
    found = ffi.new("struct rcn_scan *")
    try:
        error = lib.rcn_scan_run(
            ffi.new("char *[]", paths), len(paths), ffi.new("char *[]", names), len(names), found
        )
        if error:
            raise OSError(-error, "the netlink thread could not start")
        return list(_spaces(found, len(names)))
    finally:
        lib.rcn_scan_free(found)


def _text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode("utf-8", "replace")


def _spaces(found: Any, n_sysctls: int) -> Iterator[Space]:
    raw = [
        bytes(ffi.buffer(found.rows[i], found.used[i])) if found.used[i] else b"" for i in range(5)
    ]
    heap = raw[HEAP]
    links = _links(raw[LINKS], heap)
    addresses = _addresses(raw[ADDRESSES])
    routes = _routes(raw[ROUTES])
    rules = _rules(raw[RULES])
    at = [0, 0, 0, 0]
    for number in range(found.n_spaces):
        s = found.spaces[number]
        counts = (s.n_links, s.n_addresses, s.n_routes, s.n_rules)
        cut = [slice(a, a + n) for a, n in zip(at, counts, strict=True)]
        at = [a + n for a, n in zip(at, counts, strict=True)]
        yield Space(
            s.error,
            s.cookie,
            s.inode,
            tuple(links[cut[LINKS]]),
            tuple(addresses[cut[ADDRESSES]]),
            tuple(routes[cut[ROUTES]]),
            tuple(rules[cut[RULES]]),
            _values(heap, s.sysctls, n_sysctls) if not s.error else (),
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
        Link(index, _text(name), _text(kind), mac, mtu, flags, master, peer, nsid, mode,
             bool(isolated), heap[alias : alias + size].decode("utf-8", "replace") if size else "")
        for index, flags, mtu, master, peer, nsid, mode, isolated, mac, name, kind, alias, size
        in LINK.iter_unpack(raw)
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


def cookie() -> int:
    """The cookie of our own network namespace (SO_NETNS_COOKIE)."""
    return int(lib.rcn_cookie())


def unbind(paths: Sequence[str]) -> list[int]:
    """Unmount and unlink each; an errno each (0: it is gone). The kernel reaps what nobody holds."""
    return [-int(lib.rcn_unbind(path.encode())) for path in paths]


def bind(source: str, path: str) -> int:
    """Bind the namespace `source` to `path`, whose mount point is made or used again; an errno."""
    return -int(lib.rcn_bind(source.encode(), path.encode()))


def share(directory: str) -> int:
    """Make `directory` a shared mount, as `ip netns add` does; an errno."""
    return -int(lib.rcn_share(directory.encode()))
