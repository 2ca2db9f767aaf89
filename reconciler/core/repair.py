"""What differs on one object that stands: a bridge, or a container with its veth pairs.

Everything here answers with *steps*: groups of operations that belong together, so that a group
that interrupts traffic can be held back whole.
"""

from collections.abc import Iterable, Mapping, Sequence

from reconciler.core import ops
from reconciler.core.carried import (
    address_repairs,
    addresses_added,
    connected_routes,
    deafen,
    differs,
    noisy,
    outside,
    quiet,
)
from reconciler.core.hostview import Group, HostView
from reconciler.core.model import PORT_LOCKED, PROTOCOL, InterfaceAddress, Subnet
from reconciler.core.names import container_alias, network_alias
from reconciler.core.observed import SeenContainer, SeenEnd
from reconciler.core.routing import Routes
from reconciler.core.rows import (
    Link,
    Space,
)
from reconciler.core.wanted import Bridge, Endpoint, Member

UNKNOWN = ":"
"""In place of the name of a link that was not looked at; no link has it."""


def bridge_repairs(bridge: Bridge, link: Link, view: HostView, *, used: bool) -> list[Group]:
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
        alias=differs(link.alias, network_alias(bridge.network)),
        gen_mode_none=noisy(link, bridge.mtu),
        # One that is down may be what a kill has left.
        snoop=not link.up,
    )
    group: Group = [edit] if edit.words() else []
    group += deafen(bridge.object, link, bridge.name, bridge.mtu)
    addresses = [] if renamed else view.addresses.get(link.index, [])

    def cuts(address: InterfaceAddress) -> bool:
        return used and outside(address, bridge.subnets)

    removed, group_addresses = address_repairs(
        bridge.object, "", bridge.name, bridge.addresses, addresses, cuts
    )
    group += removed + group_addresses
    if link.up and not renamed:
        standing = [row for row in addresses if row.address not in addresses_added(group_addresses)]
        group += connected_routes(bridge.object, "", bridge.name, bridge.addresses, standing, link.index,
                            view.connected)  # fmt: skip
    return [group] if group else []


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
            alias=differs(lo.alias, container_alias(member.name)),
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
    routes = Routes(member, space, matched, doomed)
    for endpoint in member.endpoints:
        found = matched.get(endpoint.name)
        if found is None:
            foreign = by_name.get(endpoint.name)
            if (
                foreign is not None
                and foreign.index not in doomed
                and _abandoned(foreign, endpoint, seen)
            ):
                take = ops.RemoveEndpoint(
                    object=member.object,
                    netns=netns,
                    link=foreign.name,
                    index=foreign.index,
                    label=endpoint.name,
                    inside=True,
                )
                groups.append([take])
                doomed.add(foreign.index)
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
            if found.inner is not None and found.inner.name == endpoint.name:
                # What leads through an address of ours goes before it: else some of it stays.
                at = next((i for i, op in enumerate(group) if isinstance(op, ops.RemoveAddress)), 0)
                group[at:at] = routes.stale(endpoint.name, cleared)
            reset |= {(endpoint.name, version) for version in cleared}
            if group:
                groups.append(group)
    # A name may be free only once another interface has given it up.
    groups += makes
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


def _abandoned(link: Link, endpoint: Endpoint, seen: SeenContainer) -> bool:
    """Whether it is an inner end of ours whose other end somebody has moved off the host.

    That one keeps its number where it went, if nobody has it there; where the record does not know
    the number, the MAC must speak, which is derived and so nobody else's.
    """
    if link.kind != "veth" or link.peer_nsid < 0:
        return False
    return link.peer in seen.lost or link.mac == endpoint.mac


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
    # A small pass knows the bridges of its networks alone.
    master = view.names.get(outer.master, UNKNOWN) if outer.master else ""
    renamed_host = outer.name != endpoint.host_name
    renamed = inner.name != endpoint.name
    stays = master == endpoint.bridge
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
        alias=differs(outer.alias, endpoint.alias),
        group=view.group_to_set(endpoint, outer),
        gen_mode_none=noisy(outer, endpoint.mtu),
        # What was heard there while it was open would still be let through.
        flush=stays and bool(endpoint.port & ~outer.port & PORT_LOCKED),
    )
    # A link that goes down loses its IPv6 addresses.
    seen = [
        a
        for a in space.addresses
        if a.index == inner.index and not (renamed and a.address.version == 6)
    ]

    def cuts(address: InterfaceAddress) -> bool:
        return running and outside(address, subnets.get(endpoint.network, ()))

    removed, added = address_repairs(owner, netns, endpoint.name, endpoint.addresses, seen, cuts)
    if inner.up and not renamed:
        standing = [row for row in seen if row.address not in addresses_added(added)]
        near = {
            (row.index, row.to)
            for row in space.routes
            if row.protocol != PROTOCOL and row.via is None and row.index == inner.index
        }
        added += connected_routes(owner, netns, endpoint.name, endpoint.addresses, standing, inner.index,
                            near)  # fmt: skip
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
        gen_mode_none=noisy(inner, endpoint.mtu),
    )
    told, forgotten = view.table_repairs(owner, endpoint, outer, stays)
    # A port is told of before it is locked, and a new MAC before it is taken on.
    group: Group = list(told) if stays else []
    if host_edit.words():
        group.append(host_edit)
    group += [] if stays else told
    group += deafen(owner, outer, endpoint.host_name, endpoint.mtu)
    if inner_edit.words():
        group.append(inner_edit)
    group += removed + quiet(owner, netns, endpoint, inner, seen) + added
    if late:
        group.append(
            ops.SetLink(object=owner, netns=netns, link=endpoint.name, index=inner.index, mac=mac)
        )
    if mac is not None and endpoint.bridge and end.host.master:
        # Who had that MAC before may have been heard behind this port, or the other way round.
        group.append(
            ops.SetLink(
                object=owner,
                netns=netns,
                link=endpoint.host_name,
                index=outer.index,
                host=True,
                flush=True,
            )
        )
    group += forgotten
    # A change of the MAC, a moment down or without an address costs a link its neighbours.
    inner_lost = mac is not None or renamed or bool(removed)
    host_lost = host_edit.mac is not None or renamed_host
    group += view.entry_repairs(
        member, endpoint, end, space, inner_lost, host_lost, down=renamed_host
    )
    if renamed:
        return group, (4, 6)
    return group, {op.address.version for op in removed if isinstance(op, ops.RemoveAddress)}
