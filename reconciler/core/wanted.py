"""What the kernel is to hold, as values: bridges, gateways, veth pairs, containers with namespaces."""

import msgspec

from reconciler.core import names
from reconciler.core.model import PORT_LOCKED, Address, InterfaceAddress, Place, Subnet
from reconciler.core.policy import NetworkPolicy, Publication

TABLE = 0x7200
"""Reply routing of a container's n-th interface uses table and priority TABLE + n and TABLE."""
OFF, DEAF = "off", "deaf"
"""How an interface treats IPv6: it has none; it believes no router."""


class DesiredRoute(msgspec.Struct, frozen=True, kw_only=True):
    """A route through the interface named `link`; `via` None: on link."""

    to: Subnet
    via: Address | None
    link: str
    table: int = 254
    source: Address | None = None
    """The address that the host speaks with (`src`); on host routes to members only."""

    def __str__(self) -> str:
        to = "default" if self.to.prefix == 0 else str(self.to)
        via = f" via {self.via}" if self.via else ""
        source = f" src {self.source}" if self.source else ""
        table = f" table {self.table}" if self.table != 254 else ""
        return f"{to}{via} dev {self.link}{source}{table}"


class DesiredRule(msgspec.Struct, frozen=True, kw_only=True):
    """`ip rule add from SOURCE lookup TABLE priority PRIORITY`."""

    source: Subnet
    table: int
    priority: int = TABLE

    def __str__(self) -> str:
        return f"from {self.source} lookup {self.table}"


class Bridge(msgspec.Struct, frozen=True, kw_only=True):
    """The bridge of a network; of an external one only `name` and `mtu` are looked at."""

    network: str
    name: str
    external: bool
    mac: bytes
    mtu: int
    addresses: tuple[InterfaceAddress, ...]
    subnets: tuple[Subnet, ...]
    place: Place

    @property
    def object(self) -> str:
        """Its name in reports."""
        return f"network/{self.network}"


class Routed(msgspec.Struct, frozen=True, kw_only=True):
    """A network without a bridge: its gateways stand on the host's `lo`, each member has a route."""

    network: str
    group: int
    """The device group of its members' host ends."""
    mtu: int
    addresses: tuple[InterfaceAddress, ...]
    """The gateways, with full-length prefixes."""
    subnets: tuple[Subnet, ...]
    place: Place

    @property
    def object(self) -> str:
        """Its name in reports."""
        return f"network/{self.network}"


def _manner(link: str, ipv6: str) -> tuple[str, str] | None:
    if not ipv6:
        return None
    key, value = ("disable_ipv6", "1") if ipv6 == OFF else ("accept_ra", "0")
    return f"net/ipv6/conf/{link}/{key}", value


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A veth pair: the host's end in a bridge or by itself, the inner end in the container."""

    network: str
    container: str
    name: str
    host_name: str
    bridge: str
    """Empty in a routed network."""
    mac: bytes
    host_mac: bytes
    mtu: int
    addresses: tuple[InterfaceAddress, ...]
    port: int
    """How the bridge treats the host's end: PORT_ISOLATED and its like (model.py)."""
    group: int = 0
    """The host end's device group; 0 on a bridge."""
    gateways: tuple[Address, ...] = ()
    """Of a routed network: permanent neighbours inside, all at `host_mac`."""
    neighbours: tuple[Address, ...] = ()
    """Its own addresses: permanent neighbours of the host, through `host_link`, at `mac`."""
    routes: tuple[DesiredRoute, ...] = ()
    """The host's routes to it, in a routed network."""
    ipv6: str = ""
    """OFF or DEAF; empty: as the kernel makes it."""

    @property
    def manner(self) -> tuple[str, str] | None:
        """The sysctl of the inner end that says so, and its value."""
        return _manner(self.name, self.ipv6)

    @property
    def told(self) -> frozenset[bytes]:
        """The MACs that its bridge is told to be behind the host's end."""
        return frozenset([self.mac]) if self.port & PORT_LOCKED else frozenset()

    @property
    def host_link(self) -> str:
        """The host's link behind which its addresses are."""
        return self.bridge or self.host_name

    hooked: bool = False
    """Whether a hook attached it."""

    @property
    def alias(self) -> str:
        """The mark on the host's end."""
        return names.endpoint_alias(self.network, self.container, self.name, hook=self.hooked)


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """A container with a namespace of its own (mode network or none)."""

    name: str
    netns: str
    endpoints: tuple[Endpoint, ...]
    routes: tuple[DesiredRoute, ...]
    rules: tuple[DesiredRule, ...]
    sysctls: tuple[tuple[str, str], ...]
    place: Place
    publications: tuple[Publication, ...] = ()
    """Its published ports, by IP version."""
    key: bytes = b""
    """A digest of all that it was made from: equal keys, equal members."""
    hooked: bool = False
    """Whether its namespace is a runtime's; `netns` is where it was found then, else empty."""

    @property
    def object(self) -> str:
        """Its name in reports."""
        return f"container/{self.name}"

    @property
    def manner(self) -> tuple[str, str] | None:
        """The sysctl of a fresh namespace that makes all interfaces treat IPv6 as they are to, and its
        value; None: each is told by itself."""
        said = {endpoint.ipv6 for endpoint in self.endpoints}
        found = _manner("default", said.pop()) if len(said) == 1 else None
        declared = {name.replace(".", "/") for name, _ in self.sysctls}
        return None if found is None or found[0] in declared else found


class Desired(msgspec.Struct, frozen=True, kw_only=True):
    """All that the kernel is to hold, and what stands in the way of the rest."""

    bridges: dict[str, Bridge]
    routed: dict[str, Routed]
    members: dict[str, Member]
    policies: tuple[NetworkPolicy, ...]
    forwarding: tuple[int, ...]
    """IP versions that the host must forward."""
    problems: dict[str, str]
    """Object (`network/a`, `container/b`) → why it cannot be made as declared."""


def frame(desired: Desired) -> Desired:
    """The same without members: networks as they are resolved."""
    problems = {n: text for n, text in desired.problems.items() if n.startswith("network/")}
    return msgspec.structs.replace(desired, members={}, problems=problems)
