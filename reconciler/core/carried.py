"""What a link of ours carries beside its name: addresses, the kernel's routes to their subnets, manners."""

from collections.abc import Callable, Collection, Iterable, Sequence

from reconciler.core import ops
from reconciler.core.hostview import Group
from reconciler.core.model import BITS, PROTOCOL, Address, InterfaceAddress, Subnet
from reconciler.core.rows import GEN_MODE_NONE, IPV6_MTU, NO_IPV6, Link, LinkAddress
from reconciler.core.wanted import OFF, DesiredRoute, Endpoint

SECONDARY = 1
"""IFA_F_SECONDARY of linux/if_addr.h: an IPv4 address that came after another one of its subnet."""


def addresses_added(group: Group) -> set[InterfaceAddress]:
    return {op.address for op in group if isinstance(op, ops.AddAddress)}


def connected_routes(
    owner: str,
    netns: str,
    link: str,
    wanted: Sequence[InterfaceAddress],
    seen: Sequence[LinkAddress],
    index: int,
    standing: Collection[tuple[int, Subnet]],
) -> Group:
    """The routes that the kernel gave these addresses when they came, and that somebody has removed.

    It gives them once, and without them no gateway is in reach.
    """
    sources: dict[Subnet, Address | None] = {}
    for row in seen:
        a = row.address
        if (
            a in wanted
            and a.prefix < BITS[a.version]
            and not (a.version == 4 and row.flags & SECONDARY)
        ):
            sources.setdefault(a.subnet, Address(4, a.value) if a.version == 4 else None)
    return [
        ops.AddRoute(
            object=owner,
            netns=netns,
            route=DesiredRoute(to=subnet, via=None, link=link, source=source),
            connected=True,
        )
        for subnet, source in sources.items()
        if (index, subnet) not in standing
    ]


def outside(address: InterfaceAddress, subnets: Iterable[Subnet]) -> bool:
    return not address.is_link_local and not any(s.holds(address.address) for s in subnets)


def noisy(link: Link, mtu: int) -> bool:
    """Whether it is to be told not to give itself a link-local address; `mtu`: what it is to have."""
    if mtu < IPV6_MTU or (link.mtu >= IPV6_MTU and link.gen_mode == NO_IPV6):
        return False
    # With an MTU that is large enough IPv6 comes back, with the kernel's defaults.
    return link.gen_mode != GEN_MODE_NONE


def deafen(owner: str, link: Link, name: str, mtu: int) -> Group:
    """A member must not become the host's router: nothing is believed behind links of ours."""
    fresh = mtu >= IPV6_MTU > link.mtu and link.accept_ra == NO_IPV6
    if not fresh and (mtu < IPV6_MTU or link.accept_ra in (0, NO_IPV6)):
        return []
    return [ops.SetSysctl(object=owner, name=ops.accept_ra(name), value="0", if_there=True)]


KERNELS = (1, 2, 3)
"""IFAPROT_KERNEL_LO, _RA and _LL of linux/if_addr.h: addresses that the kernel gives by itself."""


def quiet(
    owner: str, netns: str, endpoint: Endpoint, inner: Link, seen: Sequence[LinkAddress]
) -> Group:
    """An interface has no IPv6, or believes no router. `seen`: what stands on it.

    An IPv6 address that a workload has given itself is its own affair: it stays.
    """
    if endpoint.manner is None or endpoint.mtu < IPV6_MTU:
        return []
    name, value = endpoint.manner

    def said(name: str, value: str) -> ops.SetSysctl:
        return ops.SetSysctl(object=owner, netns=netns, name=name, value=value, if_there=True)

    if inner.mtu < IPV6_MTU and inner.ipv6_off == NO_IPV6:
        return [said(name, value)]  # it comes with the MTU, and the kernel's defaults
    if endpoint.ipv6 == OFF:
        own = any(a.address.version == 6 and a.protocol not in (*KERNELS, PROTOCOL) for a in seen)
        return [said(name, value)] if inner.ipv6_off == 0 and not own else []
    group: Group = []
    if inner.ipv6_off not in (0, NO_IPV6):
        group.append(said(f"net/ipv6/conf/{endpoint.name}/disable_ipv6", "0"))
    if inner.accept_ra not in (0, NO_IPV6):
        group.append(said(name, value))
    return group


def differs(seen: str, wanted: str) -> str | None:
    return wanted if seen != wanted else None


def address_repairs(
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
