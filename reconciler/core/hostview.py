"""The host's side of containers: what is kept there for each member beside its link.

Permanent neighbours (for members of bridges, too: they do not count against the kernel's table)
and, in routed networks, a route each. Kept in maps, since thousands of members ask.
"""

from collections.abc import Collection, Iterable

from reconciler.core import ops
from reconciler.core.model import BITS, PROTOCOL, Subnet
from reconciler.core.names import network_group
from reconciler.core.observed import Observed, SeenContainer, SeenEnd
from reconciler.core.rows import Link, LinkAddress, NeighbourRow, RouteRow, Space
from reconciler.core.wanted import DesiredRoute, Endpoint, Member

Group = list[ops.Operation]
MAIN_TABLE = 254
METRICS = (0, 1024)
"""What the kernel gives a route that names none, in IPv4 and IPv6."""


def in_the_way(route: RouteRow) -> bool:
    """Whether ours to that single address would take its place: it is not ours, and the kernel keeps
    one of them."""
    whole = route.to.prefix == BITS[route.to.version] and route.table == MAIN_TABLE
    return whole and route.protocol != PROTOCOL and route.metric in METRICS


class HostView:
    """The host's dump, by what is asked of it."""

    def __init__(self, observed: Observed, members: Collection[Member]) -> None:
        host = observed.host
        self.names = {link.index: link.name for link in host.links}
        self.indexes = {link.name: link.index for link in host.links}
        self.peers = {link.index: link.peer for link in host.links if link.peer_nsid < 0}
        self.bridges = {network: link.index for network, link in observed.bridges.items()}
        self.neighbours = {(row.index, row.address): row for row in host.neighbours}
        ours = set(self.bridges.values())
        ports = {link.index for link in host.links if link.master in ours} if host.table else ()
        self.told: dict[int, set[bytes]] = {}
        """Port of a bridge of ours → the MACs that the bridge is told to be behind it."""
        for told in host.table:
            if told.index in ports:
                self.told.setdefault(told.index, set()).add(told.mac)
        self.by_mac: dict[tuple[int, bytes], list[NeighbourRow]] = {}
        for row in host.neighbours:
            self.by_mac.setdefault((row.index, row.mac), []).append(row)
        self.addresses: dict[int, list[LinkAddress]] = {}
        for address in host.addresses:
            self.addresses.setdefault(address.index, []).append(address)
        self.routes: dict[int, list[RouteRow]] = {}
        self.connected: set[tuple[int, Subnet]] = set()
        """Subnets that the host reaches through a link without a next hop, by routes not of ours."""
        self.foreign: dict[Subnet, RouteRow] = {}
        """Routes to single addresses that are not ours: the kernel keeps one of them for each."""
        for route in host.routes:
            if route.protocol == PROTOCOL:
                if route.table == MAIN_TABLE:
                    self.routes.setdefault(route.index, []).append(route)
                continue
            if route.via is None:
                self.connected.add((route.index, route.to))
            if in_the_way(route):
                self.foreign[route.to] = route
        self.wanted = {
            (self.bridges.get(e.network, 0), address)
            for member in members
            for e in member.endpoints
            if not e.group
            for address in e.neighbours
        }
        """Neighbours on bridges that somebody has or is about to have: an address can change hands."""
        self.macs = {
            (e.bridge, mac) for m in members for e in m.endpoints if e.port for mac in e.told
        }
        """What bridges are told, whichever port it is behind: a MAC can change hands."""
        self.places = {route.to for m in members for e in m.endpoints for route in e.routes}
        """Where the host's routes to members are to lead, whoever has the address now."""
        self.flushed: set[str] = set()
        """Bridges that lose their neighbours in this pass."""

    def whole_pairs(self, seen: SeenContainer) -> bool:
        """Whether both ends of a pair are on the host: nothing reaps it with a namespace."""
        pairs = [end.host for end in seen.ends if end.host.peer_nsid < 0]
        return any(self.peers.get(link.peer) == link.index for link in pairs)

    def same_type(self, endpoint: Endpoint, end: SeenEnd) -> bool:
        """Whether the pair was made for the type that its network has now."""
        if endpoint.group:
            return not end.host.master or end.host.master != self.bridges.get(end.network)
        return bool(end.host.master) or end.host.group != network_group(end.network)

    def group_to_set(self, endpoint: Endpoint, outer: Link) -> int | None:
        """The device group where it must change; other groups than ours are the administrator's."""
        if outer.group == endpoint.group:
            return None
        ours = outer.group == network_group(endpoint.network)
        return endpoint.group if endpoint.group or ours else None

    def entries_of(self, end: SeenEnd) -> tuple[NeighbourRow, ...]:
        """The neighbours of a member that do not go with its own link."""
        if not end.host.master or end.inner is None:
            return ()
        rows = self.by_mac.get((end.host.master, end.inner.mac), ())
        return tuple(row for row in rows if (row.index, row.address) not in self.wanted)

    def entry_repairs(
        self,
        member: Member,
        endpoint: Endpoint,
        end: SeenEnd,
        space: Space,
        inner_lost: bool,
        host_lost: bool,
        down: bool,
    ) -> Group:
        """Neighbours and host routes that are missing, wrong or too many.

        `inner_lost`, `host_lost`: whether neighbours go on that side before this is carried out;
        `down`: whether the host's routes do, too.
        """
        owner = member.object
        group: Group = []
        if endpoint.gateways:
            inner = end.inner
            assert inner is not None  # only whole pairs are repaired
            inside = {row.address: row.mac for row in space.neighbours if row.index == inner.index}
            group += [
                ops.AddNeighbour(
                    object=owner,
                    netns=member.netns,
                    link=endpoint.name,
                    address=gateway,
                    mac=endpoint.host_mac,
                )
                for gateway in endpoint.gateways
                if inner_lost or inside.get(gateway) != endpoint.host_mac
            ]
        group += self._route_repairs(owner, endpoint, end.host.index, down)
        index = end.host.index if endpoint.group else self.indexes.get(endpoint.bridge, 0)
        if not endpoint.group:  # a bridge keeps its neighbours whatever becomes of its ports
            host_lost = endpoint.bridge in self.flushed
        for address in endpoint.neighbours:
            row = self.neighbours.get((index, address))
            if host_lost or row is None or row.mac != endpoint.mac:
                group.append(
                    ops.AddNeighbour(
                        object=owner, link=endpoint.host_link, address=address, mac=endpoint.mac
                    )
                )
        # Also where the bridge loses addresses: that takes some of its neighbours along, not all.
        if end.inner is not None and not (endpoint.group and host_lost):
            group += [
                ops.RemoveNeighbour(object=owner, link=endpoint.host_link, row=row)
                for row in self.by_mac.get((index, end.inner.mac), ())
                if row.address not in endpoint.neighbours
                and (endpoint.group or (index, row.address) not in self.wanted)
            ]
        return group

    def table_repairs(
        self, owner: str, endpoint: Endpoint, outer: Link, stays: bool
    ) -> tuple[Group, Group]:
        """What its bridge is to be told about its port, and what it is to forget.

        `stays`: whether it is in that bridge already; a port that leaves one takes its entries along.
        """
        seen = self.told.get(outer.index, set()) if stays else set()
        told: Group = [
            ops.TellBridge(object=owner, link=endpoint.host_name, index=outer.index, mac=mac)
            for mac in sorted(endpoint.told - seen)
        ]
        forgotten: Group = [
            ops.TellBridge(
                object=owner, link=endpoint.host_name, index=outer.index, mac=mac, forget=True
            )
            for mac in sorted(seen - endpoint.told)
            if (endpoint.bridge, mac) not in self.macs
        ]
        return told, forgotten

    def entries_stand(self, member: Member, seen: SeenContainer) -> bool:
        """Whether the host's neighbours and routes for a container are as they should be."""
        ends = {end.name: end.host.index for end in seen.ends}
        for endpoint in member.endpoints:
            index = ends.get(endpoint.name, 0)
            if endpoint.group:
                standing = {(row.to, row.via, row.source) for row in self.routes.get(index, ())}
                if standing != {(r.to, r.via, r.source) for r in endpoint.routes}:
                    return False
            else:
                index = self.indexes.get(endpoint.bridge, 0)
                port = ends.get(endpoint.name, 0)
                if endpoint.bridge in self.flushed or self.routes.get(port):
                    return False
                if self.told.get(port, set()) != endpoint.told:
                    return False
            rows = self.by_mac.get((index, endpoint.mac), ())
            if len(rows) != len(endpoint.neighbours) or any(
                row.address not in endpoint.neighbours for row in rows
            ):
                return False
        return True

    def _route_repairs(self, owner: str, endpoint: Endpoint, index: int, lost: bool) -> Group:
        seen = {(row.to, row.via, row.source) for row in self.routes.get(index, ())}
        wanted = {(route.to, route.via, route.source) for route in endpoint.routes}
        group: Group = [
            # One to the same place is replaced by the one that is added.
            ops.RemoveRoute(
                object=owner,
                route=DesiredRoute(to=to, via=via, link=endpoint.host_name, source=source),
            )
            for to, via, source in sorted(seen - wanted, key=str)
            if to not in self.places and not lost
        ]
        group += [
            ops.AddRoute(object=owner, route=route)
            for route in endpoint.routes
            if lost or (route.to, route.via, route.source) not in seen
        ]
        return group

    def stray_neighbours(self, known: Iterable[SeenEnd]) -> list[tuple[str, NeighbourRow]]:
        """Entries of ours on bridges of ours that nobody needs, each with its network.

        Those of the pairs in `known` are looked at with their container.
        """
        networks = {index: network for network, index in self.bridges.items()}
        odd = [
            row
            for key, row in self.neighbours.items()
            if row.index in networks and key not in self.wanted
        ]
        if not odd:
            return []
        staying = {(end.host.master, end.inner.mac) for end in known if end.inner is not None}
        return [(networks[row.index], row) for row in odd if (row.index, row.mac) not in staying]
