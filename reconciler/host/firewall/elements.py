"""The elements of the table `bridge runcnet`, added and taken away by netlink, in one transaction: to run nft
for them takes longer than all else of one container. What is written is what libnftnl writes, comments
included."""

import errno
import os
import struct
from collections.abc import Iterator

from reconciler.core.errors import FirewallError
from reconciler.core.nftbridge import NAME, SHAPES, Elements
from reconciler.core.nftset import Element, Key, Shape
from reconciler.host.firewall import nfnl
from reconciler.host.firewall.nfnl import attribute, be32

NEWSETELEM, DELSETELEM = 12, 14
NLM_F_CREATE = 0x400
NESTED = 0x8000
LIST_ELEM, DATA_VALUE, COMMENT = 1, 1, 0
SET_FLAGS, SET_KEY_TYPE, SET_KEY_LENGTH, SET_TIMEOUT = 3, 4, 5, 11
MAY_LAPSE, MAY_GROW = 0x10, 0x20
"""NFT_SET_TIMEOUT and NFT_SET_EVAL: elements may have a time, rules may add some."""
TYPES = {"ifname": 41, "ipv4_addr": 7, "ipv6_addr": 8, "integer": 4}
"""nft's numbers of them; a key of several has six bits for each (enum nft_datatypes)."""
AT_ONCE = 128
"""Elements in one message: an attribute holds up to 64 KiB, an element of ours less than 300 bytes."""
TABLE = b"runcnet\0"


def ready() -> bool:
    """Whether the table is there, with its sets. Raises FirewallError where one of them is missing, or
    declared otherwise than here, for which the kernel compares no more than lengths."""
    answers = nfnl.dump(nfnl.GETSET, attribute(nfnl.SET_TABLE, TABLE), nfnl.BRIDGE)
    found = {nfnl.text(one[nfnl.SET_NAME]): _found(one) for _, one in answers}
    if not found:
        return False
    for name, shape in SHAPES.items():
        if found.get(name) != _declared(shape):
            raise FirewallError(
                f"firewall: the set {name} of the table {NAME} is not as it is declared here "
                "(runcnet-reconcile --once makes it anew)"
            )
    return True


def _found(one: dict[int, bytes]) -> tuple[int, ...]:
    key, length, flags, lapse = (
        be32(one.get(kind)) or 0 for kind in (SET_KEY_TYPE, SET_KEY_LENGTH, SET_FLAGS, SET_TIMEOUT)
    )
    # What is added stays, unless the set itself says for how long.
    return key, length, flags & ~(MAY_LAPSE | MAY_GROW), lapse


def _declared(shape: Shape) -> tuple[int, ...]:
    number = 0
    for kind in shape.key:
        number = number << 6 | TYPES[kind]
    return number, sum(nfnl.WIDTH[kind] for kind in shape.key), 0, 0


def change(action: str, *, add: Elements, remove: Elements) -> None:
    """Add elements, then take some away; all of it, or nothing. One that is there may be added, one that is
    not there cannot be taken away.

    Raises FirewallError; `action` is what could not be done.
    """
    messages = [
        *_messages(NEWSETELEM, NLM_F_CREATE, add),
        *_messages(DELSETELEM, 0, remove),
    ]
    number = nfnl.transact(messages) if messages else 0
    if number:
        name = errno.errorcode.get(number, str(number))
        raise FirewallError(
            f"firewall: {action} of {NAME}: {name}: {os.strerror(number)} "
            "(runcnet-reconcile --once looks at the whole table)"
        )


def _messages(kind: int, flags: int, changed: Elements) -> Iterator[nfnl.Message]:
    for name, elements in changed.items():
        lead = attribute(nfnl.LIST_TABLE, TABLE)
        lead += attribute(nfnl.LIST_SET, name.encode() + b"\0")
        some = list(elements.items())
        for first in range(0, len(some), AT_ONCE):
            items = b"".join(
                attribute(LIST_ELEM | NESTED, _element(SHAPES[name], key, one))
                for key, one in some[first : first + AT_ONCE]
            )
            body = lead + attribute(nfnl.LIST_ELEMENTS | NESTED, items)
            yield nfnl.Message(kind, flags, nfnl.BRIDGE, body)


def _element(shape: Shape, key: Key, one: Element) -> bytes:
    value = b"".join(_part(kind, part) for kind, part in zip(shape.key, key, strict=True))
    found = attribute(nfnl.ELEM_KEY | NESTED, attribute(DATA_VALUE, value))
    if one.comment:
        text = one.comment.encode() + b"\0"
        found += attribute(nfnl.ELEM_USERDATA, struct.pack("BB", COMMENT, len(text)) + text)
    return found


def _part(kind: str, part: object) -> bytes:
    width = nfnl.WIDTH[kind]
    if isinstance(part, str):
        return part.encode().ljust(width, b"\0")
    assert isinstance(part, int)  # none of these sets holds runs
    return part.to_bytes(width, "big")
