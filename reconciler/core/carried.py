"""What a link of ours carries beside its name: addresses, the kernel's routes to their subnets, manners."""

from collections.abc import Callable, Collection, Iterable, Sequence

from reconciler.core import ops
from reconciler.core.hostview import Group
from reconciler.core.model import BITS, PROTOCOL, Address, InterfaceAddress, Subnet
from reconciler.core.rows import GEN_MODE_NONE, IPV6_MTU, NO_IPV6, Link, LinkAddress
from reconciler.core.wanted import DesiredRoute

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
