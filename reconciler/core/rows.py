"""What a kernel dump shows, row by row: plain values, nothing decided yet.

The C layer fills these; `observed.py` says what they mean.
"""

from typing import NamedTuple

from reconciler.core.model import Address, InterfaceAddress, Subnet

IFF_UP = 0x1
IFF_LOOPBACK = 0x8
GEN_MODE_EUI64 = 0
GEN_MODE_NONE = 1
"""in6_addr_gen_mode of linux/if_link.h: no IPv6 link-local address by itself."""


class Link(NamedTuple):
    """One network device. `peer` is IFLA_LINK (0: none), `peer_nsid` IFLA_LINK_NETNSID (-1: none)."""

    index: int  # type: ignore[assignment]  # it hides tuple.index, as meant
    name: str
    kind: str
    mac: bytes
    mtu: int
    flags: int
    master: int
    peer: int
    peer_nsid: int
    gen_mode: int
    isolated: bool
    alias: str

    @property
    def up(self) -> bool:
        """Whether it is administratively up."""
        return bool(self.flags & IFF_UP)


class LinkAddress(NamedTuple):
    """An address on the link numbered `index`; `scope` and `flags` as in rtnetlink(7)."""

    index: int  # type: ignore[assignment]  # it hides tuple.index, as meant
    address: InterfaceAddress
    scope: int
    flags: int
    protocol: int


class RouteRow(NamedTuple):
    """A unicast route; `via` None: on link; `index` is the outgoing link (0: none or several)."""

    to: Subnet
    via: Address | None
    index: int  # type: ignore[assignment]  # it hides tuple.index, as meant
    table: int
    protocol: int
    scope: int
    metric: int
    source: Address | None
    type: int


class RuleRow(NamedTuple):
    """A policy rule `from SOURCE lookup TABLE`; `source` None: from all."""

    version: int
    priority: int
    source: Subnet | None
    table: int
    protocol: int
    plain: bool
    """Whether it says nothing beyond source, table and priority."""


class Space(NamedTuple):
    """One network namespace as a scan saw it. `error` is an errno (0: it was read whole)."""

    error: int
    cookie: int
    """SO_NETNS_COOKIE: unique until the machine restarts."""
    inode: int
    links: tuple[Link, ...]
    addresses: tuple[LinkAddress, ...]
    routes: tuple[RouteRow, ...]
    rules: tuple[RuleRow, ...]
    sysctls: tuple[str | None, ...]
    """Values in the order asked for, white space folded; None: there is no such entry."""
