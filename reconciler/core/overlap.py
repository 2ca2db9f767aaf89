"""Whether a network that is about to be made would cut the host off from what it has."""

from reconciler.core.model import PROTOCOL, Subnet
from reconciler.core.observed import Observed
from reconciler.core.wanted import Bridge, Routed

MAIN_TABLE = 254
LINK_LOCAL = Subnet(6, 0xFE80 << 112, 10)
MULTICAST = Subnet(6, 0xFF << 120, 8)


def overlap_with_host(network: Bridge | Routed, observed: Observed) -> str:
    """The foreign address or route that the network's subnets overlap, as a sentence; or nothing."""
    host = observed.host
    ours = {link.index for link in observed.bridges.values()}
    ours |= {end.host.index for seen in observed.containers.values() for end in seen.ends}
    gateways = {address.subnet for address in observed.gateways}
    names = {link.index: link.name for link in host.links}
    for subnet in network.subnets:
        for row in host.addresses:
            if row.address in observed.gateways:
                continue
            if row.index not in ours and _meets(subnet, row.address.subnet):
                return (
                    f"{subnet} overlaps {row.address} on {names.get(row.index, 'a link')}, "
                    "which is not runcnet's (give the network another subnet)"
                )
        for route in host.routes:
            if route.table != MAIN_TABLE or not route.to.prefix:
                continue
            # The kernel itself routes an IPv6 address to its link, `lo` too.
            if route.protocol == PROTOCOL or route.index in ours or route.to in gateways:
                continue
            if _meets(subnet, route.to):
                return (
                    f"{subnet} overlaps the host's route to {route.to} through "
                    f"{names.get(route.index, 'no link')} (give the network another subnet)"
                )
    return ""


def _meets(subnet: Subnet, other: Subnet) -> bool:
    # Every link has link-local and multicast routes of its own.
    local = LINK_LOCAL.overlaps(other) or MULTICAST.overlaps(other)
    return subnet.overlaps(other) and not local
