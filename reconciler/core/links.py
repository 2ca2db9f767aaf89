"""Operations on links: a veth pair that comes or goes, and what differs on a link that stands.

A whole container is made of the same pairs; see `ops.py`, which offers all operations.
"""

from reconciler.core.entries import (
    AddNeighbour,
    AddRoute,
    Operation,
    Word,
    accept_ra,
    address_line,
    port_words,
    shell,
    table_line,
)
from reconciler.core.names import mac_text
from reconciler.core.rows import IPV6_MTU, NeighbourRow
from reconciler.core.wanted import Endpoint


class MakeEndpoint(Operation, frozen=True, kw_only=True):
    """A veth pair of a container that stands."""

    endpoint: Endpoint

    def describe(self) -> str:
        return f"add {carried(self.endpoint)}"

    def commands(self) -> list[str]:
        return endpoint_commands(self, self.endpoint)


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
        return [shell(["ip", "link", "del", self.link])]


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
            lines.append(shell([*lead, "link", "set", link, *map(str, words)]))
            link = self.name if self.name is not None and words[0] == "name" else link
        return lines


def no_noise(op: Operation, link: str, mtu: int, *, host: bool) -> list[str]:
    """No link-local address by itself and, on the host, no router that is believed."""
    if mtu < IPV6_MTU:
        return []
    if not host:
        return [op._ip("link", "set", link, "addrgenmode", "none")]
    return [
        shell(["ip", "link", "set", link, "addrgenmode", "none"]),
        shell(["sysctl", "-qw", f"{accept_ra(link)}=0"]),
    ]


def carried(endpoint: Endpoint) -> str:
    """What a veth pair gives its container, in a few words."""
    shown = [str(a) for a in endpoint.addresses if not a.is_link_local]
    return f"{endpoint.name} {' '.join(shown) or 'no address'} in {endpoint.network}"


def endpoint_commands(op: Operation, endpoint: Endpoint) -> list[str]:
    """A veth pair with all that it carries, by hand."""
    host = endpoint.host_name
    add: list[Word] = ["ip", "link", "add", host, "address", mac_text(endpoint.host_mac)]
    add += ["mtu", endpoint.mtu, "numtxqueues", 1, "numrxqueues", 1, "type", "veth"]
    add += ["peer", "name", endpoint.name, "netns", op.netns, "address", mac_text(endpoint.mac)]
    add += ["mtu", endpoint.mtu, "numtxqueues", 1, "numrxqueues", 1]

    def line(*words: Word) -> str:
        return shell(str(w) for w in words)

    lines = [
        line(*add),
        *no_noise(op, host, endpoint.mtu, host=True),
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
        *no_noise(op, endpoint.name, endpoint.mtu, host=False),
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
