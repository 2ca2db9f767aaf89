"""A kernel in miniature: links, addresses, routes and rules of a host and its namespaces, and what each
operation makes of them."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from msgspec.structs import replace

from reconciler.core import ops
from reconciler.core.model import BITS, PROTOCOL, Address, InterfaceAddress, Subnet
from reconciler.core.names import container_alias, network_alias
from reconciler.core.observed import FileState, Observed, Witness, observe_owned
from reconciler.core.rows import (
    NO_IPV6,
    Link,
    LinkAddress,
    NeighbourRow,
    RouteRow,
    Rows,
    RuleRow,
    Space,
    TableRow,
)
from reconciler.core.wanted import DesiredRoute, Endpoint, Member

UP, UNICAST, KERNEL = 1, 1, 2
NO_WITNESS = Witness(present=False, spaces={}, ends={}, bridges={})


@dataclass
class Room:
    """One network namespace."""

    cookie: int
    links: dict[int, Link] = field(default_factory=dict)
    addresses: list[LinkAddress] = field(default_factory=list)
    routes: list[RouteRow] = field(default_factory=list)
    rules: list[RuleRow] = field(default_factory=list)
    neighbours: list[NeighbourRow] = field(default_factory=list)
    sysctls: dict[str, str] = field(default_factory=dict)
    told: dict[tuple[int, bytes], int] = field(default_factory=dict)
    """Bridge and MAC → the port that it is told to be behind."""

    def space(self, names: Iterable[str]) -> Space:
        rows = Rows(
            tuple(self.links.values()), tuple(self.addresses), tuple(self.routes),
            tuple(self.rules), tuple(self.neighbours), tuple(self.sysctls.get(n) for n in names),
            tuple(TableRow(port, mac) for (_, mac), port in self.told.items()),
        )  # fmt: skip
        return Space(cookie=self.cookie, inode=self.cookie, rows=rows)

    def index(self, name: str) -> int:
        return next(i for i, link in self.links.items() if link.name == name)

    def drop(self, index: int) -> None:
        self.links.pop(index, None)
        self.addresses = [a for a in self.addresses if a.index != index]
        self.routes = [r for r in self.routes if r.index != index]
        self.neighbours = [n for n in self.neighbours if n.index != index]
        self.unplug(index)

    def unplug(self, port: int) -> None:
        """A port takes its entries along."""
        self.told = {key: at for key, at in self.told.items() if at != port and key[0] != port}


def new_link(index: int, name: str, **more: object) -> Link:
    values: dict[str, object] = {
        "index": index, "name": name, "kind": "", "mac": b"", "mtu": 1500, "flags": UP, "master": 0,
        "peer": 0, "peer_nsid": -1, "gen_mode": 1, "port": 0, "alias": "",
    }  # fmt: skip
    return Link(**{**values, **more})  # type: ignore[arg-type]


class Kernel:
    """The host, its netns dir, and namespaces that only a process holds."""

    def __init__(self) -> None:
        self.host = Room(1)
        self.host.links[1] = new_link(1, "lo")
        self.host.links[2] = new_link(2, "eth0")
        self.rooms: dict[str, Room] = {}
        self.living: dict[str, Room] = {}
        self.sysctls = {"net/ipv4/ip_forward": "0", "net/ipv6/conf/all/forwarding": "0",
                        "net/ipv6/conf/eth0/accept_ra": "1"}  # fmt: skip
        self.last = 100

    def fresh(self) -> int:
        self.last += 1
        return self.last

    def observe(self, names: tuple[str, ...], witness: Witness = NO_WITNESS) -> Observed:
        return observe_owned(
            host=self.host.space(()), netns_dir="/run/netns",
            files={name: FileState.NAMESPACE for name in self.rooms},
            spaces={name: room.space(names) for name, room in self.rooms.items()},
            living={name: room.space(names) for name, room in self.living.items()},
            witness=witness, sysctls=dict(self.sysctls), space_sysctls=names,
            nsids={r.cookie: r.cookie for r in [*self.rooms.values(), *self.living.values()]},
        )  # fmt: skip

    def apply(self, operations: Iterable[ops.Operation]) -> None:
        for op in operations:
            self._apply(op)

    def _room(self, op: ops.Operation) -> Room:
        return self.rooms[op.netns] if op.netns else self.host

    def _apply(self, op: ops.Operation) -> None:
        match op:
            case ops.MakeBridge():
                b, index = op.bridge, self.fresh()
                assert b.name not in {x.name for x in self.host.links.values()}, "EEXIST"
                self.host.links[index] = new_link(
                    index,
                    b.name,
                    kind="bridge",
                    mac=b.mac,
                    mtu=b.mtu,
                    alias=network_alias(b.network),
                )
                self._carry(self.host, index, b.addresses)
            case ops.RemoveBridge():
                self._delete(op.index)
            case ops.RemoveEndpoint():
                assert not op.inside
                self._delete(op.index)
                self.host.neighbours = [n for n in self.host.neighbours if n not in op.neighbours]
            case ops.MakeContainer():
                assert op.netns not in self.rooms, "EEXIST"
                self._make(op.member)
            case ops.RemoveContainer():
                room = self.rooms.pop(op.netns, None)
                gone = set(op.neighbours)
                self.host.neighbours = [n for n in self.host.neighbours if n not in gone]
                for index in op.ends:
                    self.host.drop(index)
                assert room is not None or not op.path
            case ops.Rebind():
                self.rooms[op.netns] = self.living.pop(op.source)
            case ops.MakeEndpoint():
                self._veth(self.rooms[op.netns], op.endpoint)
            case ops.SetLink():
                self._set(op)
            case ops.AddAddress():
                room = self._room(op)
                self._carry(room, room.index(op.link), [op.address])
            case ops.RemoveAddress():
                room = self._room(op)
                index = room.index(op.link)
                held = [a for a in room.addresses if a.index == index and a.address == op.address]
                assert held, "EADDRNOTAVAIL"
                # With the first address of an IPv4 subnet its others go, and routes with their next hop.
                room.addresses = [
                    a for a in room.addresses
                    if a.index != index or a.address.subnet != op.address.subnet
                    or (op.address.version == 6 and a.address != op.address)
                ]  # fmt: skip
                # IPv6 keeps what leads through a link, IPv4 does not where the last address goes.
                version, left = op.address.version, {a.address.subnet for a in room.addresses}
                room.routes = [
                    r
                    for r in room.routes
                    if r.index != index
                    or r.to.version != version
                    or (r.protocol == PROTOCOL and version == 6)
                    or (r.protocol == KERNEL and r.to in left)
                ]
                room.neighbours = [n for n in room.neighbours if n.index != index]
            case ops.AddRoute():
                room = self._room(op)
                row = self._route(room, op.route)
                if op.connected:
                    row = self._connected(row.index, op.route.to, op.route.source)
                    assert row not in room.routes, "EEXIST"
                    room.routes.append(row)
                    return
                same = [r for r in room.routes if (r.to, r.table) == (row.to, row.table)]
                # A route of ours takes its own place; on the host, that of who had the address before.
                assert room is self.host or same in ([], [row]), "EEXIST"
                room.routes = [r for r in room.routes if r not in same] + [row]
            case ops.RemoveRoute():
                room = self._room(op)
                room.routes.remove(self._route(room, op.route))
            case ops.AddRule():
                r = op.rule
                self._room(op).rules.append(
                    RuleRow(r.source.version, r.priority, r.source, r.table, PROTOCOL, True)
                )
            case ops.RemoveRule():
                room = self._room(op)
                room.rules = [
                    x for x in room.rules
                    if (x.source, x.table, x.priority) != (op.rule.source, op.rule.table, op.rule.priority)
                ]  # fmt: skip
            case ops.MakeGateway():
                self._carry(self.host, 1, op.addresses)
            case ops.RemoveGateway():
                self.host.addresses = [a for a in self.host.addresses if a.address != op.address]
            case ops.AddNeighbour():
                self._neighbour(self._room(op), op.link, op.address, op.mac)
            case ops.RemoveNeighbour():
                self.host.neighbours = [n for n in self.host.neighbours if n != op.row]
            case ops.TellBridge():
                key = (self.host.links[op.index].master, op.mac)
                assert key[0], "EINVAL"
                assert not op.forget or self.host.told.pop(key, 0) == op.index, "ENOENT"
                if not op.forget:
                    self.host.told[key] = op.index
            case ops.SetSysctl():
                if op.netns and op.name.startswith("net/ipv6/conf/"):
                    self._manner(self.rooms[op.netns], *op.name.split("/")[3:], int(op.value))
                elif op.netns:
                    self.rooms[op.netns].sysctls[op.name] = op.value
                else:
                    self.sysctls[op.name] = op.value
            case _:
                raise AssertionError(f"unknown {op}")

    def _delete(self, index: int) -> None:
        link = self.host.links[index]
        self.host.drop(index)
        for room in self.rooms.values():
            inner = room.links.get(link.peer)
            if inner is not None and inner.peer == index:
                room.drop(link.peer)
        for i, port in self.host.links.items():
            if port.master == index:
                self.host.links[i] = replace(port, master=0)

    def _carry(self, room: Room, index: int, addresses: Iterable[InterfaceAddress]) -> None:
        for a in addresses:
            assert a.version == 4 or room.links[index].ipv6_off in (0, NO_IPV6), "EACCES"
            if not any((x.index, x.address) == (index, a) for x in room.addresses):
                room.addresses.append(LinkAddress(index, a, 0, 0, PROTOCOL))
                row = self._connected(index, a.subnet, Address(4, a.value))
                if a.prefix < BITS[a.version] and (index, row.to) not in {
                    (r.index, r.to) for r in room.routes if r.protocol == KERNEL
                }:
                    room.routes.append(row)

    def _connected(self, index: int, to: Subnet, source: Address | None) -> RouteRow:
        """What the kernel gives the subnet of an address."""
        metric, source = (0, source) if to.version == 4 else (256, None)
        return RouteRow(to, None, index, 254, KERNEL, 253, metric, source, UNICAST)

    def _manner(self, room: Room, name: str, key: str, value: int) -> None:
        """disable_ipv6 or accept_ra of a link; the former takes IPv6 addresses and routes along."""
        index = room.index(name)
        if key == "accept_ra":
            room.links[index] = replace(room.links[index], accept_ra=value)
            return
        room.links[index] = replace(room.links[index], ipv6_off=value)
        if value:
            room.addresses = [
                a for a in room.addresses if a.index != index or a.address.version == 4
            ]
            room.routes = [r for r in room.routes if r.index != index or r.to.version == 4]

    def _neighbour(self, room: Room, link: str, address: Address, mac: bytes) -> None:
        row = NeighbourRow(room.index(link), address, mac)
        room.neighbours = [
            x for x in room.neighbours if (x.index, x.address) != (row.index, row.address)
        ] + [row]

    def _route(self, room: Room, r: DesiredRoute) -> RouteRow:
        metric = 1024 if r.to.version == 6 else 0
        return RouteRow(
            r.to, r.via, room.index(r.link), r.table, PROTOCOL, 0, metric, r.source, UNICAST
        )

    def _veth(self, room: Room, e: Endpoint) -> None:
        host, inner = self.fresh(), max(room.links, default=1) + 1
        assert e.name not in {x.name for x in room.links.values()}, "EEXIST"
        assert e.host_name not in {x.name for x in self.host.links.values()}, "EEXIST"
        self.host.links[host] = new_link(
            host, e.host_name, kind="veth", mac=e.host_mac, mtu=e.mtu, peer=inner, alias=e.alias,
            master=self.host.index(e.bridge) if e.bridge else 0, port=e.port,
            group=e.group, peer_nsid=room.cookie,
        )  # fmt: skip
        self.host.told |= {(self.host.links[host].master, mac): host for mac in e.told}
        room.links[inner] = new_link(inner, e.name, kind="veth", mac=e.mac, mtu=e.mtu, peer=host,
                                     accept_ra=1, ipv6_off=0)  # fmt: skip
        if e.manner is not None:
            name, value = e.manner
            self._manner(room, *name.split("/")[3:], int(value))
        self._carry(room, inner, e.addresses)
        for gateway in e.gateways:
            self._neighbour(room, e.name, gateway, e.host_mac)
        for address in e.neighbours:
            self._neighbour(self.host, e.host_link, address, e.mac)
        self.host.routes += [self._route(self.host, r) for r in e.routes]

    def _make(self, member: Member) -> None:
        room = self.rooms[member.netns] = Room(self.fresh())
        room.links[1] = new_link(1, "lo", alias=container_alias(member.name))
        for endpoint in member.endpoints:
            self._veth(room, endpoint)
        room.routes += [self._route(room, r) for r in member.routes]
        room.rules = [
            RuleRow(r.source.version, r.priority, r.source, r.table, PROTOCOL, True)
            for r in member.rules
        ]
        room.sysctls = {"net.core.somaxconn": "4096", **dict(member.sysctls)}

    def _set(self, op: ops.SetLink) -> None:
        room = self.host if op.host or not op.netns else self.rooms[op.netns]
        link = room.links[op.index]
        changes: dict[str, object] = {}
        if op.name is not None:
            assert op.name not in {x.name for x in room.links.values()}, "EEXIST"
            changes["name"] = op.name
            room.addresses = [
                a for a in room.addresses if a.index != op.index or a.address.version == 4
            ]
            room.routes = [
                r
                for r in room.routes
                if r.index != op.index or (r.protocol == KERNEL and r.to.version == 4)
            ]
        if op.name is not None or op.mac is not None:
            room.neighbours = [n for n in room.neighbours if n.index != op.index]
        for key in ("mac", "mtu", "alias", "port", "group"):
            if getattr(op, key) is not None:
                changes[key] = getattr(op, key)
        if op.master is not None:
            self.host.unplug(op.index)
            changes["master"] = self.host.index(op.master) if op.master else 0
        if op.gen_mode_none:
            changes["gen_mode"] = 1
        if op.up or op.name is not None:  # a rename is down, name, up
            changes["flags"] = link.flags | UP
        room.links[op.index] = replace(link, **changes)  # type: ignore[arg-type]
