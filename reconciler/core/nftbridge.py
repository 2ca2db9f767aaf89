"""The nftables table `bridge runcnet`: from which addresses a port of a bridge may send. Pure.

The bridge itself binds MACs to ports; this binds addresses, in ARP, IPv4 and IPv6. A port is told by
its name, so that elements can stand before the port does, and outlive it.
"""

from collections.abc import Iterable

from reconciler.core import nftrules
from reconciler.core.nftset import Chain, Element, Key, Shape, Table, comment, owner
from reconciler.core.policy import Policy, Sender

NAME = "bridge runcnet"
SHAPES = {
    "checked": Shape(("ifname",)),
    "addresses4": Shape(("ifname", "ipv4_addr")),
    "addresses6": Shape(("ifname", "ipv6_addr")),
    "targets6": Shape(("ifname", "integer")),
}
"""Ports that are checked, what they may send from, and of what they may say to be its neighbour."""
EMPTY = Table({}, {}, {}, present=False, name=NAME)
Elements = dict[str, dict[Key, Element]]


def wanted(policy: Policy, *, have: Table) -> Table:
    """The table as it should be; `have` gives the elements of containers and networks that are kept."""
    found = elements(policy.senders)
    mine = {sender.link for sender in policy.senders}
    networks = policy.kept - {n.name for n in policy.networks}
    if policy.kept_senders or networks:
        for name, stands in have.elements.items():
            for key, one in stands.items() if name in SHAPES else ():
                network, _, container = owner(one).partition("/")
                if (container in policy.kept_senders or network in networks) and key[0] not in mine:
                    found[name][key] = one
    if not found["checked"]:
        return EMPTY
    chains = {
        "checked": Chain(tuple(nftrules.rule(words) for words in nftrules.senders())),
        "prerouting": Chain(
            (nftrules.rule(nftrules.CHECKED),), ("filter", "prerouting", -250, "accept")
        ),
    }
    return Table(SHAPES, found, chains, name=NAME)


def elements(senders: Iterable[Sender]) -> Elements:
    """What stands in the sets for these."""
    found: Elements = {name: {} for name in SHAPES}
    for sender in senders:
        own = Element(comment(f"{sender.network}/{sender.container}"))
        found["checked"][(sender.link,)] = own
        for address in sender.addresses:
            version, value = address.version, address.value
            found[f"addresses{version}"][sender.link, value] = own
            if version == 6:
                found["targets6"][sender.link, value] = own
    return found


def senders_in(have: Table) -> frozenset[str]:
    """The containers that own elements."""
    owners = map(owner, have.elements.get("checked", {}).values())
    return frozenset(whose.partition("/")[2] for whose in owners) - {""}
