"""Connections that the kernel remembers (conntrack), and how it forgets stale ones.

A packet of a known connection never meets the nat rules: it goes where the first one went. So what was
published elsewhere, or belonged to an address that is gone, must be forgotten once the rules are in.
"""

import errno
import os
import struct
from collections.abc import Collection

import msgspec

from reconciler import _rtnl  # type: ignore[attr-defined]  # built from _netlink/
from reconciler.core.errors import FirewallError
from reconciler.core.model import Address

ffi, lib = _rtnl.ffi, _rtnl.lib
FAMILIES = {4: 2, 6: 10}
PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}
PUBLISHED = struct.Struct("=17s17sBBBxHHH")
NOWHERE = bytes(17)


class Port(msgspec.Struct, frozen=True):
    """A published run of host ports whose connections are to be forgotten."""

    version: int
    protocol: str
    """tcp, udp or sctp."""
    host_ip: Address | None
    """None: every address of the host of that version. (Asked of the local routing table.)"""
    first: int
    last: int
    target: Address | None
    """Where the run leads now: what leads there already lives on. None: nothing does."""
    target_port: int
    """The one that `first` leads to; the others follow. Without a target it says nothing."""


def forget(addresses: Collection[Address], ports: Collection[Port]) -> int:
    """Delete the entries of these connections, with one dump of the table; how many went.

    Those are the ones with one of `addresses` at either end, before or after translation, and those
    that were begun to one of `ports` and do not lead to its target. To be called after the rules are in:
    what begins meanwhile would be remembered as the old ones said. All others live on. A kernel without
    conntrack or ctnetlink remembers nothing that could be forgotten: 0.

    Raises FirewallError where the kernel refuses, with as much deleted as could be.
    """
    if not addresses and not ports:
        return 0
    peers = b"".join(sorted(map(_peer, set(addresses))))
    runs = b"".join(_published(port) for port in ports)
    result = ffi.new("struct rcn_forgotten *")
    error = lib.rcn_conntrack_forget(
        ffi.from_buffer("struct rcn_peer[]", peers),
        len(peers) // len(NOWHERE),
        ffi.from_buffer("struct rcn_published[]", runs),
        len(runs) // PUBLISHED.size,
        result,
    )
    if error:
        raise FirewallError(f"firewall: forget stale connections: {_cause(-int(error))}")
    if result.failed:
        raise FirewallError(
            f"firewall: forget stale connections: {result.failed} of {result.failed + result.deleted} "
            f"stay until they time out: {_cause(int(result.error))}"
        )
    return int(result.deleted)


def _peer(address: Address) -> bytes:
    width = 4 if address.version == 4 else 16
    raw = address.value.to_bytes(width, "big")
    return bytes((FAMILIES[address.version],)) + raw.ljust(16, b"\0")


def _published(port: Port) -> bytes:
    everywhere = bytes((FAMILIES[port.version],)).ljust(17, b"\0")
    return PUBLISHED.pack(
        everywhere if port.host_ip is None else _peer(port.host_ip),
        NOWHERE if port.target is None else _peer(port.target),
        PROTOCOLS[port.protocol],
        port.host_ip is None,
        port.target is not None,
        port.target_port if port.target is not None else 0,
        port.first,
        port.last,
    )


def _cause(number: int) -> str:
    if number == errno.EPERM:
        return "CAP_NET_ADMIN is needed (run it with sudo)"
    if number in (errno.EINTR, errno.ENOBUFS):
        return "the table changes faster than it can be read (the next run tries again)"
    return f"{errno.errorcode.get(number, number)}: {os.strerror(number)}"
