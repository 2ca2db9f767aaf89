"""Operations on one entry: an address, a route, a rule, a neighbour, a sysctl; and what all
operations share. The rest is in `links.py` and `ops.py`, which offers all of them.
"""

from collections.abc import Iterable

import msgspec

from reconciler.core.model import (
    PORT_HAIRPIN,
    PORT_ISOLATED,
    PORT_LOCKED,
    Address,
    InterfaceAddress,
    Subnet,
)
from reconciler.core.names import mac_text
from reconciler.core.rows import NeighbourRow
from reconciler.core.wanted import DesiredRoute, DesiredRule

CONNECTED_METRIC = {4: 0, 6: 256}
"""What the kernel gives the route to the subnet of an address (IP6_RT_PRIO_ADDRCONF)."""

Word = str | int | Address | InterfaceAddress | Subnet


def shell(words: Iterable[str]) -> str:
    """A command line, quoted as a shell needs it."""
    import shlex

    return shlex.join(words)


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """A change to one object. `netns` is a file of the netns dir, or `/proc/PID/ns/net` where a hook
    attached a namespace; empty: the host itself."""

    object: str
    netns: str = ""
    interrupts: bool = False
    """Whether it cuts the traffic of a running container for a moment or for good."""

    @property
    def action(self) -> str:
        """create, update or remove: what becomes of the object."""
        return "update"

    def describe(self) -> str:
        """The change in one line, without the object's name."""
        raise AssertionError(f"{type(self).__name__} does not describe itself")

    def commands(self) -> list[str]:
        """The same change by hand."""
        return []

    def _ip(self, *words: Word) -> str:
        lead = ["ip", "-n", self.netns] if self.netns else ["ip"]
        if self.netns.startswith("/"):
            lead = ["nsenter", f"--net={self.netns}", "ip"]
        return shell([*lead, *map(str, words)])

    def _sysctl(self, name: str, value: str) -> str:
        lead = ["ip", "netns", "exec", self.netns] if self.netns else []
        if self.netns.startswith("/"):
            lead = ["nsenter", f"--net={self.netns}"]
        return shell([*lead, "sysctl", "-qw", f"{name}={value}"])


class AddAddress(Operation, frozen=True, kw_only=True):
    """An address that is missing."""

    link: str
    address: InterfaceAddress

    def describe(self) -> str:
        return f"add {self.address} to {self.link}"

    def commands(self) -> list[str]:
        return [address_line(self, self.link, self.address, "add")]


class RemoveAddress(Operation, frozen=True, kw_only=True):
    """An address of ours that is no longer declared."""

    link: str
    address: InterfaceAddress

    def describe(self) -> str:
        return f"remove {self.address} from {self.link}"

    def commands(self) -> list[str]:
        return [self._ip("address", "del", self.address, "dev", self.link)]


class AddRoute(Operation, frozen=True, kw_only=True):
    """A route that is missing."""

    route: DesiredRoute
    connected: bool = False
    """Whether it is the one that the kernel itself gives an address of ours: it goes with that."""

    def describe(self) -> str:
        return f"add route {self.route}"

    def commands(self) -> list[str]:
        words = route_words("add", self.route)
        if self.connected:
            words[-1] = "kernel"
            words += ["metric", CONNECTED_METRIC[6]] if self.route.to.version == 6 else []
        return [self._ip(*words)]


class RemoveRoute(Operation, frozen=True, kw_only=True):
    """A route of ours that is no longer declared."""

    route: DesiredRoute

    def describe(self) -> str:
        return f"remove route {self.route}"

    def commands(self) -> list[str]:
        return [self._ip(*route_words("del", self.route))]


class AddRule(Operation, frozen=True, kw_only=True):
    """A source rule that is missing."""

    rule: DesiredRule

    def describe(self) -> str:
        return f"add rule {self.rule}"

    def commands(self) -> list[str]:
        return [self._ip(*rule_words("add", self.rule))]


class RemoveRule(Operation, frozen=True, kw_only=True):
    """A source rule of ours that is no longer declared."""

    rule: DesiredRule

    def describe(self) -> str:
        return f"remove rule {self.rule}"

    def commands(self) -> list[str]:
        return [self._ip(*rule_words("del", self.rule))]


class AddNeighbour(Operation, frozen=True, kw_only=True):
    """A permanent neighbour entry that is missing or wrong."""

    link: str
    address: Address
    mac: bytes

    def describe(self) -> str:
        return f"add neighbour {self.address} at {mac_text(self.mac)} on {self.link}"

    def commands(self) -> list[str]:
        mac = mac_text(self.mac)
        words: list[Word] = ["neigh", "replace", self.address, "lladdr", mac, "dev", self.link]
        return [self._ip(*words, "nud", "permanent", "protocol", "0x72")]


class RemoveNeighbour(Operation, frozen=True, kw_only=True):
    """A permanent neighbour entry of ours, on the host, that nobody needs any more."""

    link: str
    row: NeighbourRow

    def describe(self) -> str:
        return f"remove neighbour {self.row.address} from {self.link}"

    def commands(self) -> list[str]:
        return [self._ip("neigh", "del", self.row.address, "dev", self.link)]


class TellBridge(Operation, frozen=True, kw_only=True):
    """A bridge is told what stands behind a port, or that something does no longer."""

    link: str
    index: int
    mac: bytes
    forget: bool = False

    def describe(self) -> str:
        if self.forget:
            return f"forget {mac_text(self.mac)} behind {self.link}"
        return f"tell the bridge of {self.link} that {mac_text(self.mac)} is behind it"

    def commands(self) -> list[str]:
        return [table_line("del" if self.forget else "replace", self.link, self.mac)]


class SetSysctl(Operation, frozen=True, kw_only=True):
    """A sysctl that differs; slashes part the name where an interface's name holds dots."""

    name: str
    value: str
    if_there: bool = False
    """Whether it is as well where there is no such entry."""

    def describe(self) -> str:
        return f"set {self.name} to {self.value}"

    def commands(self) -> list[str]:
        return [self._sysctl(self.name, self.value)]


def route_words(verb: str, route: DesiredRoute) -> list[Word]:
    """The words of `ip route add` for a route of ours."""
    words: list[Word] = ["route", verb, "default" if route.to.prefix == 0 else route.to]
    if route.to.version == 6:
        words.insert(0, "-6")
    if route.via is not None:
        words += ["via", route.via]
    if route.source is not None:
        words += ["src", route.source]
    return [*words, "dev", route.link, "table", route.table, "proto", "0x72"]


def rule_words(verb: str, rule: DesiredRule) -> list[Word]:
    """The words of `ip rule add` for a rule of ours."""
    words: list[Word] = ["-6"] if rule.source.version == 6 else []
    words += ["rule", verb, "from", rule.source, "lookup", rule.table]
    return [*words, "priority", rule.priority, "protocol", "0x72"]


def address_line(op: Operation, link: str, address: InterfaceAddress, verb: str) -> str:
    words: list[Word] = ["address", verb, address]
    if address.version == 6:
        words.append("nodad")
    elif address.prefix < 31:
        words += ["brd", "+"]
    # `proto` is left out: iproute2 before 6.3 does not know it for addresses.
    return op._ip(*words, "dev", link)


def table_line(verb: str, link: str, mac: bytes) -> str:
    """The `bridge fdb` line of a port's entry."""
    return shell(["bridge", "fdb", verb, mac_text(mac), "dev", link, "master", "static", "sticky"])


def port_words(port: int) -> list[str]:
    """The flags of a bridge's port as `ip link` takes them."""

    def state(flag: int) -> str:
        return "on" if port & flag else "off"

    learning = "off" if port & PORT_LOCKED else "on"
    words = ["isolated", state(PORT_ISOLATED), "hairpin", state(PORT_HAIRPIN)]
    return [*words, "locked", state(PORT_LOCKED), "learning", learning]


def other_mtu(mtu: int) -> int:
    """Any MTU but this one, as small in effect as can be."""
    return mtu - 1 if mtu > 1280 else mtu + 1


def accept_ra(link: str) -> str:
    """The sysctl that says whether routers are believed behind a link of the host."""
    return f"net/ipv6/conf/{link}/accept_ra"
