"""What files said when they last loaded: which of it may stand in for a file that is broken.

Most prefixes of a YAML file are valid YAML, so what was read while a file was being written proves
nothing. It is *young* until the file has been left alone for a while; only then does it count.
"""

from collections.abc import Callable, Mapping

import msgspec

QUIET_NS = 1_000_000_000
"""How long a file must have been left alone for what it says to count."""


class Young(msgspec.Struct, frozen=True):
    """What a file said, and when it had been changed (nanoseconds since the epoch)."""

    content: bytes
    modified_ns: int


class Now(msgspec.Struct, frozen=True):
    """A file as it is: `content` None: it cannot be read; `modified_ns` None: nor when it changed."""

    content: bytes | None
    modified_ns: int | None


class Memory(msgspec.Struct, frozen=True):
    """What the state dir knows of what files said."""

    said: Mapping[str, bytes] = {}
    """Of each file what it said when it last loaded and had been left alone."""
    young: Mapping[str, Young] = {}
    """What loaded a moment after it had been written; whether it was whole is not known yet."""


class Grown(msgspec.Struct, frozen=True):
    """What has become of what was young."""

    kept: dict[str, bytes]
    """It was left alone for long enough: it was all that the file was to say."""
    dropped: frozenset[str]
    """The file went on to change at once: what was read was in the middle of being written."""


def grown(
    young: Mapping[str, Young], look: Callable[[str], Now], *, restless: Callable[[str], bool]
) -> Grown:
    """Judge what was young by what the files are now; what cannot be told yet is left out.

    `restless`: whether a file has been changed a moment ago.
    """
    kept, dropped = {}, set()
    for file, one in young.items():
        content, then = one.content, one.modified_ns
        now = look(file)
        unread = now.content is None and now.modified_ns in (None, then)
        if now.content == content or unread:
            if not restless(file):
                kept[file] = content
        elif then <= (now.modified_ns or 0) < then + QUIET_NS:
            dropped.add(file)
        else:
            kept[file] = content
    return Grown(kept, frozenset(dropped))
