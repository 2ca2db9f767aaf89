"""What the firewall is asked for: the traffic policy of every network, free of any backend."""

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from reconciler.core.model import Address, HostPort, Subnet

LOOPBACK = Subnet(4, 127 << 24, 8)


class Lead(msgspec.Struct, frozen=True):
    """A run of the host's ports and where it leads."""

    version: int
    protocol: str
    host_ip: Address | None
    first: int
    last: int
    target: Address
    target_port: int

    def meets(self, other: "Lead") -> bool:
        """Whether a packet could be meant for either."""
        return (
            (self.version, self.protocol) == (other.version, other.protocol)
            and self.first <= other.last
            and other.first <= self.last
            and (None in (self.host_ip, other.host_ip) or self.host_ip == other.host_ip)
        )


class Publication(msgspec.Struct, frozen=True, kw_only=True):
    """A run of the host's ports that leads to one container, for one IP version."""

    network: str
    container: str
    version: int
    protocol: str
    """tcp, udp or sctp."""
    host_ip: Address | None
    """None: every address of the host."""
    host_port: int
    count: int
    target: Address
    target_port: int

    @property
    def object(self) -> str:
        """Whose rules these are: `NETWORK/CONTAINER`."""
        return f"{self.network}/{self.container}"

    @property
    def rank(self) -> tuple[Any, ...]:
        """By which they are sorted."""
        who = (self.network, self.container, self.version, self.protocol)
        host = () if self.host_ip is None else (self.host_ip,)
        return (*who, self.host_port, host)

    @property
    def lead(self) -> Lead:
        """The same without whose it is."""
        last = self.host_port + self.count - 1
        return Lead(self.version, self.protocol, self.host_ip, self.host_port, last,
                    self.target, self.target_port)  # fmt: skip

    @property
    def looped(self) -> bool:
        """Whether 127.0.0.0/8 leads there: an IPv4 port of every address, or of a loopback one."""
        return self.version == 4 and (self.host_ip is None or LOOPBACK.holds(self.host_ip))


def taken(
    publications: "tuple[Publication, ...]", heard: Iterable[tuple[str, int, Address | None, int]]
) -> Iterator[str]:
    """A sentence for each host port that a program of the host listens on, too.

    `heard`: protocol, IP version, address (None: all) and port of each listening socket.
    """
    if not publications:
        return
    by_port: dict[tuple[str, int], list[tuple[int, Address | None]]] = {}
    for protocol, version, address, port in heard:
        by_port.setdefault((protocol, port), []).append((version, address))
    for one in publications:
        for port in range(one.host_port, one.host_port + one.count):
            for version, address in by_port.get((one.protocol, port), ()):
                both = version == one.version or (version == 6 and address is None)
                if both and (None in (one.host_ip, address) or one.host_ip == address):
                    yield (
                        f"a program of the host listens on port {port}/{one.protocol}, too: what "
                        f"comes to it goes to container {one.container} (see `ss -lnp`)"
                    )
                    break


class Sender(msgspec.Struct, frozen=True):
    """A port of a bridge of ours, and the addresses that may be sent from behind it."""

    network: str
    container: str
    link: str
    """The host's end."""
    addresses: tuple[Address, ...]


class NetworkPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """How packets may enter and leave one network."""

    name: str
    link: str
    """The network's link on the host: its bridge; empty: it is routed."""
    subnets: tuple[Subnet, ...]
    uplinks: tuple[str, ...]
    """Links that lead out; empty: every link that is no runcnet network's."""
    masquerade: tuple[int, ...]
    """IP versions translated on the way out."""
    inbound: str
    """`established`: only replies enter; `open`: what comes from an uplink enters too."""
    internal: bool
    isolate_members: bool
    allow: tuple[str, ...] = ()
    """Networks whose members may open connections to this one's."""
    host_access: bool | tuple[HostPort, ...] = True
    """What members may open on the host itself: all, nothing, or these ports."""
    denied: tuple[Subnet, ...] = ()
    """Where members may not go, unless it is a fellow."""
    antispoof: bool = True
    """Whether members can send from their own addresses alone."""
    group: int = 0
    """The device group of a routed network's host ends; 0: it has a bridge."""


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """All that the firewall is asked for. A policy without networks and guards asks for no chains."""

    networks: tuple[NetworkPolicy, ...] = ()
    """In the order of their names."""
    guards: tuple[int, ...] = ()
    """IP versions for which runcnet turned forwarding on: what neither comes from nor goes to one of
    its networks is dropped by the last forward rule."""
    publications: tuple[Publication, ...] = ()
    """Sorted; each in a network of `networks`."""
    kept_ports: frozenset[str] = frozenset()
    """Containers that are held back, or whose declaration is unreadable and not remembered: their
    published ports in the kernel stay as they are."""
    senders: tuple[Sender, ...] = ()
    """Whose addresses are checked."""
    kept_senders: frozenset[str] = frozenset()
    """Containers that are held back or not readable: what they may send from stays as it is."""
    kept: frozenset[str] = frozenset()
    """Networks whose declaration is unreadable and not remembered: their rules in the kernel stay
    as they are, in their place."""
    yielding: bool = False
    """A jump of ours that others have put rules before is left there: two tools that both want the
    first place must not fight without end."""

    def is_as(self, other: "Policy") -> bool:
        """Whether both ask for the same, of senders aside: told by what they were made of, for to
        compare thousands of ports one by one takes long."""
        return (
            self.networks is other.networks
            and self.publications is other.publications
            and (self.guards, self.kept, self.kept_ports)
            == (other.guards, other.kept, other.kept_ports)
        )
