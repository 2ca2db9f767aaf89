"""Operations: one frozen type for each kind of change. The dry run prints what apply carries out.

`object` is what a report calls the thing changed, `describe()` the line for people, `commands()`
the same change as `ip(8)` and `sysctl(8)` lines.
"""

import shlex

from reconciler.core.entries import (
    CONNECTED_METRIC,
    AddAddress,
    AddNeighbour,
    AddRoute,
    AddRule,
    Operation,
    RemoveAddress,
    RemoveNeighbour,
    RemoveRoute,
    RemoveRule,
    SetSysctl,
    TellBridge,
    Word,
    accept_ra,
    address_line,
    other_mtu,
    port_words,
    route_words,
    rule_words,
    table_line,
)
from reconciler.core.model import Address, InterfaceAddress
from reconciler.core.names import container_alias, mac_text, network_alias
from reconciler.core.rows import IPV6_MTU, NeighbourRow
from reconciler.core.wanted import Bridge, Endpoint, Member

__all__ = [
    "CONNECTED_METRIC",
    "AddAddress",
    "AddNeighbour",
    "AddRoute",
    "AddRule",
    "MakeBridge",
    "MakeContainer",
    "MakeEndpoint",
    "MakeGateway",
    "MoveLease",
    "Operation",
    "Rebind",
    "RemoveAddress",
    "RemoveBridge",
    "RemoveContainer",
    "RemoveEndpoint",
    "RemoveGateway",
    "RemoveNeighbour",
    "RemoveRoute",
    "RemoveRule",
    "ReplaceFirewall",
    "SetLink",
    "SetSysctl",
    "TellBridge",
    "WireBundle",
    "WriteDns",
    "accept_ra",
    "endpoint_entries",
    "other_mtu",
]


class MakeBridge(Operation, frozen=True, kw_only=True):
    """A network's bridge, with all that it carries."""

    bridge: Bridge

    @property
    def action(self) -> str:
        return "create"

    def describe(self) -> str:
        carried = " ".join(str(a) for a in self.bridge.addresses) or "no address"
        return f"bridge {self.bridge.name}  {carried} mtu {self.bridge.mtu}"

    def commands(self) -> list[str]:
        name = self.bridge.name
        mac = mac_text(self.bridge.mac)
        return [
            self._ip("link", "add", name, "address", mac, "type", "bridge"),
            self._ip("link", "set", name, "alias", network_alias(self.bridge.network)),
            # A bridge keeps its MTU only once it was changed: first another value.
            self._ip("link", "set", name, "mtu", other_mtu(self.bridge.mtu)),
            self._ip("link", "set", name, "mtu", self.bridge.mtu),
            *_no_noise(self, name, self.bridge.mtu, host=True),
            self._ip("link", "set", name, "up"),
            *(address_line(self, name, a, "add") for a in self.bridge.addresses),
        ]


class RemoveBridge(Operation, frozen=True, kw_only=True):
    """A network's bridge goes."""

    link: str
    index: int

    @property
    def action(self) -> str:
        return "remove"

    def describe(self) -> str:
        return f"bridge {self.link}"

    def commands(self) -> list[str]:
        return [self._ip("link", "del", self.link)]


class MakeGateway(Operation, frozen=True, kw_only=True):
    """A routed network's gateways, on the host's `lo`."""

    addresses: tuple[InterfaceAddress, ...]

    @property
    def action(self) -> str:
        return "create"

    def describe(self) -> str:
        return f"gateway {' '.join(str(a) for a in self.addresses)} on lo"

    def commands(self) -> list[str]:
        return [address_line(self, "lo", a, "add") for a in self.addresses]


class RemoveGateway(Operation, frozen=True, kw_only=True):
    """A gateway on the host's `lo` that no routed network declares any more."""

    address: InterfaceAddress
    whole: bool
    """Whether its network goes, and does not only change its gateway."""

    @property
    def action(self) -> str:
        return "remove" if self.whole else "update"

    def describe(self) -> str:
        return f"gateway {self.address} on lo"

    def commands(self) -> list[str]:
        return [self._ip("address", "del", self.address, "dev", "lo")]


class MakeContainer(Operation, frozen=True, kw_only=True):
    """A whole container: its namespace appears at its path complete or not at all."""

    member: Member

    @property
    def action(self) -> str:
        return "create"

    def describe(self) -> str:
        if not self.member.endpoints:
            return "lo only"
        return ", ".join(_carried(e) for e in self.member.endpoints)

    def commands(self) -> list[str]:
        member = self.member
        lines = [shlex.join(["ip", "netns", "add", member.netns])]
        lines.append(self._ip("link", "set", "lo", "alias", container_alias(member.name)))
        lines.append(self._ip("link", "set", "lo", "up"))
        lines += [self._sysctl(*member.manner)] if member.manner is not None else []
        for endpoint in member.endpoints:
            lines += _endpoint_commands(self, endpoint)
        lines += [self._ip(*route_words("add", r)) for r in member.routes]
        lines += [self._ip(*rule_words("add", r)) for r in member.rules]
        lines += [self._sysctl(name, value) for name, value in member.sysctls]
        return lines


class RemoveContainer(Operation, frozen=True, kw_only=True):
    """A container goes: its path is unmounted, the kernel reaps the rest in its own batches."""

    name: str
    path: str
    """Its file in the netns dir; empty where only host ends are left."""
    ends: tuple[int, ...]
    """Its host ends."""
    neighbours: tuple[NeighbourRow, ...] = ()
    """The host's entries for it that do not go with a link of their own."""
    forced: bool = False
    """Whether host ends that the kernel does not reap are taken away by hand."""
    in_use: bool = False
    """Whether processes keep the namespace alive: nothing is reaped then, or waited for."""

    @property
    def action(self) -> str:
        return "remove"

    def describe(self) -> str:
        return f"namespace {self.path or '(already gone)'}"

    def commands(self) -> list[str]:
        return [shlex.join(["ip", "netns", "del", self.netns])] if self.netns else []


class Rebind(Operation, frozen=True, kw_only=True):
    """The living namespace of a running container is bound to its path again."""

    source: str
    """`/proc/PID/ns/net` of a process inside."""
    path: str

    def describe(self) -> str:
        return f"bind {self.path} again to the namespace of {self.source}"

    def commands(self) -> list[str]:
        pid = self.source.split("/")[2]
        return [shlex.join(["ip", "netns", "attach", self.netns, pid])]


class MakeEndpoint(Operation, frozen=True, kw_only=True):
    """A veth pair of a container that stands."""

    endpoint: Endpoint

    def describe(self) -> str:
        return f"add {_carried(self.endpoint)}"

    def commands(self) -> list[str]:
        return _endpoint_commands(self, self.endpoint)


class RemoveEndpoint(Operation, frozen=True, kw_only=True):
    """A veth pair that is no longer declared."""

    link: str
    index: int
    label: str
    neighbours: tuple[NeighbourRow, ...] = ()
    inside: bool = False
    """Whether link and number are the inner end's, for somebody has moved the host's end away."""

    def describe(self) -> str:
        if self.inside:
            return f"take away {self.label} (its other end has left the host)"
        return f"take away {self.label} (host end {self.link})"

    def commands(self) -> list[str]:
        if self.inside:
            return [self._ip("link", "del", self.link)]
        return [shlex.join(["ip", "link", "del", self.link])]


class SetLink(Operation, frozen=True, kw_only=True):
    """What differs on a link is set. `host` links are addressed on the host, all else in `netns`."""

    link: str
    index: int
    host: bool = False
    name: str | None = None
    mac: bytes | None = None
    mtu: int | None = None
    master: str | None = None
    """A bridge; empty: out of the one it is in."""
    up: bool | None = None
    alias: str | None = None
    gen_mode_none: bool = False
    port: int | None = None
    """How its bridge treats it: PORT_ISOLATED and its like (model.py)."""
    group: int | None = None
    flush: bool = False
    """What its bridge has learned behind it is forgotten."""
    snoop: bool = False
    """A bridge follows multicast groups: what the kernel begins with, and we end with."""

    def words(self) -> list[list[Word]]:
        """The words of one `ip link set` after another."""
        words: list[list[Word]] = []
        if self.name is not None:
            words += [["down"], ["name", self.name], ["up"]]
        if self.mac is not None:
            words.append(["address", mac_text(self.mac)])
        if self.mtu is not None:
            words.append(["mtu", self.mtu])
        if self.gen_mode_none:
            words.append(["addrgenmode", "none"])
        if self.master is not None:
            words.append(["master", self.master] if self.master else ["nomaster"])
        if self.group is not None:
            words.append(["group", self.group])
        if self.port is not None:
            words.append(["type", "bridge_slave", *port_words(self.port)])
        if self.flush:
            words.append(["type", "bridge_slave", "fdb_flush"])
        if self.alias is not None:
            words.append(["alias", self.alias])
        if self.up:
            words.append(["up"])
        if self.snoop:
            words.append(["type", "bridge", "mcast_snooping", 1])
        return words

    def describe(self) -> str:
        plain = [" ".join(str(w) for w in words) for words in self.words()]
        if self.name is not None:
            # Behind what a rename takes: down, the name, up.
            return ", ".join([f"rename {self.link} to {self.name}", *plain[3:]])
        return f"set {self.link} {', '.join(plain)}"

    def commands(self) -> list[str]:
        lines = []
        link = self.link
        lead = ["ip", "-n", self.netns] if self.netns and not self.host else ["ip"]
        for words in self.words():
            lines.append(shlex.join([*lead, "link", "set", link, *map(str, words)]))
            link = self.name if self.name is not None and words[0] == "name" else link
        return lines


class ReplaceFirewall(Operation, frozen=True, kw_only=True):
    """Chains that differ are replaced whole, in one commit a table."""

    differences: tuple[str, ...]
    lines: tuple[str, ...] = ()

    def describe(self) -> str:
        shown = "; ".join(self.differences[:3])
        more = len(self.differences) - 3
        return f"{shown}; and {more} more" if more > 0 else shown

    def commands(self) -> list[str]:
        return list(self.lines)


class WireBundle(Operation, frozen=True, kw_only=True):
    """A bundle's config.json is pointed at the container's namespace."""

    bundle: str

    def describe(self) -> str:
        return f"wire {self.bundle}/config.json (it counts from the next start on)"


class WriteDns(Operation, frozen=True, kw_only=True):
    """A container's resolv.conf and hosts are written."""

    files: tuple[str, ...]

    def describe(self) -> str:
        return f"write {' and '.join(self.files)}"


class MoveLease(Operation, frozen=True, kw_only=True):
    """A kept address gives way; the address itself changes by other operations."""

    old: Address
    new: Address
    reason: str

    def describe(self) -> str:
        return f"lease {self.old} becomes {self.new}: {self.reason}"


def _no_noise(op: Operation, link: str, mtu: int, *, host: bool) -> list[str]:
    """No link-local address by itself and, on the host, no router that is believed."""
    if mtu < IPV6_MTU:
        return []
    if not host:
        return [op._ip("link", "set", link, "addrgenmode", "none")]
    return [
        shlex.join(["ip", "link", "set", link, "addrgenmode", "none"]),
        shlex.join(["sysctl", "-qw", f"{accept_ra(link)}=0"]),
    ]


def _carried(endpoint: Endpoint) -> str:
    shown = [str(a) for a in endpoint.addresses if not a.is_link_local]
    return f"{endpoint.name} {' '.join(shown) or 'no address'} in {endpoint.network}"


def _endpoint_commands(op: Operation, endpoint: Endpoint) -> list[str]:
    host = endpoint.host_name
    add: list[Word] = ["ip", "link", "add", host, "address", mac_text(endpoint.host_mac)]
    add += ["mtu", endpoint.mtu, "numtxqueues", 1, "numrxqueues", 1, "type", "veth"]
    add += ["peer", "name", endpoint.name, "netns", op.netns, "address", mac_text(endpoint.mac)]
    add += ["mtu", endpoint.mtu, "numtxqueues", 1, "numrxqueues", 1]

    def line(*words: Word) -> str:
        return shlex.join(str(w) for w in words)

    lines = [
        line(*add),
        *_no_noise(op, host, endpoint.mtu, host=True),
        line("ip", "link", "set", host, "alias", endpoint.alias),
    ]
    if endpoint.group:
        lines.append(line("ip", "link", "set", host, "group", endpoint.group))
    else:
        lines.append(line("ip", "link", "set", host, "master", endpoint.bridge))
    if endpoint.port:
        words = port_words(endpoint.port)
        lines.append(line("ip", "link", "set", host, "type", "bridge_slave", *words))
    lines += [table_line("replace", host, mac) for mac in sorted(endpoint.told)]
    if endpoint.manner and endpoint.mtu >= IPV6_MTU:
        lines.append(op._sysctl(*endpoint.manner))
    lines += [
        line("ip", "link", "set", host, "up"),
        *_no_noise(op, endpoint.name, endpoint.mtu, host=False),
        op._ip("link", "set", endpoint.name, "up"),
    ]
    lines += [address_line(op, endpoint.name, a, "add") for a in endpoint.addresses]
    for step in endpoint_entries(endpoint, owner=op.object, netns=op.netns):
        lines += step.commands()
    return lines


def endpoint_entries(endpoint: Endpoint, *, owner: str, netns: str) -> list[Operation]:
    """The neighbours and host routes of an endpoint, as single operations."""
    result: list[Operation] = [
        AddNeighbour(
            object=owner, netns=netns, link=endpoint.name, address=a, mac=endpoint.host_mac
        )
        for a in endpoint.gateways
    ]
    result += [AddRoute(object=owner, route=route) for route in endpoint.routes]
    result += [
        AddNeighbour(object=owner, link=endpoint.host_link, address=a, mac=endpoint.mac)
        for a in endpoint.neighbours
    ]
    return result
