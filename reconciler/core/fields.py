"""Text → value, for each kind of field. Every function raises ValueError with a whole sentence."""

import re

from reconciler.core import names
from reconciler.core.model import (
    BITS,
    Address,
    HostPort,
    PortForward,
    Range,
    Subnet,
    parse_address,
    parse_subnet,
)

MAC = r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}"
SYSCTL = r"net(\.[A-Za-z0-9_-]+)+"
MTU = range(68, 65536)
MTU_IPV6 = 1280
LOOPBACK6 = Address(6, 1)


def boolean(text: str) -> bool:
    """`true` or `false`, and nothing else."""
    if text not in ("true", "false"):
        raise ValueError(f"{text!r} is neither true nor false")
    return text == "true"


def is_number(text: str) -> bool:
    """Whether it is a decimal number of up to ten digits."""
    return text.isascii() and text.isdigit() and len(text) <= 10


def number(text: str, allowed: range, what: str) -> int:
    """A decimal number."""
    if not is_number(text) or int(text) not in allowed:
        raise ValueError(f"{text!r} is no {what} ({allowed.start} to {allowed.stop - 1})")
    return int(text)


def word(text: str, *choices: str) -> str:
    """One of a few words."""
    if text not in choices:
        raise ValueError(f"{text!r} is not possible here ({' or '.join(choices)})")
    return text


def is_name(text: str, limit: int) -> bool:
    """Whether it can name a network or a container."""
    return len(text) <= limit and names.is_name(text)


def name(text: str, limit: int, what: str) -> str:
    """The name of a network or a container."""
    if not is_name(text, limit):
        raise ValueError(
            f"{text!r} is no {what} name (at most {limit} of A-Z a-z 0-9 _ . + -, "
            "beginning with a letter or digit)"
        )
    return text


def interface(text: str) -> str:
    """The name of an interface."""
    if not names.is_interface(text) or text in names.RESERVED_INTERFACES:
        raise ValueError(
            f"{text!r} is no interface name (1 to 15 of A-Z a-z 0-9 _ . -, not beginning with "
            ". or -, and not all, default or lo)"
        )
    return text


def file_name(text: str) -> str:
    """The name of a file of the netns dir."""
    if not text or "/" in text or "\0" in text or text in (".", "..") or len(text.encode()) > 255:
        raise ValueError(f"{text!r} is no file name (no /, not . or .., at most 255 bytes)")
    return text


def folder(text: str) -> str:
    """An absolute path."""
    if not text.startswith("/") or "\0" in text or len(text.encode()) > 4000:
        raise ValueError(f"{text!r} is no absolute path (it must begin with /)")
    return text.rstrip("/") or "/"


def mac(text: str) -> bytes:
    """A MAC that a station may have: six bytes, not multicast, not zero."""
    if not re.fullmatch(MAC, text, re.ASCII):
        raise ValueError(f"{text!r} is no MAC (six bytes as in 02:42:0a:58:00:65)")
    value = bytes.fromhex(text.replace(":", ""))
    if value[0] & 1 or not any(value):
        raise ValueError(f"{text!r} is a group address or zero (the first byte must be even)")
    return value


def address(text: str) -> Address:
    """An IP address that a host may carry."""
    try:
        found = parse_address(text)
    except ValueError:
        raise ValueError(f"{text!r} is no IP address (176.10.0.5 or 2001:db8::5)") from None
    first = found.value >> (24 if found.version == 4 else 120)
    if found.value == 0 or (found.version == 4 and (first == 127 or first >= 224)):
        raise ValueError(f"{text} is no address that a host can be given")
    if found.version == 6 and (first == 0xFF or found.value == 1 or found.value >> 118 == 0x3FA):
        raise ValueError(f"{text} is no address that a host can be given")
    return found


def subnet(text: str) -> Subnet:
    """An IP network."""
    try:
        found = parse_subnet(text)
    except ValueError as error:
        hint = "176.10.0.0/16 or fd00:1::/64"
        if "host bits" in str(error):
            hint = f"{_masked(text)} is the network"
        raise ValueError(f"{text!r} is no subnet ({hint})") from None
    return found


def _masked(text: str) -> str:
    from ipaddress import ip_network

    return str(ip_network(text, strict=False))


def address_range(text: str) -> Range:
    """`176.10.1.0-176.10.2.255`, or a subnet."""
    if "/" in text:
        found = subnet(text)
        return Range(found.version, found.value, found.last)
    lead, dash, tail = text.partition("-")
    if not dash:
        only = address(text)
        return Range(only.version, only.value, only.value)
    try:
        first, last = parse_address(lead.strip()), parse_address(tail.strip())
    except ValueError:
        raise ValueError(f"{text!r} is no range (176.10.1.0-176.10.1.255)") from None
    if first.version != last.version or first.value > last.value:
        raise ValueError(f"{text!r} is no range (the first address must not be above the last)")
    return Range(first.version, first.value, last.value)


def _ports(text: str, whole: str) -> tuple[int, int]:
    first, dash, last = text.partition("-")
    low = _port(first, whole)
    high = _port(last, whole) if dash else low
    if high < low:
        raise ValueError(f"{whole!r}: the port range {text} runs backwards")
    return low, high - low + 1


def _port(text: str, whole: str) -> int:
    if not is_number(text) or int(text) not in range(1, 65536):
        raise ValueError(f"{whole!r}: {text!r} is no port (1 to 65535)")
    return int(text)


def port_forward(text: str) -> PortForward:
    """`[HOST_IP:]HOST[-HOST]:CONTAINER[-CONTAINER][/tcp|udp|sctp]`."""
    rest, slash, protocol = text.partition("/")
    if slash and protocol not in ("tcp", "udp", "sctp"):
        raise ValueError(f"{text!r}: {protocol!r} is no protocol (tcp, udp or sctp)")
    host_ip = None
    if rest.startswith("["):
        lead, close, rest = rest[1:].partition("]:")
        if not close:
            raise ValueError(f"{text!r}: the ] of the address is missing")
        host_ip = address_or_loopback(lead)
    parts = rest.split(":")
    if len(parts) == 3 and host_ip is None:
        host_ip = address_or_loopback(parts.pop(0))
    if len(parts) != 2:
        raise ValueError(f"{text!r} is no published port (HOST:CONTAINER, as in 8080:80)")
    return published(parts[0], parts[1], host_ip=host_ip, protocol=protocol or "tcp", text=text)


def published(
    host_text: str, inner_text: str, *, host_ip: Address | None, protocol: str, text: str
) -> PortForward:
    """Two runs of ports, of one length; or a run that replicas share out, and one port."""
    if host_ip is not None and host_ip == LOOPBACK6:
        raise ValueError(
            f"{text!r}: the kernel cannot translate what goes to ::1 (publish it on 127.0.0.1, or "
            "on an address of a link)"
        )
    host, count = _ports(host_text, text)
    inner, inner_count = _ports(inner_text, text)
    if inner_count not in (count, 1):
        raise ValueError(f"{text!r}: {count} host ports lead to {inner_count} container ports")
    if inner_count != count:
        # A run of host ports with one container port is for replicas, which share it out.
        count = -count
    return PortForward(
        host_ip=host_ip, host_port=host, container_port=inner, count=count, protocol=protocol
    )


def host_port(text: str) -> HostPort:
    """A port of the host that members may reach: `53/udp`, `8000-8010/tcp`."""
    run, slash, protocol = text.partition("/")
    if not slash or protocol not in ("tcp", "udp", "sctp"):
        raise ValueError(f"{text!r} is no port of the host (as in 53/udp or 8000-8010/tcp)")
    first, count = _ports(run, text)
    return HostPort(protocol, first, first + count - 1)


def destination(text: str) -> Subnet:
    """A subnet, or one address."""
    if "/" in text:
        return subnet(text)
    only = address(text)
    return Subnet(only.version, only.value, BITS[only.version])


def address_or_loopback(text: str) -> Address:
    """A host address to listen on; 127.0.0.1 and ::1 are fine here."""
    try:
        return parse_address(text)
    except ValueError:
        raise ValueError(f"{text!r} is no IP address") from None


def sysctl(text: str) -> str:
    """The name of a sysctl of a network namespace."""
    dotted = text.replace("/", ".") if "." not in text else text
    if not re.fullmatch(SYSCTL, dotted, re.ASCII):
        raise ValueError(f"{text!r} is no sysctl of a network namespace (it must begin with net.)")
    return dotted
