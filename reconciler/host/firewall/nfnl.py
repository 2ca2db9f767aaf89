"""nftables by netlink, without the nft program: quick where sets hold thousands of elements, and where few
are changed."""

import contextlib
import errno
import itertools
import os
import socket
import struct
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from reconciler.core.errors import FirewallError
from reconciler.core.nftset import ADDRESS, Element, Key, Part, Shape

NETLINK_NETFILTER = 12
NFNL_SUBSYS_NFTABLES = 10
GETTABLE, GETCHAIN, GETRULE, GETSET, GETSETELEM, GETGEN = 1, 4, 7, 10, 13, 16
DELTABLE, BATCH_BEGIN, BATCH_END = 2, 16, 17
SET_TABLE, SET_NAME, SET_HANDLE, SET_POINTER, SET_COUNT = 1, 2, 16, 19, 20
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 0x1, 0x4, 0x300
NLM_F_DUMP_INTR = 0x10
NLMSG_ERROR, NLMSG_DONE = 2, 3
FORCED = ((32, socket.SO_SNDBUF), (33, socket.SO_RCVBUF))
"""SO_SNDBUFFORCE and SO_RCVBUFFORCE, and what everybody may ask for."""
MARKS = 2
"""Where a transaction begins and ends."""
USUAL = 1 << 16
"""What any socket takes at once (bytes)."""
GROUP_NFTABLES = 7
TABLE_NAME, TABLE_FLAGS, TABLE_OWNER = 1, 2, 7
CHAIN_TABLE, CHAIN_HANDLE, CHAIN_NAME, CHAIN_HOOK, CHAIN_USE = 1, 2, 3, 4, 6
RULE_TABLE, RULE_CHAIN, RULE_HANDLE, RULE_POSITION = 1, 2, 3, 6
DORMANT = 1
LIST_TABLE, LIST_SET, LIST_ELEMENTS = 1, 2, 3
ELEM_KEY, ELEM_DATA, ELEM_FLAGS, ELEM_USERDATA, ELEM_KEY_END = 1, 2, 3, 6, 10
INTERVAL_END = 1
DATA_VERDICT, VERDICT_CODE = 2, 1
INET, BRIDGE = 1, 7
PROTOCOLS = {6: "tcp", 17: "udp", 132: "sctp"}
VERDICTS = {0: "drop", 1: "accept"}
DUMPS = 5


_idle: list[socket.socket] = []
_numbers = itertools.count(1)


@contextlib.contextmanager
def _socket() -> Iterator[socket.socket]:
    """One that is used again: who closes one waits until what was lately taken away is destroyed, which
    takes the kernel some 10 ms (nft_rcv_nl_event). For the main thread of a process that stays in its
    namespace and does not fork."""
    sock = (
        _idle.pop()
        if _idle
        else socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
    )
    try:
        yield sock
    except BaseException:
        sock.close()  # what is still to be read there is nobody's
        raise
    _idle.append(sock)


def dump(kind: int, body: bytes, family: int = 0) -> list[tuple[int, dict[int, bytes]]]:
    """The answers to one dump request: family and attributes. Empty without nftables."""
    payload = struct.pack("=BBH", family, 0, 0) + body
    answers: list[tuple[int, dict[int, bytes]]] = []
    with _socket() as sock:
        for _ in range(DUMPS):
            number = next(_numbers) & 0xFFFFFFFF
            head = struct.pack(
                "=IHHII",
                16 + len(payload),
                NFNL_SUBSYS_NFTABLES << 8 | kind,
                NLM_F_REQUEST | NLM_F_DUMP,
                number,
                0,
            )
            sock.send(head + payload)
            answers, torn = _answers(sock, number)
            if not torn:
                return answers
    return answers


def _answers(sock: socket.socket, asked: int) -> tuple[list[tuple[int, dict[int, bytes]]], bool]:
    answers: list[tuple[int, dict[int, bytes]]] = []
    torn = False
    while True:
        data = sock.recv(1 << 18)
        place = 0
        while place + 16 <= len(data):
            length, kind, flags, sequence = struct.unpack_from("=IHHI", data, place)
            if sequence == asked:
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
                    answers.append((data[place + 16], attributes(body)))
            place += (length + 3) & ~3


def generation() -> int:
    """A number that grows with every change of anybody's rules; negative without nftables."""
    number = next(_numbers) & 0xFFFFFFFF
    kind = NFNL_SUBSYS_NFTABLES << 8 | GETGEN
    message = struct.pack("=IHHIIBBH", 20, kind, NLM_F_REQUEST, number, 0, 0, 0, 0)
    with _socket() as sock:
        sock.send(message)
        answer = sock.recv(1 << 16)
        while struct.unpack_from("=I", answer, 8)[0] != number:
            answer = sock.recv(1 << 16)
    if struct.unpack_from("=H", answer, 4)[0] == NLMSG_ERROR:
        if struct.unpack_from("=i", answer, 16)[0] == -errno.EPERM:
            raise FirewallError(
                "firewall: read the tables: CAP_NET_ADMIN is needed (run it with sudo)"
            )
        return -1
    return be32(attributes(answer[20:]).get(1)) or 0


class Message(NamedTuple):
    """One message of a transaction."""

    kind: int
    flags: int
    family: int
    attributes: bytes


def transact(messages: Sequence[Message]) -> int:
    """Carry all of them out, or none; the first errno, 0 where there was no error."""
    mark = struct.pack("!BBH", 0, 0, NFNL_SUBSYS_NFTABLES)
    parts = [(BATCH_BEGIN, NLM_F_REQUEST, mark)]
    parts += [
        (
            NFNL_SUBSYS_NFTABLES << 8 | one.kind,
            NLM_F_REQUEST | NLM_F_ACK | one.flags,
            struct.pack("=BBH", one.family, 0, 0) + one.attributes,
        )
        for one in messages
    ]
    parts.append((BATCH_END, NLM_F_REQUEST, mark))
    packed, waiting = [], set()
    for kind, flags, payload in parts:
        number = next(_numbers) & 0xFFFFFFFF
        waiting.add(number)
        packed.append(struct.pack("=IHHII", 16 + len(payload), kind, flags, number, 0) + payload)
    try:
        with _socket() as sock:
            _deliver(sock, b"".join(packed), waiting)
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def _deliver(sock: socket.socket, batch: bytes, waiting: set[int]) -> None:
    """Send it, and read an answer to each of `waiting` but to its two marks, which are answered only where
    something is wrong. Raises OSError."""
    if len(batch) > USUAL:
        for forced, asked in FORCED:
            try:
                sock.setsockopt(socket.SOL_SOCKET, forced, 4 * len(batch))
            except PermissionError:  # in a user namespace
                sock.setsockopt(socket.SOL_SOCKET, asked, 4 * len(batch))
    sock.send(batch)
    while len(waiting) > MARKS:
        data = sock.recv(1 << 16)
        place = 0
        while place + 20 <= len(data):
            length, kind, _, sequence, _, code = struct.unpack_from("=IHHIIi", data, place)
            if kind == NLMSG_ERROR and sequence in waiting:
                if code:
                    raise OSError(-code, os.strerror(-code))
                waiting.remove(sequence)
            place += (length + 3) & ~3


def remove_table(name: str, family: int = INET) -> None:
    """Remove a table with all that is in it. Raises FirewallError."""
    number = transact([Message(DELTABLE, 0, family, attribute(TABLE_NAME, name.encode() + b"\0"))])
    if number not in (0, errno.ENOENT):
        raise FirewallError(
            f"firewall: remove the table {name}: {errno.errorcode.get(number, number)}: "
            f"{os.strerror(number)}"
        )


def tables() -> dict[tuple[int, str], int]:
    """Every table, by family and name, with its flags."""
    return {
        (family, text(found[TABLE_NAME])): be32(found.get(TABLE_FLAGS)) or 0
        for family, found in dump(GETTABLE, b"")
    }


def sets(table: str, family: int = INET) -> list[str]:
    """The names of a table's sets and maps."""
    body = attribute(SET_TABLE, table.encode() + b"\0")
    return [text(found[SET_NAME]) for _, found in dump(GETSET, body, family)]


class Structure(NamedTuple):
    """A table but for its elements, as the kernel says it: the attributes of each object, in order."""

    chains: list[dict[int, bytes]]
    rules: list[dict[int, bytes]]
    sets: list[dict[int, bytes]]


def structure(table: str, family: int = INET) -> Structure:
    """That of a table."""
    name = table.encode() + b"\0"
    return Structure(
        [found for _, found in dump(GETCHAIN, b"", family) if found[CHAIN_TABLE] == name],
        [found for _, found in dump(GETRULE, attribute(RULE_TABLE, name), family)],
        [found for _, found in dump(GETSET, attribute(SET_TABLE, name), family)],
    )


def attributes(data: bytes) -> dict[int, bytes]:
    """The attributes of a message, the last of each kind."""
    found = {}
    place, end = 0, len(data) - 4
    while place <= end:
        length, kind = _HEAD(data, place)
        if length < 4:
            break
        found[kind & 0x3FFF] = data[place + 4 : place + length]
        place += (length + 3) & ~3
    return found


def _listed(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The same one after another, where a kind comes more than once."""
    place, end = 0, len(data) - 4
    while place <= end:
        length, kind = _HEAD(data, place)
        if length < 4:
            break
        yield kind & 0x3FFF, data[place + 4 : place + length]
        place += (length + 3) & ~3


_HEAD = struct.Struct("=HH").unpack_from


def attribute(kind: int, data: bytes) -> bytes:
    """One attribute, padded."""
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def be32(data: bytes | None) -> int | None:
    """A number in network order, if it is there."""
    return None if data is None else int.from_bytes(data, "big")


def text(data: bytes) -> str:
    """A name without its NUL."""
    return os.fsdecode(data.rstrip(b"\0"))


# -- elements -----------------------------------------------------------------------------------


def elements(table: str, name: str, shape: Shape, family: int = INET) -> dict[Key, Element]:
    """The elements of a set or a map of a table, which is declared like that."""
    body = attribute(LIST_TABLE, table.encode() + b"\0") + attribute(
        LIST_SET, name.encode() + b"\0"
    )
    raw = [
        one
        for _, answer in dump(GETSETELEM, body, family)
        for _, one in _listed(answer.get(LIST_ELEMENTS, b""))
    ]
    if shape.interval and len(shape.key) == 1:
        return _intervals([attributes(one) for one in raw], shape)
    known = _known.setdefault(shape, {})
    found = {}
    for one in raw:
        decoded = known.get(one)
        if decoded is None:
            decoded = known[one] = _decoded(shape, attributes(one))
        found[decoded[0]] = decoded[1]
    if len(known) > 2 * len(raw) + KNOWN:
        known.clear()
    return found


KNOWN = 1024
_known: dict[Shape, dict[bytes, tuple[Key, Element]]] = {}
"""What bytes have been decoded to: one pass reads the same elements several times."""


def _decoded(shape: Shape, one: dict[int, bytes]) -> tuple[Key, Element]:
    key = _key(shape, one[ELEM_KEY])
    if shape.interval:
        last = _key(shape, one.get(ELEM_KEY_END, one[ELEM_KEY]))
        key = tuple(
            (a, b) if kind in RANGED else a for kind, a, b in zip(shape.key, key, last, strict=True)
        )
    return key, _element(shape, one)


RANGED = frozenset({*ADDRESS.values(), "inet_service"})


def _intervals(raw: list[dict[int, bytes]], shape: Shape) -> dict[Key, Element]:
    """The kernel's tree holds where a run begins and, marked, where the next one could."""
    marks = []
    for one in raw:
        ends = (be32(one.get(ELEM_FLAGS)) or 0) & INTERVAL_END
        marks.append((_key(shape, one[ELEM_KEY])[0], not ends, one))
    marks.sort(key=lambda mark: mark[:2])
    whole = (1 << 8 * WIDTH[shape.key[0]]) - 1
    found: dict[Key, Element] = {}
    for place, (value, begins, one) in enumerate(marks):
        if begins:
            last = marks[place + 1][0] - 1 if place + 1 < len(marks) else whole
            found[((value, last),)] = _element(shape, one)
    return found


WIDTH = {"ifname": 16, "devgroup": 4, "ipv4_addr": 4, "ipv6_addr": 16, "integer": 16, "inet_proto": 1,
          "inet_service": 2}  # fmt: skip


def _key(shape: Shape, data: bytes) -> Key:
    # The attribute holds one of its own, the value; each part of which fills up words of 4 bytes.
    parts: list[Part] = []
    place = 4
    for kind in shape.key:
        width = WIDTH[kind]
        value = data[place : place + width]
        if kind == "ifname":
            parts.append(text(value))
        elif kind == "inet_proto":
            parts.append(PROTOCOLS.get(value[0], value[0]))
        elif kind == "devgroup" and not shape.interval:
            # Where runs are compared, nft turns numbers into network order.
            parts.append(int.from_bytes(value, sys.byteorder))
        else:
            parts.append(int.from_bytes(value, "big"))
        place += (width + 3) & ~3
    return tuple(parts)


def _element(shape: Shape, one: dict[int, bytes]) -> Element:
    comment = _comment(one.get(ELEM_USERDATA, b""))
    if not shape.data:
        return Element(comment)
    data = one[ELEM_DATA]
    if shape.data == ("verdict",):
        code = be32(attributes(attributes(data).get(DATA_VERDICT, b"")).get(VERDICT_CODE))
        return Element(comment, VERDICTS.get(-1 if code is None else code, "?"))
    width = 4 + WIDTH[shape.data[0]]
    address = int.from_bytes(data[4:width], "big")
    if len(shape.data) == 1:
        return Element(comment, (address,))
    return Element(comment, (address, int.from_bytes(data[width : width + 2], "big")))


def _comment(data: bytes) -> str:
    # libnftnl's userdata: type (0 is the comment), length, text with a NUL.
    place = 0
    while place + 2 <= len(data):
        kind, length = data[place], data[place + 1]
        if kind == 0:
            return text(data[place + 2 : place + 2 + length])
        place += 2 + length
    return ""
