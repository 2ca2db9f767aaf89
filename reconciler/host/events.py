"""Notifications of the kernel: where something about links, addresses or routes has changed."""

import os
import struct
from typing import NamedTuple

from reconciler import _rtnl  # type: ignore[attr-defined]  # built from _netlink/

ffi, lib = _rtnl.ffi, _rtnl.lib
ROOM = 8192
"""Events taken in one go."""
MEMORY = 32 << 20
"""Bytes of the kernel's memory for what was not read yet; more is lost, and everything looked at."""
EVENT = struct.Struct("=iiHBB16s16s")

BRIDGE = 7  # AF_BRIDGE
HOST = -1
"""The namespace id that stands for our own."""
NEW_LINK, DEL_LINK = 16, 17
NEW_ADDRESS, DEL_ADDRESS = 20, 21
NEW_ROUTE, DEL_ROUTE = 24, 25
NEW_NEIGHBOUR, DEL_NEIGHBOUR = 28, 29
NEW_RULE, DEL_RULE = 32, 33
NEW_NETCONF, DEL_NETCONF = 80, 81
NEW_NSID, DEL_NSID = 88, 89


class Event(NamedTuple):
    """One notification: in which namespace, of what kind, about what."""

    nsid: int
    index: int  # type: ignore[assignment]  # it hides tuple.index, as meant
    """Of the link; for NEW_NSID and DEL_NSID the id."""
    type: int
    family: int
    prefix: int
    raw_name: bytes
    raw_address: bytes

    @property
    def name(self) -> str:
        """The link's, where it is about one."""
        return self.raw_name.rstrip(b"\0").decode("utf-8", "replace")

    @property
    def mac(self) -> bytes:
        """What a bridge's table says about the port `index`; empty: it is about something else."""
        return self.raw_address[:6] if self.family == BRIDGE else b""

    @property
    def address(self) -> tuple[int, int]:
        """IP version and value of the neighbour, or of the route's destination."""
        if self.family == 10:
            return 6, int.from_bytes(self.raw_address, "big")
        return 4, int.from_bytes(self.raw_address[:4], "big")


class Events:
    """An open ear; to be polled for reading. Raises OSError where it cannot be opened."""

    def __init__(self) -> None:
        found = int(lib.rcn_events_open(MEMORY))
        if found < 0:
            raise OSError(-found, "notifications of the kernel cannot be heard")
        self._fd = found
        self._events = ffi.new("struct rcn_event[]", ROOM)

    def fileno(self) -> int:
        """For poll(2)."""
        return self._fd

    def read(self) -> tuple[set[Event], bool]:
        """All that is there, each once; and whether some was lost."""
        found: set[Event] = set()
        lost = False
        count, dropped = ffi.new("uint32_t *"), ffi.new("uint32_t *")
        while True:
            error = int(lib.rcn_events_read(self._fd, self._events, ROOM, count, dropped))
            if error:
                raise OSError(-error, "notifications of the kernel cannot be read")
            lost = lost or bool(dropped[0])
            if not count[0]:
                return found, lost
            raw = ffi.buffer(self._events, count[0] * EVENT.size)
            found.update(map(Event._make, EVENT.iter_unpack(raw)))

    def close(self) -> None:
        """Stop to listen."""
        os.close(self._fd)


def nsid(path: str) -> int | None:
    """The id of the namespace at `path` in ours, given where it had none; None: it cannot be had."""
    found = int(lib.rcn_nsid(path.encode()))
    return found if found >= 0 else None
