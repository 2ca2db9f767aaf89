"""What a kernel dump shows, row by row: plain values, nothing decided yet.

The C layer fills these; `observed.py` says what they mean.
"""

from collections.abc import Callable

import msgspec

from reconciler.core.model import Address, InterfaceAddress, Subnet

IFF_UP = 0x1
IFF_LOOPBACK = 0x8
GEN_MODE_EUI64 = 0
GEN_MODE_NONE = 1
"""in6_addr_gen_mode of linux/if_link.h: no IPv6 link-local address by itself."""
NO_IPV6 = 255
"""In place of `gen_mode`, `accept_ra` and `ipv6_off` where a link has no IPv6."""
IPV6_MTU = 1280
"""Below that a link has no IPv6 (RFC 8200, section 5)."""


class Link(msgspec.Struct, frozen=True):
    """One network device. `peer` is IFLA_LINK (0: none), `peer_nsid` IFLA_LINK_NETNSID (-1: none)."""

    index: int
    name: str
    kind: str
    mac: bytes
    mtu: int
    flags: int
    master: int
    peer: int
    peer_nsid: int
    gen_mode: int
    port: int
    """How its bridge treats it: PORT_ISOLATED and its like (model.py)."""
    alias: str
    group: int = 0
    """The device group (IFLA_GROUP); 0 is the default one."""
    accept_ra: int = NO_IPV6
    """Whether routers are believed there (ip-sysctl): 0 no, 1 unless the host forwards, 2 always."""
    ipv6_off: int = NO_IPV6
    """The sysctl disable_ipv6."""
    digest: int = 0
    """Equal digests, equal links."""

    @property
    def up(self) -> bool:
        """Whether it is administratively up."""
        return bool(self.flags & IFF_UP)


class LinkAddress(msgspec.Struct, frozen=True):
    """An address on the link numbered `index`; `scope` and `flags` as in rtnetlink(7)."""

    index: int
    address: InterfaceAddress
    scope: int
    flags: int
    protocol: int


class RouteRow(msgspec.Struct, frozen=True):
    """A unicast route; `via` None: on link; `index` is the outgoing link (0: none or several)."""

    to: Subnet
    via: Address | None
    index: int
    table: int
    protocol: int
    scope: int
    metric: int
    source: Address | None
    type: int


class RuleRow(msgspec.Struct, frozen=True):
    """A policy rule `from SOURCE lookup TABLE`; `source` None: from all."""

    version: int
    priority: int
    source: Subnet | None
    table: int
    protocol: int
    plain: bool
    """Whether it says nothing beyond source, table and priority."""


class NeighbourRow(msgspec.Struct, frozen=True):
    """A permanent neighbour entry that carries our protocol number."""

    index: int
    address: Address
    mac: bytes


class TableRow(msgspec.Struct, frozen=True):
    """A static and sticky entry of a bridge's table: `mac` stands behind the port numbered `index`."""

    index: int
    mac: bytes


class Rows(msgspec.Struct, frozen=True):
    """All rows of one namespace."""

    links: tuple[Link, ...] = ()
    addresses: tuple[LinkAddress, ...] = ()
    routes: tuple[RouteRow, ...] = ()
    rules: tuple[RuleRow, ...] = ()
    neighbours: tuple[NeighbourRow, ...] = ()
    sysctls: tuple[str | None, ...] = ()
    """Values in the order asked for, white space folded; None: there is no such entry."""
    table: tuple[TableRow, ...] = ()


NO_ROWS = Rows()


class Space:
    """One network namespace as a scan saw it. Its rows are decoded when they are first asked for:
    a pass that changes nothing asks for few."""

    __slots__ = ("_rows", "_veths", "cookie", "digest", "error", "inode")

    def __init__(
        self,
        *,
        error: int = 0,
        cookie: int = 0,
        inode: int = 0,
        digest: int = 0,
        rows: Rows | Callable[[], Rows] = NO_ROWS,
    ) -> None:
        self.error = error
        """An errno; 0: it was read whole."""
        self.cookie = cookie
        """SO_NETNS_COOKIE: unique until the machine restarts."""
        self.inode = inode
        self.digest = digest
        """Equal digests, equal rows (but for one chance in 2^64)."""
        self._rows = rows
        self._veths: dict[tuple[int, int], Link] | None = None

    @property
    def rows(self) -> Rows:
        """All rows."""
        if not isinstance(self._rows, Rows):
            self._rows = self._rows()
        return self._rows

    @property
    def links(self) -> tuple[Link, ...]:
        """Network devices."""
        return self.rows.links

    def veth(self, index: int, peer: int) -> Link | None:
        """The veth numbered `index` whose other end has the number `peer` where it is."""
        if self._veths is None:
            found = self.rows.links
            self._veths = {(link.index, link.peer): link for link in found if link.kind == "veth"}
        return self._veths.get((index, peer))

    @property
    def addresses(self) -> tuple[LinkAddress, ...]:
        """Addresses of all links."""
        return self.rows.addresses

    @property
    def routes(self) -> tuple[RouteRow, ...]:
        """Unicast, blackhole and such routes of all tables."""
        return self.rows.routes

    @property
    def rules(self) -> tuple[RuleRow, ...]:
        """Policy rules."""
        return self.rows.rules

    @property
    def neighbours(self) -> tuple[NeighbourRow, ...]:
        """Neighbours of ours: the host's all, elsewhere those of link routes to a gateway."""
        return self.rows.neighbours

    @property
    def table(self) -> tuple[TableRow, ...]:
        """What bridges are told about their ports; the host's alone."""
        return self.rows.table

    @property
    def sysctls(self) -> tuple[str | None, ...]:
        """The values asked for."""
        return self.rows.sysctls
