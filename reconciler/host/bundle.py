"""A bundle's config.json: what it would be once wired, and putting that in its place."""

from collections.abc import Sequence

import msgspec

from reconciler.core.errors import RuncnetError
from reconciler.core.jsonbytes import SpliceError
from reconciler.core.splice import Mount, splice, unjoinable
from reconciler.host.files import folder, read_at, replace_at

NAME = "config.json"
SIZE_LIMIT = 64 << 20


class Wiring(msgspec.Struct, frozen=True):
    """A config.json as it is and as it is to be."""

    bundle: str
    old: bytes
    new: bytes


def read(bundle: str) -> bytes:
    """The file. Raises RuncnetError."""
    try:
        with folder(bundle) as fd:
            return read_at(fd, NAME, SIZE_LIMIT)[0]
    except FileNotFoundError:
        text = f"{bundle}/{NAME} is not there (make it with `runc spec -b {bundle}`)"
        raise RuncnetError(text) from None
    except OSError as error:
        text = f"{bundle}/{NAME}: {error.strerror} (a plain file is needed, no link)"
        raise RuncnetError(text) from error


def look(
    bundle: str, *, mode: str, netns_path: str, mounts: Sequence[Mount], ours: str
) -> Wiring | str:
    """How the bundle is to be wired, or why it cannot be, in one sentence."""
    try:
        content = read(bundle)
    except RuncnetError as error:
        return str(error)
    try:
        if mode != "host" and unjoinable(content):
            return (
                f"{bundle} has a user namespace of its own, in which runc cannot mount /sys for a "
                "network namespace that is not its own (bind the host's /sys as `runc spec --rootless` "
                "does, use mode: host, or drop the user namespace)"
            )
        new = splice(content, mode=mode, netns_path=netns_path, mounts=mounts, ours=ours)
    except SpliceError as error:
        return f"{bundle}/{NAME}: {error}"
    return Wiring(bundle, content, new)


def write(wiring: Wiring) -> str | None:
    """Put the wired file in place, unless somebody changed it meanwhile; answers with an error."""
    try:
        with folder(wiring.bundle) as fd:
            content, found = read_at(fd, NAME, SIZE_LIMIT)
            if content != wiring.old:
                return f"{wiring.bundle}/{NAME} changed meanwhile (the next pass wires it)"
            replace_at(fd, NAME, wiring.new, found)
    except OSError as error:
        return f"{wiring.bundle}/{NAME}: {error.strerror}"
    return None
