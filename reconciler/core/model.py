"""The value types that every layer shares: addresses, subnets, routes, networks, containers.

Addresses are structs of integers and not `ipaddress` objects: a pass over ten thousand
containers hashes and compares hundreds of thousands of them, which structs do in C.
"""

from _socket import AF_INET, AF_INET6, inet_ntop
from collections.abc import Mapping

import msgspec

BITS: dict[int, int] = {4: 32, 6: 128}
PORT_ISOLATED, PORT_HAIRPIN, PORT_LOCKED = 1, 2, 4
"""How a bridge treats a port: nothing between two such ports; a frame may leave where it came in; only
MACs that were told stand behind it (enum rcn_port of the C layer)."""
PROTOCOL = 0x72
"""The protocol number on every address, route and rule that runcnet makes (rtnetlink(7))."""
FORWARDING: dict[int, str] = {4: "net/ipv4/ip_forward", 6: "net/ipv6/conf/all/forwarding"}
"""IP version → the host's sysctl; without the latter the kernel has no IPv6."""
NEIGHBOURS = tuple(
    f"net/ipv{version}/neigh/default/gc_thresh{step}" for version in (4, 6) for step in (1, 2, 3)
)
"""How many neighbours the kernel keeps without a thought (1), gladly (2) and at most (3), over all
namespaces together; only the initial namespace has the settings (arp(7))."""
PING_GROUPS = "net.ipv4.ping_group_range"
"""Lets every group open ICMP datagram sockets: ping without CAP_NET_RAW (icmp(7))."""


class Address(msgspec.Struct, frozen=True, order=True, array_like=True, gc=False):
    """One IP address: its version (4 or 6) and its value as an integer."""

    version: int
    value: int

    def __str__(self) -> str:
        return _ip(self.version, self.value)


class Subnet(msgspec.Struct, frozen=True, order=True, array_like=True, gc=False):
    """An IP network: `value` is its lowest address, `prefix` its length in bits."""

    version: int
    value: int
    prefix: int

    def __str__(self) -> str:
        return f"{_ip(self.version, self.value)}/{self.prefix}"

    @property
    def last(self) -> int:
        """The highest address, as an integer: the broadcast address in IPv4."""
        return self.value | ((1 << (BITS[self.version] - self.prefix)) - 1)

    def holds(self, address: Address) -> bool:
        """Whether `address` lies inside."""
        return self.version == address.version and self.value <= address.value <= self.last

    def overlaps(self, other: "Subnet") -> bool:
        """Whether the two share an address."""
        return (
            self.version == other.version and self.value <= other.last and other.value <= self.last
        )


class InterfaceAddress(msgspec.Struct, frozen=True, order=True, array_like=True, gc=False):
    """An address as an interface carries it: with the length of its prefix in bits."""

    version: int
    value: int
    prefix: int

    def __str__(self) -> str:
        return f"{_ip(self.version, self.value)}/{self.prefix}"

    @property
    def address(self) -> Address:
        """The address without its prefix."""
        return Address(self.version, self.value)

    @property
    def is_link_local(self) -> bool:
        """Whether it is an IPv6 link-local address (fe80::/10, RFC 4291)."""
        return self.version == 6 and self.value >> 118 == 0xFE80 >> 6

    @property
    def subnet(self) -> Subnet:
        """The network that this address is in."""
        host = BITS[self.version] - self.prefix
        return Subnet(self.version, self.value >> host << host, self.prefix)


class Range(msgspec.Struct, frozen=True, order=True, array_like=True, gc=False):
    """A run of addresses, both ends included."""

    version: int
    first: int
    last: int

    def __str__(self) -> str:
        return f"{_ip(self.version, self.first)}-{_ip(self.version, self.last)}"


class Place(msgspec.Struct, frozen=True, order=True, array_like=True, gc=False):
    """Where in the files something stands; `line` and `column` count from 1. Line 0: in no file, but
    attached by a hook."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else "hook"


def _ip(version: int, value: int) -> str:
    if version == 4:
        return inet_ntop(AF_INET, value.to_bytes(4, "big"))
    return inet_ntop(AF_INET6, value.to_bytes(16, "big"))


def parse_address(text: str) -> Address:
    """Read `176.10.0.1` or `2001:db8::1`. Raises ValueError, also for an IPv6 zone."""
    from ipaddress import ip_address  # it takes a millisecond, and a hook reads none

    ip = ip_address(text)
    if getattr(ip, "scope_id", None):
        raise ValueError(f"{text!r} has a zone")
    return Address(ip.version, int(ip))


def parse_subnet(text: str) -> Subnet:
    """Read `176.10.0.0/16`. Raises ValueError, also where host bits are set or the prefix is absent."""
    if "/" not in text:
        raise ValueError(f"{text!r} has no prefix length")
    from ipaddress import ip_network

    net = ip_network(text)
    return Subnet(net.version, int(net.network_address), net.prefixlen)


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """`ip route add TO via VIA`; `to` with prefix 0 is the default route."""

    to: Subnet
    via: Address


class PortForward(msgspec.Struct, frozen=True, kw_only=True):
    """A published run of ports; `host_ip` None means every address of the host."""

    host_ip: Address | None
    host_port: int
    container_port: int
    count: int = 1
    protocol: str = "tcp"
    network: str = ""
    """Whose address it leads to; empty: that of the default route's interface, else the first's."""

    def __str__(self) -> str:
        def run(first: int) -> str:
            return str(first) if self.count == 1 else f"{first}-{first + self.count - 1}"

        ip = self.host_ip
        lead = "" if ip is None else f"[{ip}]:" if ip.version == 6 else f"{ip}:"
        tail = "" if self.protocol == "tcp" else f"/{self.protocol}"
        return f"{lead}{run(self.host_port)}:{run(self.container_port)}{tail}"


class HostPort(msgspec.Struct, frozen=True, order=True, array_like=True, gc=False):
    """A run of ports of the host that members may reach; `protocol`: tcp, udp or sctp."""

    protocol: str
    first: int
    last: int

    def __str__(self) -> str:
        run = str(self.first) if self.first == self.last else f"{self.first}-{self.last}"
        return f"{run}/{self.protocol}"


class Dns(msgspec.Struct, frozen=True, kw_only=True):
    """What a container's resolv.conf and hosts say; `host` copies the host's servers."""

    host: bool = False
    servers: tuple[Address, ...] = ()
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    hosts: tuple[tuple[str, Address], ...] = ()


class Network(msgspec.Struct, frozen=True, kw_only=True):
    """A declared network, every default filled in except `mtu` (None: taken from the uplink)."""

    name: str
    type: str
    bridge: str
    external: bool
    subnets: tuple[Subnet, ...]
    gateways: tuple[Address, ...]
    """At most one of each version; none at all for `gateways: none` or an external network that names none."""
    ranges: tuple[Range, ...]
    """What may be handed out, at least one for each subnet."""
    uplinks: tuple[str, ...]
    """Empty: every link that is no runcnet network."""
    masquerade: tuple[int, ...]
    """The IP versions that are translated on the way out."""
    inbound: str
    internal: bool
    isolate_members: bool
    antispoof: bool
    """Whether members can send from what is their own alone; never on somebody else's bridge."""
    allow: tuple[str, ...]
    """Networks whose members may open connections to this one's."""
    host_access: bool | tuple[HostPort, ...]
    """What members may open on the host itself: all (True), nothing (False), or these ports."""
    denied: tuple[Subnet, ...]
    """Destinations that members may not reach, wherever they lie."""
    mtu: int | None
    routes: tuple[Route, ...]
    dns: Dns | None
    place: Place

    def subnet(self, version: int) -> Subnet | None:
        """The subnet of that IP version, if there is one."""
        return next((s for s in self.subnets if s.version == version), None)

    def gateway(self, version: int) -> Address | None:
        """The gateway of that IP version, if there is one."""
        return next((g for g in self.gateways if g.version == version), None)


class Interface(msgspec.Struct, frozen=True, kw_only=True):
    """One declared interface of a container."""

    network: str
    name: str
    addresses: tuple[Address, ...]
    """Given in the file, in its order."""
    automatic: tuple[int, ...]
    """IP versions for which an address is handed out, in ascending order."""
    mac: bytes | None
    mtu: int | None
    host_interface: str | None
    default_versions: tuple[int, ...]
    """IP versions whose default route leads through this interface."""
    place: Place
    antispoof: bool = True
    """Whether it can send from what is its own alone; the network's, where nothing else is said."""


class Container(msgspec.Struct, frozen=True, kw_only=True):
    """A declared container; a replica is a container like any other."""

    name: str
    netns: str
    mode: str
    """network, none, host or join."""
    join: str | None
    interfaces: tuple[Interface, ...]
    routes: tuple[Route, ...]
    ports: tuple[PortForward, ...]
    sysctls: tuple[tuple[str, str], ...]
    """Names with dots (net.core.somaxconn) and their values, sorted by name."""
    dns: Dns | None
    bundle: str | None
    place: Place
    shape: bytes = b""
    """Its body in the file, in a form of its own: equal shapes say the same."""
    hooked: bool = False
    """Whether a hook attached it: its namespace is a runtime's, and `netns` is empty."""

    def serving(self, port: PortForward) -> Interface:
        """The interface that a port leads to: of the network it names, else the one with the default
        route, else the first."""
        able = [i for i in self.interfaces if port.network in ("", i.network)]
        return next((i for i in able if i.default_versions), able[0])


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """All that the files declare together."""

    networks: dict[str, Network]
    containers: dict[str, Container]


class Rejection(msgspec.Struct, frozen=True, kw_only=True):
    """One error in a file, with its place and, behind brackets in the message, the remedy."""

    place: Place
    path: str
    message: str

    def __str__(self) -> str:
        lead = f"{self.place.file}:{self.place.line}:{self.place.column}: "
        return lead + (f"{self.path}: {self.message}" if self.path else self.message)


class Loaded(msgspec.Struct, frozen=True, kw_only=True):
    """What is declared, and what was wrong."""

    spec: Spec
    rejections: tuple[Rejection, ...]
    accepted: frozenset[str]
    remembered: frozenset[str]
    """Rejected files for which their last good content stands in."""
    lost: frozenset[str]
    """Rejected files without one."""
    waiting: dict[str, str]
    """Containers that cannot be judged while something they refer to is unreadable, and why."""
    stuck: str = ""
    """Why what a rejected file said no longer fits the others; empty: it does."""
    orphans: Mapping[str, str] = {}
    """Containers attached by a hook that do not fit what is declared now, and why: left as they are."""
