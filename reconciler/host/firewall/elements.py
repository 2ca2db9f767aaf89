"""Adds and takes away elements of our sets by netlink, in one transaction: to run nft for them takes longer
than all else of one container. What is written is what libnftnl writes, comments included."""

import errno
import os
import struct
from collections.abc import Iterator, Mapping

from reconciler.core.errors import FirewallError
from reconciler.core.nftset import Element, Key, Shape
from reconciler.host.firewall import nfnl
from reconciler.host.firewall.nfnl import attribute

NEWSETELEM, DELSETELEM = 12, 14
NLM_F_CREATE = 0x400
NESTED = 0x8000
LIST_ELEM, DATA_VALUE, COMMENT = 1, 1, 0
AT_ONCE = 128
"""Elements in one message: an attribute holds up to 64 KiB, an element of ours less than 300 bytes."""

Changed = Mapping[str, Mapping[Key, Element]]
"""Set → elements, by their keys."""


def change(
    action: str,
    table: str,
    family: int,
    shapes: Mapping[str, Shape],
    *,
    add: Changed,
    remove: Changed,
) -> None:
    """Add elements to sets that are declared like that, then take some away; all of it, or nothing. One that
    is there may be added, one that is not there cannot be taken away.

    Raises FirewallError; `action` is what could not be done.
    """
    messages = [
        *_messages(NEWSETELEM, NLM_F_CREATE, table, family, shapes, add),
        *_messages(DELSETELEM, 0, table, family, shapes, remove),
    ]
    number = nfnl.transact(messages) if messages else 0
    if number:
        name = errno.errorcode.get(number, str(number))
        raise FirewallError(f"firewall: {action}: {name}: {os.strerror(number)}")


def _messages(
    kind: int, flags: int, table: str, family: int, shapes: Mapping[str, Shape], changed: Changed
) -> Iterator[nfnl.Message]:
    for name, elements in changed.items():
        lead = attribute(nfnl.LIST_TABLE, table.encode() + b"\0")
        lead += attribute(nfnl.LIST_SET, name.encode() + b"\0")
        some = list(elements.items())
        for first in range(0, len(some), AT_ONCE):
            items = b"".join(
                attribute(LIST_ELEM | NESTED, _element(shapes[name], key, one))
                for key, one in some[first : first + AT_ONCE]
            )
            body = lead + attribute(nfnl.LIST_ELEMENTS | NESTED, items)
            yield nfnl.Message(kind, flags, family, body)


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
    assert isinstance(part, int)  # runs are in none of these sets
    return part.to_bytes(width, "big")
