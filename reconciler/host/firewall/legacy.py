"""Asks the kernel for its legacy iptables tables: which there are, and what one holds, as bytes."""

import ctypes
import errno
import os
import socket
import struct
from typing import NamedTuple

from reconciler.core.errors import FirewallError
from reconciler.core.xtables import JUMPS
from reconciler.host import userns

GETINFO, GET_ENTRIES = 64, 65
NAMES = {4: "/proc/thread-self/net/ip_tables_names", 6: "/proc/thread-self/net/ip6_tables_names"}
READS = 20

INFO = struct.Struct("=32s I 5I 5I I I")


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


def existing(version: int) -> frozenset[str]:
    """The legacy tables that this network namespace has; asking for another would create it.

    `unshare -Urn` makes both namespaces at once: the file then belongs to the machine's root, and
    the kernel has to be asked for each table. It makes them, in a namespace that is the caller's own.
    """
    try:
        with open(NAMES[version], encoding="ascii") as file:
            return frozenset(file.read().split())
    except FileNotFoundError:
        return frozenset()  # The kernel has not loaded ip_tables, or was built without it.
    except PermissionError as error:
        if userns.inner():
            return frozenset(table for table in JUMPS if _answers(version, table))
        raise FirewallError(
            "firewall: read the tables: CAP_NET_ADMIN and root are needed (run it with sudo)"
        ) from error


def _answers(version: int, table: str) -> bool:
    layout = LAYOUTS[version]
    try:
        with socket.socket(layout.family, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
            _ask(sock, layout.level, GETINFO, table.encode().ljust(INFO.size, b"\0"))
    except OSError as error:
        if error.errno in (errno.ENOPROTOOPT, errno.ENOENT):
            return False
        raise FirewallError(_cause(version, table, error)) from error
    return True


def fetch(version: int, table: str) -> tuple[bytes, bytes]:
    """The two answers of the kernel. Creates the table where it is absent."""
    layout = LAYOUTS[version]
    name = table.encode()
    try:
        with socket.socket(layout.family, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
            for _ in range(READS):
                info = _ask(sock, layout.level, GETINFO, name.ljust(INFO.size, b"\0"))
                size = INFO.unpack(info)[-1]
                head = struct.pack("=32s I 4x", name, size)
                try:
                    answer = _ask(sock, layout.level, GET_ENTRIES, head + bytes(size))
                except OSError as error:
                    # The table has changed its size between the two calls.
                    if error.errno != errno.EAGAIN:
                        raise
                    continue
                return info, answer[len(head) :]
    except OSError as error:
        raise FirewallError(_cause(version, table, error)) from error
    raise FirewallError(
        f"firewall: read IPv{version} table {table}: it changes all the time "
        "(find out who rewrites it)"
    )


def _ask(sock: socket.socket, level: int, option: int, text: bytes) -> bytes:
    # socket.getsockopt() can neither pass a request in nor take more than 1,024 bytes out.
    buffer = ctypes.create_string_buffer(text, len(text))
    length = ctypes.c_uint32(len(text))
    if _LIBC.getsockopt(sock.fileno(), level, option, buffer, ctypes.byref(length)) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return buffer.raw[: length.value]


_LIBC = ctypes.CDLL(None, use_errno=True)


def _cause(version: int, table: str, error: OSError) -> str:
    if error.errno in (errno.ENOPROTOOPT, errno.ENOENT):
        return (
            f"firewall: read IPv{version} table {table}: this kernel has no legacy iptables tables "
            "(load ip_tables and ip6_tables where they exist, or run with --firewall none)"
        )
    if error.errno == errno.EPERM:
        return "firewall: read the tables: CAP_NET_ADMIN is needed (run it with sudo)"
    name = errno.errorcode.get(error.errno or 0, "")
    return f"firewall: read IPv{version} table {table}: {name}: {error.strerror}"
