"""Reads the kernel's legacy iptables tables: two getsockopt calls, no library, no side effect.

python-iptables takes 210 ms to import, drops what it cannot parse and creates every table it asks
about. A pass that changes nothing should do none of that, so reading is done here, and what is read
is understood by `decoding.py`.
"""

import ctypes
import errno
import os
import socket
import struct

from reconciler.core.errors import FirewallError
from reconciler.core.xtables import JUMPS
from reconciler.host import userns
from reconciler.host.firewall.decoding import INFO, LAYOUTS, Table, decode

GET_INFO, GET_ENTRIES = 64, 65
NAMES = {4: "/proc/thread-self/net/ip_tables_names", 6: "/proc/thread-self/net/ip6_tables_names"}
READS = 20


def existing(version: int) -> frozenset[str]:
    """The legacy tables that this network namespace has; asking for another would create it.

    `unshare -Urn` makes both namespaces at once: the file then belongs to the machine's root, and
    the kernel has to be asked for each table. It makes them, in a namespace that is the caller's own.
    """
    try:
        with open(NAMES[version], encoding="utf-8") as file:
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
            _ask(sock, layout.level, GET_INFO, table.encode().ljust(INFO.size, b"\0"))
    except OSError as error:
        if error.errno in (errno.ENOPROTOOPT, errno.ENOENT):
            return False
        raise FirewallError(_cause(version, table, error)) from error
    return True


def read(version: int, table: str) -> Table:
    """The table as it is; an absent one is empty and stays absent."""
    if table not in existing(version):
        return Table({}, {})
    answers = fetch(version, table)
    known = _last.get((version, table))
    if known is not None and known[0] == answers:
        return known[1]
    found = decode(version, *answers)
    _last[version, table] = answers, found
    return found


_last: dict[tuple[int, str], tuple[tuple[bytes, bytes], Table]] = {}
"""What the kernel last answered on a table, to the byte, and what that meant: a pass reads thrice, to
know whether anything differs, under the lock, and to see what was committed."""


def fetch(version: int, table: str) -> tuple[bytes, bytes]:
    """The two answers of the kernel. Creates the table where it is absent."""
    layout = LAYOUTS[version]
    name = table.encode()
    try:
        with socket.socket(layout.family, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
            for _ in range(READS):
                info = _ask(sock, layout.level, GET_INFO, name.ljust(INFO.size, b"\0"))
                size = INFO.unpack(info)[-1]
                head = struct.pack("=32s I 4x", name, size)
                try:
                    entries = _ask(sock, layout.level, GET_ENTRIES, head, room=size)
                except OSError as error:
                    # The table has changed its size between the two calls.
                    if error.errno != errno.EAGAIN:
                        raise
                    continue
                return info, entries
    except OSError as error:
        raise FirewallError(_cause(version, table, error)) from error
    raise FirewallError(
        f"firewall: read IPv{version} table {table}: it changes all the time "
        "(find out who rewrites it)"
    )


def _ask(sock: socket.socket, level: int, option: int, text: bytes, *, room: int = 0) -> bytes:
    """What the kernel puts in the question's place, or behind it where it is given `room` (bytes)."""
    # socket.getsockopt() can neither pass a request in nor take more than 1,024 bytes out. Thousands
    # of rules are megabytes, and are copied once.
    buffer = bytearray(len(text) + room)
    buffer[: len(text)] = text
    length = ctypes.c_uint32(len(buffer))
    place = (ctypes.c_char * len(buffer)).from_buffer(buffer)
    if _LIBC.getsockopt(sock.fileno(), level, option, place, ctypes.byref(length)) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    start = len(text) if room else 0
    return bytes(memoryview(buffer)[start : length.value])


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
