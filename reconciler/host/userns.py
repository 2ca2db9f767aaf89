"""The user namespace that this process is in: whose files it can tell apart, what it may change.

In one that an unprivileged user made (`unshare -Urnm`), ids that have no place in it are shown as the
overflow id, those of the machine's root among them.
"""

import errno
import fcntl
import functools
import os

ALL_IDS = 1 << 32
GROUP_LIMIT = (1 << 31) - 1
"""The kernel's own limit in that setting."""
NS_GET_USERNS = 0xB701
"""ioctl_ns(2): the user namespace that owns a namespace; EPERM where that is none of ours."""


@functools.cache
def inner() -> bool:
    """Whether this is another user namespace than the machine's own: not every id is known in it."""
    try:
        with open("/proc/self/uid_map", encoding="utf-8") as file:
            known = sum(int(line.split()[2]) for line in file)
    except FileNotFoundError:
        return False  # a kernel without user namespaces
    # The last id, -1, means "no id" and is never mapped.
    return known < ALL_IDS - 1


@functools.cache
def _overflow_id() -> int:
    with open("/proc/sys/kernel/overflowuid", encoding="utf-8") as file:
        return int(file.read())


def groups() -> str:
    """The first and the last group id that this process may name; empty where it may name all.

    The kernel takes no other for net.ipv4.ping_group_range.
    """
    if not inner():
        return ""
    with open("/proc/self/gid_map", encoding="utf-8") as file:
        runs = sorted((int(first), int(count)) for first, _, count in map(str.split, file))
    if not runs:
        return ""
    first, count = runs[0]
    return f"{first} {min(first + count - 1, GROUP_LIMIT)}"


def is_ours(owner: int) -> bool:
    """Whether a file's owner is root or the caller: nobody else could have put it there."""
    return owner in (0, os.geteuid())


@functools.cache
def _root_is_unknown() -> bool:
    """Whether the machine's root has no id in here. A container that has a root folder of its own is
    another matter: there is nothing of the machine's in it."""
    return inner() and os.stat("/").st_uid == _overflow_id()


def from_outside(owner: int) -> bool:
    """Whether a file's owner has no id in here, as the machine's root has none."""
    return not is_ours(owner) and _root_is_unknown() and owner == _overflow_id()


def belongs_outside(kind: str) -> bool:
    """Whether this process's namespace (`net`, `mnt`) belongs to a user namespace around ours: then no
    capability that is held in here counts for it."""
    if not inner():
        return False
    fd = os.open(f"/proc/self/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.close(fcntl.ioctl(fd, NS_GET_USERNS))
    except OSError as error:
        if error.errno == errno.EPERM:
            return True
        if error.errno != errno.ENOTTY:  # before 4.9
            raise
    finally:
        os.close(fd)
    return False
