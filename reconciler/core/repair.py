"""What differs on one object that stands: a bridge, or a container with its veth pairs.

Everything here answers with *steps*: groups of operations that belong together, so that a group
that interrupts traffic can be held back whole.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from reconciler.core import ops
from reconciler.core.hostview import Group, HostView
from reconciler.core.model import PROTOCOL, InterfaceAddress, Subnet
from reconciler.core.names import container_alias, network_alias
from reconciler.core.observed import SeenContainer, SeenEnd
from reconciler.core.rows import (
    GEN_MODE_NONE,
    IPV6_MTU,
    NO_IPV6,
    Link,
    LinkAddress,
    RouteRow,
    RuleRow,
    Space,
)
from reconciler.core.wanted import Bridge, DesiredRoute, DesiredRule, Endpoint, Member

RTN_UNICAST = 1
METRICS = (0, 1024)
"""What the kernel gives a route that names none, in IPv4 and IPv6."""


def bridge_repairs(bridge: Bridge, link: Link, host: Space, *, used: bool) -> list[Group]:
    """What differs on a bridge of ours; `used`: containers run behind it."""
    renamed = link.name != bridge.name
    edit = ops.SetLink(
        object=bridge.object,
        link=link.name,
        index=link.index,
        host=True,
        interrupts=renamed and used,
        name=bridge.name if renamed else None,
        mac=bridge.mac if link.mac != bridge.mac else None,
        mtu=bridge.mtu if link.mtu != bridge.mtu else None,
        up=True if renamed or not link.up else None,
        alias=_differs(link.alias, network_alias(bridge.network)),
        gen_mode_none=_noisy(link, bridge.mtu),
    )
    group: Group = [edit] if edit.words() else []
    group += _deafen(bridge.object, link, bridge.name, bridge.mtu)
    addresses = [] if renamed else [a for a in host.addresses if a.index == link.index]

    def cuts(address: InterfaceAddress) -> bool:
        return used and _outside(address, bridge.subnets)

    removed, group_addresses = _address_repairs(
        bridge.object, "", bridge.name, bridge.addresses, addresses, cuts
    )
    group += removed + group_addresses
    return [group] if group else []


def _outside(address: InterfaceAddress, subnets: Iterable[Subnet]) -> bool:
    return not address.is_link_local and not any(s.holds(address.address) for s in subnets)


def _noisy(link: Link, mtu: int) -> bool:
    """Whether it is to be told not to give itself a link-local address; `mtu`: what it is to have."""
    if mtu < IPV6_MTU or (link.mtu >= IPV6_MTU and link.gen_mode == NO_IPV6):
        return False
    # With an MTU that is large enough IPv6 comes back, with the kernel's defaults.
    return link.gen_mode != GEN_MODE_NONE


def _deafen(owner: str, link: Link, name: str, mtu: int) -> Group:
    """A member must not become the host's router: nothing is believed behind links of ours."""
    fresh = mtu >= IPV6_MTU > link.mtu and link.accept_ra == NO_IPV6
    if not fresh and (mtu < IPV6_MTU or link.accept_ra in (0, NO_IPV6)):
        return []
    return [ops.SetSysctl(object=owner, name=ops.accept_ra(name), value="0", if_there=True)]


def _differs(seen: str, wanted: str) -> str | None:
    return wanted if seen != wanted else None


def _address_repairs(
    owner: str,
    netns: str,
    link: str,
    wanted: Sequence[InterfaceAddress],
    seen: Sequence[LinkAddress],
    cuts: Callable[[InterfaceAddress], bool],
) -> tuple[Group, Group]:
    """Removals and additions. Removing an address takes its subnet's other ones with it.

    (promote_secondaries is 0 by default: ip-sysctl). So those are added again as well.
    """
    gone = [
        row.address for row in seen if row.protocol == PROTOCOL and row.address not in set(wanted)
    ]
    lost = {a.subnet for a in gone if a.version == 4}
    standing = {row.address for row in seen if row.address.subnet not in lost}
    removed: Group = [
        ops.RemoveAddress(object=owner, netns=netns, link=link, address=a, interrupts=cuts(a))
        for a in gone
    ]
    added: Group = [
        ops.AddAddress(object=owner, netns=netns, link=link, address=a)
        for a in wanted
        if a not in standing
    ]
    return removed, added


def container_repairs(
    member: Member,
    seen: SeenContainer,
    space: Space,
    *,
    view: HostView,
    subnets: Mapping[str, tuple[Subnet, ...]],
    sysctls: Mapping[str, str | None],
    running: bool,
) -> tuple[list[Group], list[str]]:
    """What differs on a container that stands, and why what differs cannot be mended."""
    problems: list[str] = []
    netns = member.netns
    groups: list[Group] = []
    lo = next((link for link in space.links if link.index == 1), None)
    if lo is not None:
        edit = ops.SetLink(
            object=member.object,
            netns=netns,
            link="lo",
            index=1,
            up=True if not lo.up else None,
            alias=_differs(lo.alias, container_alias(member.name)),
        )
        if edit.words():
            groups.append([edit])
    matched, extra = _match(member.endpoints, seen.ends, view)
    for end in extra:
        groups.append(
            [
                ops.RemoveEndpoint(
                    object=member.object,
                    netns=netns,
                    link=end.host.name,
                    index=end.host.index,
                    label=end.name,
                    neighbours=view.entries_of(end),
                    interrupts=running,
                )
            ]
        )
    by_name = {link.name: link for link in space.links}
    doomed = {end.inner.index for end in extra if end.inner is not None}
    ours = {end.inner.index for end in matched.values() if end.inner is not None}
    reset: set[tuple[str, int]] = set()
    """Links, and the IP version whose routes are gone there once the repairs before are done."""
    blocked: set[str] = set()
    groups += _make_way(member, matched, running)
    makes: list[Group] = []
    for endpoint in member.endpoints:
        found = matched.get(endpoint.name)
        if found is None:
            foreign = by_name.get(endpoint.name)
            if foreign is not None and foreign.index not in doomed | ours:
                problems.append(
                    f"{endpoint.name} is a {foreign.kind or 'link'} that is not runcnet's "
                    "(remove or rename it inside the container)"
                )
                blocked.add(endpoint.name)
                continue
            reset |= {(endpoint.name, 4), (endpoint.name, 6)}
            make: Group = [ops.MakeEndpoint(object=member.object, netns=netns, endpoint=endpoint)]
            make[:0] = groups.pop() if _replaces(groups, endpoint) else []
            makes.append(make)
        else:
            group, cleared = _endpoint_repairs(
                member, endpoint, found, space, view, subnets, running
            )
            reset |= {(endpoint.name, version) for version in cleared}
            if group:
                groups.append(group)
    # A name may be free only once another interface has given it up.
    groups += makes
    routes = _Routes(member, space, matched, doomed)
    problems += routes.problems(reset)
    groups += routes.groups(reset, blocked)
    for name, value in member.sysctls:
        shown = sysctls.get(name)
        if shown is None:
            problems.append(f"a namespace has no sysctl {name} (drop it from the definition)")
        elif shown.split() != value.split():
            groups.append(
                [ops.SetSysctl(object=member.object, netns=netns, name=name, value=value)]
            )
    return groups, problems


def _make_way(member: Member, matched: Mapping[str, SeenEnd], running: bool) -> list[Group]:
    """Interfaces that are to be renamed and hold a name that another one is given step aside first."""
    wanted = {
        name for name, end in matched.items() if end.inner is not None and end.inner.name != name
    }
    return [
        [
            ops.SetLink(
                object=member.object,
                netns=member.netns,
                link=end.inner.name,
                index=end.inner.index,
                name=f"rn-aside{end.inner.index}"[:15],
                interrupts=running,
            )
        ]
        for name, end in matched.items()
        if end.inner is not None and end.inner.name != name and end.inner.name in wanted
    ]


def _replaces(groups: list[Group], endpoint: Endpoint) -> bool:
    """Whether the last group takes away the veth in whose place `endpoint` comes."""
    last = groups[-1] if groups else []
    return len(last) == 1 and (
        isinstance(last[0], ops.RemoveEndpoint) and last[0].label == endpoint.name
    )


def _match(
    endpoints: Sequence[Endpoint], ends: Sequence[SeenEnd], view: HostView
) -> tuple[dict[str, SeenEnd], list[SeenEnd]]:
    """Which veth pair serves which declared interface: by name, then by network (a rename)."""
    left = [end for end in ends if end.inner is not None]
    extra = [end for end in ends if end.inner is None]
    matched: dict[str, SeenEnd] = {}
    for by_name in (True, False):
        for endpoint in endpoints:
            if endpoint.name in matched:
                continue
            for end in left:
                if (
                    end.network == endpoint.network
                    and (end.name == endpoint.name or not by_name)
                    and view.same_type(endpoint, end)
                ):
                    matched[endpoint.name] = end
                    left.remove(end)
                    break
    return matched, extra + left


def _endpoint_repairs(
    member: Member,
    endpoint: Endpoint,
    end: SeenEnd,
    space: Space,
    view: HostView,
    subnets: Mapping[str, tuple[Subnet, ...]],
    running: bool,
) -> tuple[Group, Iterable[int]]:
    inner = end.inner
    assert inner is not None  # _match hands out whole pairs only
    outer = end.host
    owner, netns = member.object, member.netns
    master = view.names.get(outer.master, "")
    renamed_host = outer.name != endpoint.host_name
    renamed = inner.name != endpoint.name
    host_edit = ops.SetLink(
        object=owner,
        netns=netns,
        link=outer.name,
        index=outer.index,
        host=True,
        interrupts=renamed_host and running,
        name=endpoint.host_name if renamed_host else None,
        mac=endpoint.host_mac if outer.mac != endpoint.host_mac else None,
        mtu=endpoint.mtu if outer.mtu != endpoint.mtu else None,
        master=endpoint.bridge if master != endpoint.bridge else None,
        port=endpoint.port
        if outer.port != endpoint.port or (master != endpoint.bridge and endpoint.port)
        else None,
        up=True if not outer.up and not renamed_host else None,
        alias=_differs(outer.alias, endpoint.alias),
        group=view.group_to_set(endpoint, outer),
        gen_mode_none=_noisy(outer, endpoint.mtu),
    )
    # A link that goes down loses its IPv6 addresses.
    seen = [
        a for a in space.addresses if a.index == inner.index and not (renamed and a.address[0] == 6)
    ]

    def cuts(address: InterfaceAddress) -> bool:
        return running and _outside(address, subnets.get(endpoint.network, ()))

    removed, added = _address_repairs(owner, netns, endpoint.name, endpoint.addresses, seen, cuts)
    mac = endpoint.mac if inner.mac != endpoint.mac else None
    # A new MAC is announced for the addresses of that moment: it comes behind theirs.
    late = mac is not None and bool(removed or added)
    inner_edit = ops.SetLink(
        object=owner,
        netns=netns,
        link=inner.name,
        index=inner.index,
        interrupts=renamed and running,
        name=endpoint.name if renamed else None,
        mac=None if late else mac,
        mtu=endpoint.mtu if inner.mtu != endpoint.mtu else None,
        up=True if not inner.up and not renamed else None,
        gen_mode_none=_noisy(inner, endpoint.mtu),
    )
    group: Group = []
    if host_edit.words():
        group.append(host_edit)
    group += _deafen(owner, outer, endpoint.host_name, endpoint.mtu)
    if inner_edit.words():
        group.append(inner_edit)
    group += removed + added
    if late:
        group.append(
            ops.SetLink(object=owner, netns=netns, link=endpoint.name, index=inner.index, mac=mac)
        )
    # A change of the MAC, a moment down or without an address costs a link its neighbours.
    inner_lost = mac is not None or renamed or bool(removed)
    host_lost = host_edit.mac is not None or renamed_host
    group += view.entry_repairs(member, endpoint, end, space, inner_lost, host_lost)
    if renamed:
        return group, (4, 6)
    return group, {op.address.version for op in removed if isinstance(op, ops.RemoveAddress)}


class _Routes:
    """A container's routes and rules, as they stand beside those declared."""

    def __init__(
        self,
        member: Member,
        space: Space,
        matched: Mapping[str, SeenEnd],
        doomed: Collection[int],
    ) -> None:
        self.member = member
        names = {link.index: link.name for link in space.links}
        names |= {end.inner.index: name for name, end in matched.items() if end.inner is not None}
        self.seen = [
            (row, _route(row, names.get(row.index, "")))
            for row in space.routes
            if row.type == RTN_UNICAST and row.index not in doomed
        ]
        self.rules = [(row, _rule(row)) for row in space.rules if row.source is not None]

    def _in_the_way(
        self, route: DesiredRoute, reset: Collection[tuple[str, int]]
    ) -> RouteRow | None:
        """A foreign route to the same place: the kernel keeps one of them for each metric."""
        for row, seen in self.seen:
            same = (seen.to, seen.table) == (route.to, route.table) and row.metric in METRICS
            if (
                same
                and row.protocol != PROTOCOL
                and (seen.link, seen.to.version) not in reset
                and seen != route
            ):
                return row
        return None

    def problems(self, reset: Collection[tuple[str, int]]) -> list[str]:
        standing = {route for _, route in self.seen}
        return [
            f"a route to {route.to} that is not runcnet's stands in the place of `{route}` "
            "(remove it inside the container)"
            for route in self.member.routes
            if route not in standing and self._in_the_way(route, reset)
        ]

    def groups(self, reset: Collection[tuple[str, int]], blocked: set[str]) -> list[Group]:
        """Those through a link in `reset` are gone by the time that these are carried out."""
        owner, netns = self.member.object, self.member.netns
        wanted = set(self.member.routes)
        standing = {route for _, route in self.seen if (route.link, route.to.version) not in reset}
        result: list[Group] = [
            [ops.RemoveRoute(object=owner, netns=netns, route=route)]
            for row, route in self.seen
            if row.protocol == PROTOCOL
            and route not in wanted
            and (route.link, route.to.version) not in reset
        ]
        result += [
            [ops.AddRoute(object=owner, netns=netns, route=route)]
            for route in self.member.routes
            if route not in standing
            and route.link not in blocked
            and not self._in_the_way(route, reset)
        ]
        declared = set(self.member.rules)
        result += [
            [ops.RemoveRule(object=owner, netns=netns, rule=rule)]
            for row, rule in self.rules
            if row.protocol == PROTOCOL and rule not in declared
        ]
        shown = {rule for row, rule in self.rules if row.plain}
        result += [
            [ops.AddRule(object=owner, netns=netns, rule=rule)]
            for rule in self.member.rules
            if rule not in shown
        ]
        return result


def _route(row: RouteRow, link: str) -> DesiredRoute:
    return DesiredRoute(to=row.to, via=row.via, link=link, table=row.table)


def _rule(row: RuleRow) -> DesiredRule:
    assert row.source is not None  # rules without a source are passed over
    return DesiredRule(source=row.source, table=row.table, priority=row.priority)
