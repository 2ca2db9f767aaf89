"""Whether what is mounted in the netns dir is seen where runtimes look for it: by pid 1.

Mounts pass between mount namespaces along peer groups (mount_namespaces(7)); mountinfo shows them:

    id parent device root   point      options          group of which it is a peer, a slave
    41 27     0:24   /      /run       rw,nosuid        shared:5
    95 41     0:24   /netns /run/netns rw,nosuid        shared:71 master:5    - tmpfs tmpfs rw
"""

import os
import posixpath
import re
from collections.abc import Sequence

import msgspec


class Mount(msgspec.Struct, frozen=True):
    """One line of mountinfo."""

    number: int
    parent: int
    root: str
    """The folder of the file system that is mounted."""
    point: str
    """Where it is mounted."""
    shared: str
    """The group whose members pass mounts on to it and get its own; empty where there is none."""
    master: str
    """The group whose members pass mounts on to it alone; empty where there is none."""


def hidden(netns_dir: str) -> str:
    """Empty where pid 1 sees what is mounted in `netns_dir`, or where nothing can be said about it;
    else what is wrong, why and how to mend it, in one sentence."""
    try:
        if os.readlink("/proc/self/ns/mnt") == os.readlink("/proc/1/ns/mnt"):
            return ""
        here, there = _text("/proc/self/mountinfo"), _text("/proc/1/mountinfo")
    except OSError:
        return ""
    return unseen(os.path.realpath(netns_dir), here=here, there=there)


def _text(path: str) -> str:
    with open(path, "rb") as file:
        return os.fsdecode(file.read())


def unseen(path: str, *, here: str, there: str) -> str:
    """As `hidden`, from the mountinfo of both: `here` is this process, `there` is pid 1.

    `path` holds no symbolic link. Where it is no mount point yet, it will be one: a mount that
    comes from the one around it, and so of the same group.
    """
    mine, theirs = covering(mounts(here), path), covering(mounts(there), path)
    if mine is None or theirs is None or _passes(mine, theirs, path):
        return ""
    if mine.shared:
        kind = "shared, but not with pid 1"
    elif mine.master:
        kind = "a slave, which passes nothing on"
    else:
        kind = "private"
    return (
        f"{path}: nobody else would see the namespaces that are bound here: this process has a mount "
        f"namespace of its own, in which {mine.point} is {kind} (start it without unshare --mount, "
        "and from a unit without Private*, Protect*, ReadOnly* and whatever else gives it a mount "
        "namespace; if that is meant, give --private-mounts)"
    )


def _passes(mine: Mount, theirs: Mount, path: str) -> bool:
    """Whether a mount made below `path` here appears below `path` there."""
    same_group = bool(mine.shared) and mine.shared in (theirs.shared, theirs.master)
    return same_group and _place(mine, path) == _place(theirs, path)


def _place(mount: Mount, path: str) -> str:
    """Where in the mounted file system `path` lies."""
    return posixpath.normpath(f"{mount.root}/{path.removeprefix(mount.point)}")


def mounts(text: str) -> list[Mount]:
    """The lines of a mountinfo file."""
    found = []
    # Not splitlines(): a mount point may hold what that takes for the end of a line.
    for line in filter(None, text.split("\n")):
        number, parent, _, root, point, _, *more = line.split(" ")
        groups = dict(word.split(":") for word in more[: more.index("-")] if ":" in word)
        found.append(
            Mount(
                int(number),
                int(parent),
                _plain(root),
                _plain(point),
                groups.get("shared", ""),
                groups.get("master", ""),
            )
        )
    return found


def _plain(name: str) -> str:
    """Blanks, line ends and backslashes are written as octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), name)


def covering(table: Sequence[Mount], path: str) -> Mount | None:
    """The mount in which `path` lies; None where the table does not begin at a root.

    Walked as the kernel walks: the longest mount point alone would be wrong where something was
    mounted over one of its parents later.
    """
    numbers = {mount.number for mount in table}
    found = next(
        (m for m in table if m.point == "/" and (m.parent not in numbers or m.parent == m.number)),
        None,
    )
    while found is not None:
        inner = [
            m
            for m in table
            if m.parent == found.number and m is not found and _holds(m.point, path)
        ]
        if not inner:
            break
        found = min(inner, key=lambda m: len(m.point))
    return found


def _holds(point: str, path: str) -> bool:
    return point in ("/", path) or path.startswith(f"{point}/")
