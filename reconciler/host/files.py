"""Folders and files that root writes: through a folder descriptor, by temporary file and rename."""

import contextlib
import os
import stat
from collections.abc import Iterator

from reconciler.core.errors import ObjectError
from reconciler.host.userns import from_outside

OWN_FOLDERS = "give folders of your own: --state-dir, --run-dir, --netns-dir"

ANY_SIZE = 1 << 30


def own_directory(path: str, mode: int) -> None:
    """Make `path` where it is absent; refuse one that others own or can write to."""
    try:
        os.makedirs(path, mode=mode, exist_ok=True)
    except PermissionError as error:
        raise ObjectError(
            "host", f"make {path}", error.strerror or "", OWN_FOLDERS, errno=error.errno or 0
        ) from error
    found = os.stat(path)
    if from_outside(found.st_uid):
        cause = "it belongs to an id that this user namespace does not know"
        raise ObjectError("host", f"use {path}", cause, OWN_FOLDERS)
    if found.st_uid not in (0, os.geteuid()) or found.st_mode & 0o022:
        raise ObjectError(
            "host",
            f"use {path}",
            "others can write to it",
            f"chown root {path}; chmod go-w {path}",
        )


@contextlib.contextmanager
def folder(path: str) -> Iterator[int]:
    """A descriptor of the folder."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def read_at(fd: int, name: str, limit: int) -> tuple[bytes, os.stat_result]:
    """A regular file's content and state. No link is followed. Raises OSError."""
    file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=fd)
    with open(file, "rb") as opened:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(22, "not a regular file")
        content = opened.read(limit + 1)
    if len(content) > limit:
        raise OSError(27, f"larger than {limit >> 20} MiB")
    return content, found


def replace_at(fd: int, name: str, content: bytes, like: os.stat_result) -> None:
    """Put `content` in the place of `name`, with the mode and owner of `like`."""
    _put_at(fd, name, content, stat.S_IMODE(like.st_mode), (like.st_uid, like.st_gid))


def write_at(fd: int, name: str, content: bytes, mode: int) -> None:
    """Put `content` in the place of `name`, whether there is one or not; whatever the umask."""
    _put_at(fd, name, content, mode, None)


def remove_at(fd: int, name: str) -> None:
    """Take a file away, for good also if the power goes."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=fd)
        os.fsync(fd)


def _put_at(fd: int, name: str, content: bytes, mode: int, owner: tuple[int, int] | None) -> None:
    temporary = f".{name}.{os.urandom(6).hex()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    file = os.open(temporary, flags, 0o600, dir_fd=fd)
    try:
        with open(file, "wb") as opened:
            opened.write(content)
            opened.flush()
            if owner is not None:
                os.fchown(file, *owner)
            os.fchmod(file, mode)
            os.fsync(file)
        os.rename(temporary, name, src_dir_fd=fd, dst_dir_fd=fd)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=fd)
        raise
    os.fsync(fd)
