"""What the kernel's answers on a legacy iptables table say, in our words.

The structures are those of linux/netfilter_ipv4/ip_tables.h, which the kernel keeps stable for 64-bit
programs:

    entry ::= addresses, links, flags | offsets | counters | match* | target
    match, target ::= u16 size, char name[29], u8 revision, data
    table ::= entry*; a user chain starts with an ERROR target that holds its name,
              every chain ends with a standard target (its policy, or RETURN)
"""

import socket
import struct
from typing import NamedTuple, cast

from reconciler.core.model import BITS, Address, Subnet
from reconciler.core.xtables import Rule

HOOKS = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")
VERDICTS = {-1: "DROP", -2: "ACCEPT", -4: "QUEUE", -5: "RETURN"}
PROTOCOLS = {6: "tcp", 17: "udp", 58: "ipv6-icmp", 132: "sctp"}

INFO = struct.Struct("=32s I 5I 5I I I")
"""The answer on a whole table: its name, which hooks it has, where their chains begin and end, the
number of entries and their size in bytes."""
_HEAD = struct.Struct("=H 29s B")
_SIZES = struct.Struct("=HH")


class Layout(NamedTuple):
    """Where things are in ipt_entry and ip6t_entry."""

    family: int
    level: int
    flags: int
    """Offset of protocol and flags, which end where the alignment does."""
    cache: int
    size: int


LAYOUTS = {
    4: Layout(socket.AF_INET, socket.IPPROTO_IP, 80, 84, 112),
    6: Layout(socket.AF_INET6, socket.IPPROTO_IPV6, 128, 136, 168),
}


class Table(NamedTuple):
    """One table: its chains with their rules, and the policies of the built-in ones."""

    chains: dict[str, tuple[Rule, ...]]
    policies: dict[str, str]


class _Entry(NamedTuple):
    offset: int
    head: bytes
    matches: tuple[tuple[str, int, bytes], ...]
    target: tuple[str, int, bytes]
    raw: bytes


def decode(version: int, info: bytes, blob: bytes) -> Table:
    """What the two answers say."""
    layout, known = LAYOUTS[version], _READ[version]
    cache, size = layout.cache, layout.size
    _, valid, *numbers = INFO.unpack(info)
    heads = {numbers[hook]: name for hook, name in enumerate(HOOKS) if valid >> hook & 1}
    tails = {numbers[5 + hook]: name for hook, name in enumerate(HOOKS) if valid >> hook & 1}
    chains: dict[str, list[Rule]] = {}
    policies: dict[str, str] = {}
    verdicts: list[tuple[list[Rule], int, int, int, int]] = []
    current: list[Rule] = []
    offset, end = 0, len(blob)
    # Thousands of published ports: one walk, and not an object more than it takes.
    while offset < end:
        target, following = _SIZES.unpack_from(blob, offset + cache + 4)
        after, name = offset + following, offset + target + 2
        if offset in heads:
            current = chains.setdefault(heads[offset], [])
        if blob[name : name + 6] == b"ERROR\0":
            heads[after] = _text(_extension(blob[offset:after], target)[0][2])
        elif not blob[name]:
            # A verdict, or a jump: to the place of a chain, which changes with every commit.
            verdicts.append((current, len(current), offset, after, target))
            current.append(NO_RULE)
        else:
            # What changes by itself is left out: the cache, counters, places in the table.
            key = (
                blob[offset : offset + cache]
                + blob[offset + cache + 4 : offset + cache + 8]
                + blob[offset + size : after]
            )
            rule = known.get(key)
            if rule is None:
                rule = _rule(version, _entry(layout, offset, blob[offset:after], target), heads)
                if len(known) >= REMEMBERED:
                    known.clear()
                known[key] = rule
            current.append(rule)
        offset = after
    # Only now are the places of all chains known.
    for rules, place, offset, after, target in verdicts:
        rules[place] = _rule(version, _entry(layout, offset, blob[offset:after], target), heads)
        if offset in tails:
            policies[tails[offset]] = rules[place].target
    # A chain's last entry is its policy, or the RETURN that the library adds to each of a user.
    return Table({name: tuple(rules[:-1]) for name, rules in chains.items()}, policies)


NO_RULE = Rule("")
_READ: dict[int, dict[bytes, Rule]] = {4: {}, 6: {}}
"""What entries said that were read before, by their bytes without counters: a daemon, and whoever
reads a table twice, meets thousands of published ports again and again."""
REMEMBERED = 50_000


def _entry(layout: Layout, offset: int, raw: bytes, target: int) -> _Entry:
    matches, place = [], layout.size
    while place < target:
        extension, size = _extension(raw, place)
        matches.append(extension)
        place += size
    return _Entry(offset, raw[: layout.cache], tuple(matches), _extension(raw, target)[0], raw)


def _extension(raw: bytes, place: int) -> tuple[tuple[str, int, bytes], int]:
    size, name, revision = _HEAD.unpack_from(raw, place)
    return (_text(name), revision, raw[place + _HEAD.size : place + size]), size


def _text(data: bytes) -> str:
    return data.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _rule(version: int, entry: _Entry, heads: dict[int, str]) -> Rule:
    """The entry in our words, or in its own bytes where these do not reach."""
    target, goal, plain = _target(version, entry, heads)
    known: dict[str, object] = {}
    for name, revision, data in entry.matches:
        word, value = _match(name, revision, data)
        plain = plain and bool(word) and word not in known
        known[word] = value
        if word in ("ports", "icmp"):
            known["layer4"] = "ipv6-icmp" if name == "icmp6" else name
    source, destination, rest = _addresses(version, entry.head)
    in_link, out_link = _link(rest[:16], rest[32:48]), _link(rest[16:32], rest[48:64])
    comment = str(known.get("comment", ""))
    groups = cast(tuple[int, int], known.get("groups", (0, 0)))
    protocol, inverted = _flags(version, entry.head[LAYOUTS[version].flags :])
    if (
        not plain
        or protocol is None
        or (inverted and not in_link)
        or known.get("layer4", protocol) != protocol
        or in_link is None
        or out_link is None
        or isinstance(source, bytes)
        or isinstance(destination, bytes)
    ):
        # See _flags: which of the ends are turned around (1 in, 2 out).
        turned = entry.head[LAYOUTS[version].flags + {4: 3, 6: 4}[version]]
        ends = ("" if turned & 1 else in_link or "", "" if turned & 2 else out_link or "")
        return Rule(target, comment, other=_bare(version, entry), ends=ends)
    return Rule(
        target=target,
        comment=comment,
        in_link="" if inverted else in_link,
        not_in_link=in_link if inverted else "",
        out_link=out_link,
        source=source,
        destination=destination,
        replies="replies" in known,
        bridged="bridged" in known,
        in_group=groups[0],
        out_group=groups[1],
        astray="astray" in known,
        translated="translated" in known,
        local="local" in known,
        protocol=protocol,
        ports=cast(tuple[int, int], known.get("ports", (0, 0))),
        icmp=cast(int, known.get("icmp", 0)),
        to=goal,
    )


Goal = tuple[Address, int, int, int]


def _target(version: int, entry: _Entry, heads: dict[int, str]) -> tuple[str, Goal | None, bool]:
    """A verdict, a chain or an extension, DNAT's destination, and whether there is no more to it."""
    name, revision, data = entry.target
    if name == "DNAT":
        goal = _goal(version, data) if revision == 2 else None
        return name, goal, goal is not None
    if name:
        flags = data[4:8] if version == 4 else data[:4]
        return name, None, name == "MASQUERADE" and revision == 0 and not any(flags)
    verdict = struct.unpack_from("=i", data)[0]
    if verdict < 0:
        return VERDICTS.get(verdict, "?"), None, verdict in VERDICTS
    if verdict == entry.offset + len(entry.raw):
        return "", None, False  # A rule without a target: it only counts.
    return heads.get(verdict, "?"), None, verdict in heads


def _goal(version: int, data: bytes) -> Goal | None:
    """One address and a run of ports, out of an nf_nat_range2; None: something else."""
    # linux/netfilter/nf_nat.h: flags (1 addresses, 2 ports, 0x20 shifted), two addresses, the first
    # and last port, and the packet's port that meets the first; numbers in network order.
    flags = struct.unpack_from("=I", data)[0]
    width = BITS[version] // 8
    low, high = data[4 : 4 + width], data[20 : 20 + width]
    first, last, base = struct.unpack_from("!HHH", data, 36)
    if low != high or flags not in (3, 0x23):
        return None
    address = Address(version, int.from_bytes(low, "big"))
    return address, first, last, base if flags & 0x20 else first


def _flags(version: int, data: bytes) -> tuple[str | None, bool]:
    """The protocol (""; any; None: one that is not ours, or more flags), and whether the incoming
    link is the one that it must not be."""
    # ipt_ip: u16 protocol, u8 flags, u8 inverted. ip6t_ip6: u16 protocol, u8 class, u8 flags (1: the
    # protocol counts), u8 inverted. Inverted 1: the incoming link.
    number = struct.unpack_from("=H", data)[0]
    flags = data[2] if version == 4 else data[3]
    inverted = data[3] if version == 4 else data[4]
    more = b"" if version == 4 else data[2:3] + data[5:]
    counts = 1 if version == 6 and number else 0
    if any(more) or flags != counts or inverted > 1:
        return None, False
    return ("" if not number else PROTOCOLS.get(number)), inverted == 1


def _match(name: str, revision: int, data: bytes) -> tuple[str, object]:
    """The word of ours that a match stands for, or none."""
    if name == "comment":
        return "comment", _text(data)
    if name == "conntrack" and revision == 3:
        # xt_conntrack_mtinfo3: match_flags, invert_flags, state_mask. Bit 0: only the state
        # counts; states 2 and 4: ESTABLISHED and RELATED.
        # State 128: the destination was translated.
        words = {(1, 0, 6): "replies", (1, 0, 128): "translated"}
        return words.get(struct.unpack_from("=HHH", data, 146), ""), True
    if name in ("tcp", "udp", "sctp"):
        run = _destination_ports(name, data)
        return ("ports", run) if run else ("", 0)
    if name == "icmp6" and data[1:4] == b"\0\xff\0":
        return "icmp", data[0]  # ip6t_icmp: type, first and last code, inverted.
    if name == "addrtype" and revision == 1:
        # xt_addrtype_info_v1: source, destination (4: RTN_LOCAL is 2, so bit 2), flags.
        return ("local", True) if struct.unpack_from("=HHI", data) == (0, 4, 0) else ("", 0)
    if name == "physdev" and data[64:66] == b"\0\4":
        return "bridged", True  # xt_physdev_info: invert, bitmask (4: is-bridged).
    if name == "devgroup":
        # xt_devgroup_info: flags (1 source, 2 source inverted, 4 and 8 destination), group and mask
        # of each.
        flags, source, source_mask, target, target_mask = struct.unpack_from("=5I", data)
        whole = 0xFFFFFFFF
        if not flags & 10 and all(
            mask == whole and group if flags & bit else not group
            for bit, group, mask in ((1, source, source_mask), (4, target, target_mask))
        ):
            return "groups", (source, target)
    if name == "rpfilter" and data[:1] == b"\10":
        return "astray", True  # xt_rpfilter_info: flags (8: inverted).
    return "", None


def _destination_ports(name: str, data: bytes) -> tuple[int, int] | None:
    """The run of destination ports, where the match asks for nothing else."""
    if name == "sctp":
        # xt_sctp_info: destination and source ports, chunks, flags (2: destination ports), inverted.
        flags, inverted = struct.unpack_from("=II", data, 284)
        first, last = struct.unpack_from("=HH", data)
        return (first, last) if (flags, inverted) == (2, 0) else None
    # xt_tcp, xt_udp: source and destination ports, then for TCP an option and flags, inverted.
    source, first, last = struct.unpack_from("=I", data)[0], *struct.unpack_from("=HH", data, 4)
    rest = data[8:12] if name == "tcp" else data[8:9]
    return (first, last) if source == 0xFFFF0000 and not any(rest) else None


def _addresses(
    version: int, head: bytes
) -> tuple[Subnet | bytes | None, Subnet | bytes | None, bytes]:
    """Source, destination (None: any; b"": none that a prefix can say) and what follows."""
    width = BITS[version] // 8
    # ipt_ip holds src, dst, smsk, dmsk; ip6t_ip6 too.
    parts = [head[i * width : (i + 1) * width] for i in range(4)]
    return (
        _subnet(version, parts[0], parts[2]),
        _subnet(version, parts[1], parts[3]),
        head[4 * width :],
    )


def _subnet(version: int, address: bytes, mask: bytes) -> Subnet | bytes | None:
    value, bits = int.from_bytes(address, "big"), int.from_bytes(mask, "big")
    if not value and not bits:
        return None
    prefix = bits.bit_count()
    whole = (1 << BITS[version]) - 1
    if bits != whole ^ whole >> prefix or value & ~bits:
        return b""
    return Subnet(version, value, prefix)


def _link(name: bytes, mask: bytes) -> str | None:
    """A link by its whole name; "": any; None: a pattern, or a mask that compares less."""
    text = name.rstrip(b"\0")
    expected = b"\xff" * (len(text) + 1) if text else b""
    if mask != expected.ljust(16, b"\0") or b"\0" in text:
        return None
    return text.decode("utf-8", "surrogateescape")


def _bare(version: int, entry: _Entry) -> bytes:
    """The entry without what changes by itself: counters, cache, places in the table."""
    layout, raw = LAYOUTS[version], bytearray(entry.raw)
    raw[layout.cache : layout.cache + 4] = bytes(4)
    raw[layout.cache + 8 : layout.size] = bytes(layout.size - layout.cache - 8)
    if not entry.target[0]:
        place = struct.unpack_from("=H", raw, layout.cache + 4)[0] + _HEAD.size
        raw[place : place + 4] = bytes(4)
    return bytes(raw)
