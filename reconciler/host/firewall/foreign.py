"""Looks for firewalls of others that will drop what ours accepts.

A packet must pass every base chain at the forward hook: an accept in one never overrides a drop
in another. The chains of nftables (iptables-nft's and firewalld's among them) are read by netlink,
without the nft program; of the legacy tables those are read that exist.
"""

import struct
from collections.abc import Collection, Iterator
from typing import NamedTuple

from reconciler.core.policy import NetworkPolicy, Policy
from reconciler.host.firewall import kernel, nfnl

GETCHAIN, GETRULE = 4, 7
CHAIN_TABLE, CHAIN_NAME, CHAIN_HOOK, CHAIN_POLICY = 1, 3, 4, 5
RULE_TABLE, RULE_CHAIN = 1, 2
HOOK_FORWARD, NF_DROP = 2, 0
INET = 1
OURS = (INET, "runcnet")
FAMILIES = {INET: ("inet", (4, 6)), 2: ("ip", (4,)), 10: ("ip6", (6,))}


class BaseChain(NamedTuple):
    """A chain at the forward hook whose policy is drop, and what its rules hold."""

    family: int
    table: str
    name: str
    rules: bytes

    @property
    def of_iptables(self) -> bool:
        """Whether iptables' nft variant keeps a chain of that name."""
        return self.family != INET and (self.table, self.name) == ("filter", "FORWARD")

    def names(self, network: NetworkPolicy) -> bool:
        """Whether a rule compares something with the network's link, or its device group."""
        # An attribute NFTA_DATA_VALUE: nft compares 16 bytes, iptables-nft the name and its NUL; a
        # group is a number of the machine's own byte order.
        if network.group:
            return struct.pack("=HHI", 4 + 4, 1, network.group) in self.rules
        text = network.link.encode() + b"\0"
        heads = (struct.pack("=HH", 4 + 16, 1), struct.pack("=HH", 4 + len(text), 1))
        return any(head + text in self.rules for head in heads)


def warnings(
    policy: Policy, *, backend: str = "iptables", served: Collection[int] = ()
) -> tuple[str, ...]:
    """One sentence for each base chain that is not of our `backend` and will drop this traffic.

    `served`: IP versions of which the filter table of iptables-nft holds rules of ours, too.
    """
    routed = [n for n in policy.networks if not n.internal]
    if not routed:
        return ()
    legacy = [*_legacy(routed), *(_legacy_filter(routed) if backend == "nftables" else ())]
    return (*legacy, *_nftables(routed, served))


def _concerned(networks: list[NetworkPolicy], versions: tuple[int, ...]) -> list[NetworkPolicy]:
    return [n for n in networks if any(s.version in versions for s in n.subnets)]


def _shown(networks: list[NetworkPolicy]) -> str:
    return ", ".join(n.link or f"network {n.name}" for n in networks)


def _legacy(networks: list[NetworkPolicy]) -> Iterator[str]:
    # In `filter` our accept is the last word; these two are passed before it.
    for version, program in ((4, "iptables-legacy"), (6, "ip6tables-legacy")):
        for name in ("mangle", "security"):
            concerned = _concerned(networks, (version,))
            if concerned and kernel.read(version, name).policies.get("FORWARD") == "DROP":
                yield (
                    f"the policy of the legacy chain FORWARD in table {name} (IPv{version}) is "
                    f"drop and will drop the traffic of {_shown(concerned)} "
                    f"({program} -t {name} -P FORWARD ACCEPT)"
                )


def _legacy_filter(networks: list[NetworkPolicy]) -> Iterator[str]:
    for version, program in ((4, "iptables-legacy"), (6, "ip6tables-legacy")):
        table = kernel.read(version, "filter")
        if table.policies.get("FORWARD") != "DROP":
            continue
        rules = [rule for chain in table.chains.values() for rule in chain]
        named = {end for rule in rules for end in (rule.in_link, rule.out_link)}
        groups = {end for rule in rules for end in (rule.in_group, rule.out_group)}
        concerned = [
            n
            for n in _concerned(networks, (version,))
            if (n.group not in groups if n.group else n.link not in named)
        ]
        if concerned:
            first = concerned[0]
            coming, going = f"-i {first.link}", f"-o {first.link}"
            if first.group:
                coming = f"-m devgroup --src-group {first.group:#x}"
                going = f"-m devgroup --dst-group {first.group:#x}"
            rule = f"{program} -I FORWARD"
            yield (
                f"the policy of the legacy chain FORWARD in table filter (IPv{version}) is drop and "
                f"will drop the traffic of {_shown(concerned)}: accept it there, or in the tool that "
                f"owns the chain ({rule} {coming} -j ACCEPT; {rule} {going} -j ACCEPT)"
            )


def _nftables(networks: list[NetworkPolicy], served: Collection[int]) -> Iterator[str]:
    for chain in base_chains():
        family, versions = FAMILIES[chain.family]
        if chain.of_iptables and versions[0] in served:
            continue
        concerned = [n for n in _concerned(networks, versions) if not chain.names(n)]
        if concerned:
            first = concerned[0]
            kind, value = ("group", hex(first.group)) if first.group else ("name", first.link)
            rule = f"nft insert rule {family} {chain.table} {chain.name}"
            yield (
                f"the nftables chain {family} {chain.table} {chain.name} at the forward hook has "
                f"policy drop and will drop the traffic of {_shown(concerned)}: accept it there, or "
                f"in the tool that owns the chain ({rule} iif{kind} {value} accept; "
                f"{rule} oif{kind} {value} accept)"
            )


def base_chains() -> list[BaseChain]:
    """Every nftables chain of others, of an IP family, at the forward hook with policy drop."""
    found = []
    for family, attributes in nfnl.dump(GETCHAIN, b""):
        hook = nfnl.attributes(attributes.get(CHAIN_HOOK, b""))
        number, verdict = nfnl.be32(hook.get(1)), nfnl.be32(attributes.get(CHAIN_POLICY))
        table, name = attributes[CHAIN_TABLE], attributes[CHAIN_NAME]
        if (family, nfnl.text(table)) == OURS:
            continue
        if family in FAMILIES and number == HOOK_FORWARD and verdict == NF_DROP:
            rules = b"".join(
                b"".join(rule.values())
                for owner, rule in nfnl.dump(
                    GETRULE,
                    nfnl.attribute(RULE_TABLE, table) + nfnl.attribute(RULE_CHAIN, name),
                    family,
                )
                if owner == family and rule[RULE_TABLE] == table and rule[RULE_CHAIN] == name
            )
            found.append(BaseChain(family, nfnl.text(table), nfnl.text(name), rules))
    return found
