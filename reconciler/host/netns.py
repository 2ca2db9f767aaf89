"""The netns dir: a folder of files on which network namespaces are mounted, as `ip netns` keeps it."""

import errno
import fcntl
import os
import stat
from collections.abc import Collection, Mapping
from types import MappingProxyType

from reconciler.core.errors import ObjectError
from reconciler.core.observed import FileState
from reconciler.core.rows import Space
from reconciler.host import rtnl
from reconciler.host.files import own_directory

MODE = 0o755
NS_GET_NSTYPE, CLONE_NEWNET = 0xB703, 0x40000000
"""ioctl_ns(2)"""


def read(
    directory: str,
    sysctls: tuple[str, ...],
    *,
    only: Collection[str] | None = None,
    known: Mapping[str, Space] = MappingProxyType({}),
    key: bytes = rtnl.NO_KEY,
) -> tuple[dict[str, FileState], dict[str, Space]]:
    """Every file of `directory` (or `only` these) with its state, and a dump of each namespace.

    `known`: what has been looked at a moment ago; `key`: the secret of the dumps' digests. A dump that is
    torn (`torn`) is among them: whose namespace that is, who knows more must say.
    """
    if only is not None:
        # Not by a list of the folder, which may hold thousands.
        names = sorted(n for n in only if n and os.path.lexists(f"{directory}/{n}"))
    else:
        try:
            with os.scandir(directory) as entries:
                names = sorted(entry.name for entry in entries)
        except (FileNotFoundError, NotADirectoryError):
            return {}, {}
    others = [n for n in names if n not in known]
    found_spaces = rtnl.scan([f"{directory}/{n}" for n in others], sysctls=sysctls, key=key)
    spaces = dict(zip(others, found_spaces, strict=True))
    spaces |= {n: known[n] for n in names if n in known}
    states = {}
    for name, space in spaces.items():
        if space.error == 0 or torn(space):
            states[name] = FileState.NAMESPACE
        else:
            check(f"{directory}/{name}", space)
            state = _plain(f"{directory}/{name}")
            if state is not None:
                states[name] = state
    return states, {name: spaces[name] for name, s in states.items() if s is FileState.NAMESPACE}


def torn(space: Space) -> bool:
    """Whether it was entered, and things changed in it as often as it was looked at."""
    return space.error == errno.EINTR and space.cookie != 0


def check(path: str, space: Space) -> None:
    """Raise ObjectError where a dump failed for want of something: it may well be a namespace, and
    nothing may be concluded from that."""
    if space.error in (errno.EINTR, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
        remedy = "links or addresses change in it all the time: run it again when that is over"
        raise ObjectError(
            "host", f"look into {path}", os.strerror(space.error),
            remedy if torn(space) else "", errno=space.error,
        )  # fmt: skip


def _plain(path: str) -> FileState | None:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    empty = stat.S_ISREG(found.st_mode) and found.st_size == 0
    # `ip netns add` leaves such a file too where its mount failed; nothing can be lost with it.
    if empty and stat.S_IMODE(found.st_mode) == 0:
        return FileState.PLACEHOLDER
    return FileState.FOREIGN


def lies_at(path: str) -> str:
    """What is found at a path: `network` (a namespace), `absent`, `placeholder`, `other`, or `hidden`
    from this process."""
    try:
        if _plain(path) is FileState.PLACEHOLDER:
            return "placeholder"
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except (FileNotFoundError, NotADirectoryError):
        return "absent"
    except PermissionError:
        return "hidden"
    except OSError:
        return "other"
    try:
        return "network" if fcntl.ioctl(fd, NS_GET_NSTYPE) == CLONE_NEWNET else "other"
    except OSError:
        return "other"  # nothing that knows the question is a namespace
    finally:
        os.close(fd)


def clear(path: str) -> None:
    """Unlink a mount point on which nothing is mounted; anything else stays."""
    if _plain(path) is FileState.PLACEHOLDER:
        os.unlink(path)


def prepare(directory: str) -> None:
    """Make the folder and turn it into a shared mount, so that other mount namespaces see its files."""
    own_directory(directory, MODE)
    code = rtnl.share(directory)
    if code:
        raise ObjectError("host", f"make {directory} a shared mount", os.strerror(code), errno=code)
