"""Hears that somebody's rules in nftables have changed where ours stand. A doorbell: who rang is not told.

The legacy tables of iptables announce nothing.
"""

import contextlib
import socket
import struct

from reconciler.host.firewall import nfnl

OURS = frozenset({(nfnl.INET, b"runcnet\0"), (2, b"filter\0"), (10, b"filter\0")})
"""Our own table, and those of iptables' nft variant that may hold rules of ours."""
TABLE_NAME = 1
"""Which attribute names the table, in every message about a table, a chain, a rule, a set or an element."""
NEWGEN = 15
MEMORY = 4 << 20
"""Bytes of the kernel's memory for what was not read yet; more is lost, and counts as a ring."""


class Bell:
    """To be polled for reading. Raises OSError where it cannot be had."""

    def __init__(self) -> None:
        kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK
        self._socket = socket.socket(socket.AF_NETLINK, kind, nfnl.NETLINK_NETFILTER)
        try:
            # A socket without an address of its own is skipped: 0 is what the kernel leaves out.
            self._socket.bind((0, 1 << (nfnl.GROUP_NFTABLES - 1)))
            with contextlib.suppress(OSError):  # a smaller one loses more, which is a ring
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, MEMORY)
        except OSError:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """For poll(2)."""
        return self._socket.fileno()

    def rang(self) -> bool:
        """Take all that is there; whether anything of it concerns tables that hold rules of ours."""
        found = False
        while True:
            try:
                data = self._socket.recv(1 << 16)
            except BlockingIOError:
                return found
            except OSError:
                found = True  # ENOBUFS: some were lost
                continue
            found = found or _concerns(data)

    def close(self) -> None:
        """Stop to listen."""
        self._socket.close()


def _concerns(data: bytes) -> bool:
    place = 0
    while place + 20 <= len(data):
        length, kind = struct.unpack_from("=IH", data, place)
        if kind == nfnl.NFNL_SUBSYS_NFTABLES << 8 | NEWGEN:
            place += (length + 3) & ~3
            continue
        said = nfnl.attributes(data[place + 20 : place + length])
        if (data[place + 16], said.get(TABLE_NAME, b"")) in OURS:
            return True
        place += (length + 3) & ~3
    return False
