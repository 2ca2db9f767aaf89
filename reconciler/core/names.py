"""Names that are derived: host ends, bridges, MACs, aliases.

They depend only on what is declared and on the machine, never on the version of runcnet: an
upgrade must plan nothing. Hence the spelled-out formats and the fixed hash.
"""

from collections.abc import Iterable

import msgspec

from reconciler.core.digests import sha256
from reconciler.core.model import Address

RESERVED_INTERFACES = frozenset({"all", "default", "lo"})
ALIAS = "runcnet:"
HOOK = " hook"
ROOMY = 54
"""A container's name up to this length (bytes) fits into every comment of nft, whatever its network."""


_FIRST = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789")
_NAME = _FIRST.union("_.+-")
_INTERFACE = _FIRST.union("_.-")


# A regular expression is as quick, but takes longer to compile than a hook has.
def is_name(text: str) -> bool:
    """Whether it can name a network or a container, however long it is: letters, digits and `_.+-`,
    beginning with a letter or digit."""
    return text[:1] in _FIRST and _NAME.issuperset(text)


def is_interface(text: str) -> bool:
    """Whether it can name an interface: as `is_name`, but without `+`, and `_` may begin it; at most 15
    bytes (IFNAMSIZ)."""
    first = text[:1]
    return (first in _FIRST or first == "_") and len(text) <= 15 and _INTERFACE.issuperset(text)


def _digest(*parts: str) -> bytes:
    # No part holds a NUL: names cannot, so two lists of parts never hash alike.
    digest: bytes = sha256("\0".join(parts).encode()).digest()
    return digest


_BASE32 = "abcdefghijklmnopqrstuvwxyz234567"
_PAIRS = [one + two for one in _BASE32 for two in _BASE32]


def _short(lead: str, *parts: str) -> str:
    """The digest's first 65 bits in base32 (RFC 4648), small letters.

    A collision among 100,000 names has odds of 1 in 7 * 10^9. base64.b32encode would do, at five
    times the cost.
    """
    bits = int.from_bytes(_digest(*parts)[:9], "big")
    pairs = [_PAIRS[bits >> shift & 1023] for shift in (62, 52, 42, 32, 22, 12)]
    return lead + "".join(pairs) + _BASE32[bits >> 7 & 31]


def host_interface(network: str, container: str, interface: str) -> str:
    """The host's end of a veth pair, 15 bytes."""
    return _short("rn", "host", network, container, interface)


def shortened(name: str) -> str:
    """13 bytes that stand for a name where there is no room for it."""
    return _short("", "short", name)


def stand_in(container: str) -> str:
    """What a comment of nft says where there is no room for a container's name; no name is like it."""
    return f"~{shortened(container)}"


def whole_names(containers: Iterable[str]) -> dict[str, str]:
    """Stand-in → the name, of those that are long enough to have one in some network."""
    return {stand_in(name): name for name in containers if len(name) > ROOMY}


def looks_derived(name: str) -> bool:
    """Whether it could be the derived name of a host end."""
    return len(name) == 15 and name.startswith("rn")


def bridge_name(network: str) -> str:
    """The bridge of a network: its own name where that is an interface name, else 15 bytes of hash."""
    if is_interface(network) and network not in RESERVED_INTERFACES:
        return network
    return _short("rb", "bridge", network)


def network_group(network: str) -> int:
    """The device group of a routed network's host ends (IFLA_GROUP), above what people number by hand."""
    return 0x72 << 24 | int.from_bytes(_digest("group", network)[:3], "big")


def _mac(*parts: str) -> bytes:
    digest = _digest(*parts)
    # Bit 1 set: locally administered; bit 0 clear: one station (IEEE 802, section 8.2.2).
    return bytes([digest[0] & 0xFC | 0x02]) + digest[1:6]


def bridge_mac(machine: str, network: str) -> bytes:
    """The fixed MAC of a network's bridge; `machine` is the text of /etc/machine-id."""
    return _mac("bridge", machine, network)


def member_mac(machine: str, network: str, first: Address) -> bytes:
    """The MAC of a container's end of a veth pair."""
    return _mac("member", machine, network, f"{first.version}/{first.value:x}")


def host_mac(machine: str, network: str, first: Address) -> bytes:
    """The MAC of the host's end of a veth pair."""
    return _mac("port", machine, network, f"{first.version}/{first.value:x}")


def bare_mac(machine: str, network: str, container: str, interface: str, *, host: bool) -> bytes:
    """The MAC of either end of a veth pair that carries no address at all."""
    return _mac("bare", machine, network, container, interface, "host" if host else "member")


def link_local(mac: bytes) -> Address:
    """The IPv6 link-local address of a MAC (RFC 4291, appendix A: modified EUI-64)."""
    eui = bytes([mac[0] ^ 0x02]) + mac[1:3] + b"\xff\xfe" + mac[3:6]
    return Address(6, 0xFE80 << 112 | int.from_bytes(eui, "big"))


def mac_text(mac: bytes) -> str:
    """`02:42:0a:58:00:65`."""
    return mac.hex(":")


class EndpointAlias(msgspec.Struct, frozen=True):
    """What the alias of a host end says."""

    network: str
    container: str
    interface: str
    hook: bool


def network_alias(network: str) -> str:
    """The mark on a bridge."""
    return ALIAS + network


def container_alias(container: str) -> str:
    """The mark on `lo` inside a container's namespace."""
    return ALIAS + container


def endpoint_alias(network: str, container: str, interface: str, *, hook: bool = False) -> str:
    """The mark on the host's end of a veth pair; at most 222 of the kernel's 255 bytes."""
    return f"{ALIAS}{network}/{container}/{interface}{HOOK if hook else ''}"


def parse_alias(alias: str) -> EndpointAlias | str | None:
    """An endpoint's mark, the one name of a bridge or `lo`, or None where it is nobody of ours."""
    if not alias.startswith(ALIAS):
        return None
    body = alias[len(ALIAS) :]
    hook = body.endswith(HOOK)
    parts = body.removesuffix(HOOK).split("/")
    if not all(is_name(part) or is_interface(part) for part in parts):
        return None
    if len(parts) == 1 and not hook:
        return parts[0]
    if len(parts) == 3:
        return EndpointAlias(parts[0], parts[1], parts[2], hook)
    return None
