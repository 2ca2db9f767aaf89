"""Looks for firewalls of others that will drop what ours accepts.

A packet must pass every base chain at the forward hook: an accept in one never overrides a drop
in another. The chains of nftables (iptables-nft's and firewalld's among them) are read by netlink,
without the nft program; of the legacy tables those are read that exist.
"""

import os
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

from reconciler.core.policy import NetworkPolicy, Policy
from reconciler.host.firewall import kernel

NETLINK_NETFILTER = 12
NFNL_SUBSYS_NFTABLES = 10
GETCHAIN, GETRULE = 4, 7
NLM_F_REQUEST, NLM_F_DUMP = 0x1, 0x300
NLM_F_DUMP_INTR = 0x10
NLMSG_ERROR, NLMSG_DONE = 2, 3
CHAIN_TABLE, CHAIN_NAME, CHAIN_HOOK, CHAIN_POLICY = 1, 3, 4, 5
RULE_TABLE, RULE_CHAIN = 1, 2
HOOK_FORWARD, NF_DROP = 2, 0
FAMILIES = {1: ("inet", (4, 6)), 2: ("ip", (4,)), 10: ("ip6", (6,))}
DUMPS = 5


class BaseChain(NamedTuple):
    """A chain at the forward hook whose policy is drop, and what its rules hold."""

    family: int
    table: str
    name: str
    rules: bytes

    def names(self, network: NetworkPolicy) -> bool:
        """Whether a rule compares something with the network's link, or its device group."""
        # An attribute NFTA_DATA_VALUE: nft compares 16 bytes, iptables-nft the name and its NUL; a
        # group is a number of the machine's own byte order.
        if network.group:
            return struct.pack("=HHI", 4 + 4, 1, network.group) in self.rules
        text = network.link.encode() + b"\0"
        heads = (struct.pack("=HH", 4 + 16, 1), struct.pack("=HH", 4 + len(text), 1))
        return any(head + text in self.rules for head in heads)


def warnings(policy: Policy) -> tuple[str, ...]:
    """One sentence for each foreign base chain that will drop this traffic."""
    routed = [n for n in policy.networks if not n.internal]
    if not routed:
        return ()
    return (*_legacy(routed), *_nftables(routed))


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


def _nftables(networks: list[NetworkPolicy]) -> Iterator[str]:
    for chain in base_chains():
        family, versions = FAMILIES[chain.family]
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
    """Every nftables chain of an IP family at the forward hook with policy drop."""
    found = []
    for family, attributes in _dump(GETCHAIN, b""):
        hook = _attributes(attributes.get(CHAIN_HOOK, b""))
        number, verdict = _be32(hook.get(1)), _be32(attributes.get(CHAIN_POLICY))
        if family in FAMILIES and number == HOOK_FORWARD and verdict == NF_DROP:
            table, name = attributes[CHAIN_TABLE], attributes[CHAIN_NAME]
            rules = b"".join(
                b"".join(rule.values())
                for owner, rule in _dump(
                    GETRULE, _attribute(RULE_TABLE, table) + _attribute(RULE_CHAIN, name), family
                )
                if owner == family and rule[RULE_TABLE] == table and rule[RULE_CHAIN] == name
            )
            found.append(BaseChain(family, _text(table), _text(name), rules))
    return found


# -- netlink ------------------------------------------------------------------------------------


def _dump(kind: int, body: bytes, family: int = 0) -> list[tuple[int, dict[int, bytes]]]:
    """The answers to one dump request: family and attributes. Empty without nftables."""
    payload = struct.pack("=BBH", family, 0, 0) + body
    head = struct.pack(
        "=IHHII",
        16 + len(payload),
        NFNL_SUBSYS_NFTABLES << 8 | kind,
        NLM_F_REQUEST | NLM_F_DUMP,
        1,
        0,
    )
    answers: list[tuple[int, dict[int, bytes]]] = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as sock:
        for _ in range(DUMPS):
            sock.send(head + payload)
            answers, torn = _answers(sock)
            if not torn:
                return answers
    return answers


def _answers(sock: socket.socket) -> tuple[list[tuple[int, dict[int, bytes]]], bool]:
    answers: list[tuple[int, dict[int, bytes]]] = []
    torn = False
    while True:
        data = sock.recv(1 << 18)
        place = 0
        while place + 16 <= len(data):
            length, kind, flags = struct.unpack_from("=IHH", data, place)
            torn = torn or bool(flags & NLM_F_DUMP_INTR)
            if kind == NLMSG_DONE:
                return answers, torn
            if kind == NLMSG_ERROR:
                number = -struct.unpack_from("=i", data, place + 16)[0]
                # The chain went away meanwhile, or this kernel has no nftables.
                if number:
                    return [], False
            else:
                body = data[place + 20 : place + length]
                answers.append((data[place + 16], _attributes(body)))
            place += (length + 3) & ~3


def _attributes(data: bytes) -> dict[int, bytes]:
    found = {}
    place = 0
    while place + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, place)
        if length < 4:
            break
        found[kind & 0x3FFF] = data[place + 4 : place + length]
        place += (length + 3) & ~3
    return found


def _attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def _be32(data: bytes | None) -> int | None:
    return None if data is None else int.from_bytes(data, "big")


def _text(data: bytes) -> str:
    return os.fsdecode(data.rstrip(b"\0"))
