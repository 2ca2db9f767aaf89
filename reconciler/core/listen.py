"""Where a server is to listen: `IP:PORT`, `[IPV6]:PORT`, `/PATH` or `unix:/PATH`."""

import msgspec

from reconciler.core.fields import is_number
from reconciler.core.model import Address, parse_address

PATH_BYTES = 107
"""sun_path has 108, and a zero byte ends it (unix(7))."""


class TcpAddress(msgspec.Struct, frozen=True):
    """An IP address and a port; 0: any that is free."""

    ip: Address
    port: int

    def __str__(self) -> str:
        return f"[{self.ip}]:{self.port}" if self.ip.version == 6 else f"{self.ip}:{self.port}"


class UnixAddress(msgspec.Struct, frozen=True):
    """The path of a unix socket."""

    path: str

    def __str__(self) -> str:
        return self.path


def listen_address(text: str) -> TcpAddress | UnixAddress:
    """Read it. Raises ValueError with a whole sentence."""
    if text.startswith(("/", "unix:")):
        return UnixAddress(_path(text.removeprefix("unix:")))
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]") or _is_ip(text):
        host, port = text, ""
    if not host or is_number(text):
        raise ValueError(
            f"{text!r} names no address (127.0.0.1:{host or port or 9533} is reached from this host "
            "alone)"
        )
    ip = _ip(host)
    if not port:
        raise ValueError(f"{text!r} names no port ({TcpAddress(ip, 9533)})")
    if not is_number(port) or int(port) > 65535:
        raise ValueError(f"{port!r} is no port (0 to 65535; 0 takes any that is free)")
    return TcpAddress(ip, int(port))


def _path(text: str) -> str:
    if not text.startswith("/") or text.endswith("/") or "\0" in text:
        raise ValueError(f"{text!r} is no absolute path of a socket (/run/runcnet/metrics.sock)")
    size = len(text.encode("utf-8", "surrogateescape"))
    if size > PATH_BYTES:
        raise ValueError(f"{text} has {size} bytes (the path of a socket may have {PATH_BYTES})")
    return text


def _is_ip(text: str) -> bool:
    try:
        parse_address(text)
    except ValueError:
        return False
    return True


def _ip(host: str) -> Address:
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if bare == "localhost":
        bare = "127.0.0.1"
    try:
        ip = parse_address(bare)
    except ValueError:
        # A name may mean several addresses, or none yet while the machine starts.
        raise ValueError(
            f"{host!r} is no IP address (127.0.0.1:9533, [::1]:9533, or a path; names are not looked up)"
        ) from None
    if ip.version == 6 and bare == host:
        raise ValueError(f"{host!r}: an IPv6 address stands in brackets ([::1]:9533)")
    if ip.version == 4 and bare != host and host != "localhost":
        raise ValueError(f"{host!r}: only an IPv6 address stands in brackets ({bare}:9533)")
    return ip
