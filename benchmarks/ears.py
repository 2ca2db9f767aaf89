"""Hearing from the kernel when something is broken and when it is whole again.

Its own listener, so that what is measured shares no code with what is heard by the daemon: one
rtnetlink socket for all namespaces, and poll(2) on the mount table. A fact is a tuple that says
what it is about; each notification says of some facts whether they hold.
"""

import contextlib
import os
import select
import socket
import struct
import time
from collections.abc import Collection, Iterator

SOL_NETLINK, ADD_MEMBERSHIP, LISTEN_ALL_NSID = 270, 1, 8
SO_RCVBUFFORCE = 33
GROUPS = (1, 3, 5, 7, 24)
"""RTNLGRP_LINK, NEIGH, IPV4_IFADDR, IPV4_ROUTE, IPV4_NETCONF."""
HOST = -1
HEADER = struct.Struct("=IHHII")
LINK = struct.Struct("=BxHiII")
ADDRESS = struct.Struct("=4Bi")
ROUTE = struct.Struct("=8BI")
NEIGHBOUR = struct.Struct("=BxxxiHBB")
ATTRIBUTE = struct.Struct("=HH")
NEW_LINK, DEL_LINK, NEW_ADDRESS, DEL_ADDRESS, NEW_ROUTE, DEL_ROUTE = 16, 17, 20, 21, 24, 25
NEW_NEIGHBOUR, DEL_NEIGHBOUR, NEW_NETCONF = 28, 29, 80
PERMANENT = 0x80
LOCAL_TABLE = 255

Fact = tuple[object, ...]


class Times:
    """When a fact of `broken` was first heard to be broken, and when all of `whole` held behind that."""

    def __init__(self, whole: Collection[Fact]) -> None:
        self.left = set(whole)
        self.began: float | None = None
        self.ended: float | None = None

    def note(self, fact: Fact, *, holds: bool, now: float) -> None:
        """One notification said that."""
        if not holds:
            if fact in self.left or self.began is not None:
                self.began = self.began or now
                self.left.add(fact)
                self.ended = None
        elif self.began is not None:
            self.left.discard(fact)
            if not self.left and self.ended is None:
                self.ended = now


class Ears:
    """Listens in the caller's network and mount namespaces."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
        self._socket.setblocking(False)
        self._socket.bind((0, 0))
        self._socket.setsockopt(SOL_NETLINK, LISTEN_ALL_NSID, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 32 << 20)
        for group in GROUPS:
            self._socket.setsockopt(SOL_NETLINK, ADD_MEMBERSHIP, group)
        self._table = os.open("/proc/self/mountinfo", os.O_RDONLY)
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)
        self._poll.register(self._table, select.POLLPRI)
        self.drain()

    def drain(self) -> None:
        """Forget what was heard up to now."""
        while self._poll.poll(0):
            for _ in self._facts(()):
                pass

    def follow(self, times: Times, facts: Collection[Fact], deadline: float) -> bool:
        """Note of these facts what is heard until all hold again; False: not by the deadline."""
        bound = [str(fact[1]) for fact in facts if fact[0] == "bound"]
        while times.ended is None:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            if self._poll.poll(left * 1000):
                for fact, holds, now in self._facts(bound):
                    if fact in facts:
                        times.note(fact, holds=holds, now=now)
        return True

    def _facts(self, bound: Collection[str]) -> Iterator[tuple[Fact, bool, float]]:
        for path in bound:
            # A look at one file: to read a table of thousands of mounts would cost milliseconds.
            yield ("bound", path), is_namespace(path), time.monotonic()
        with contextlib.suppress(BlockingIOError):
            while True:
                data, about, _, _ = self._socket.recvmsg(65536, 64)
                now = time.monotonic()
                nsid = next(
                    (struct.unpack("=i", raw[:4])[0] for level, kind, raw in about
                     if (level, kind) == (SOL_NETLINK, LISTEN_ALL_NSID)),
                    HOST,
                )  # fmt: skip
                for fact, holds in _read(data, nsid):
                    yield fact, holds, now

    def close(self) -> None:
        """Stop to listen."""
        self._socket.close()
        os.close(self._table)


def is_namespace(path: str) -> bool:
    """Whether a namespace is bound there: nsfs is on no device that files lie on."""
    try:
        return os.stat(path).st_dev == _NSFS
    except OSError:
        return False


_NSFS = os.stat("/proc/self/ns/net").st_dev


def _attributes(data: bytes, at: int, end: int) -> Iterator[tuple[int, bytes]]:
    while at + 4 <= end:
        size, kind = ATTRIBUTE.unpack_from(data, at)
        if size < 4:
            return
        yield kind & 0x3FFF, data[at + 4 : at + size]
        at += (size + 3) & ~3


def _read(data: bytes, nsid: int) -> Iterator[tuple[Fact, bool]]:
    at = 0
    while at + 16 <= len(data):
        size, kind, *_ = HEADER.unpack_from(data, at)
        end = at + size
        yield from _message(data, kind, at + 16, end, nsid)
        at = (end + 3) & ~3


def _message(data: bytes, kind: int, at: int, end: int, nsid: int) -> Iterator[tuple[Fact, bool]]:
    if kind in (NEW_LINK, DEL_LINK):
        _, _, _, flags, _ = LINK.unpack_from(data, at)
        found = dict(_attributes(data, at + 16, end))
        name = found.get(3, b"").rstrip(b"\0").decode()
        there = kind == NEW_LINK
        master = int.from_bytes(found.get(10, b"\0"), "little")
        yield ("up", nsid, name), there and bool(flags & 1)
        if there or 3 in found:
            yield ("port", nsid, name), there and bool(master)
    elif kind in (NEW_ADDRESS, DEL_ADDRESS):
        found = dict(_attributes(data, at + 8, end))
        yield ("address", nsid, found.get(2, b"")), kind == NEW_ADDRESS
    elif kind in (NEW_ROUTE, DEL_ROUTE):
        row = ROUTE.unpack_from(data, at)
        if row[4] != LOCAL_TABLE:
            found = dict(_attributes(data, at + 12, end))
            yield ("route", nsid, row[1], found.get(1, b"")), kind == NEW_ROUTE
    elif kind in (NEW_NEIGHBOUR, DEL_NEIGHBOUR):
        family, _, state, _, _ = NEIGHBOUR.unpack_from(data, at)
        if family == socket.AF_INET:
            found = dict(_attributes(data, at + 12, end))
            holds = kind == NEW_NEIGHBOUR and bool(state & PERMANENT)
            yield ("neighbour", nsid, found.get(1, b"")), holds
    elif kind == NEW_NETCONF and data[at] == socket.AF_INET:
        found = dict(_attributes(data, at + 4, end))
        if found.get(1) == b"\xff\xff\xff\xff" and 2 in found:
            yield ("forwarding",), found[2] == b"\1\0\0\0"
