"""RUN_DIR/dns/NAME: resolv.conf and hosts, written in place, for they are bound into containers."""

import contextlib
import os
from collections.abc import Mapping

from reconciler.core.resolver import listens_on_loopback_only
from reconciler.host.files import folder, own_directory, read_at

STUB = "/etc/resolv.conf"
RESOLVED = "/run/systemd/resolve/resolv.conf"
LIMIT = 64 << 20
FILES = ("resolv.conf", "hosts")


def host_resolv_conf() -> str:
    """What the host resolves with; where only loopback servers stand there, what lies behind."""
    text = _text(STUB)
    if listens_on_loopback_only(text):
        return _text(RESOLVED) or text
    return text


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(1 << 20)
    except OSError:
        return ""


def differing(run_dir: str, name: str, wanted: Mapping[str, bytes]) -> tuple[str, ...]:
    """Which of the files are not as wanted."""
    try:
        with folder(f"{run_dir}/dns/{name}") as fd:
            return tuple(file for file in wanted if _read(fd, file) != wanted[file])
    except FileNotFoundError:
        return tuple(wanted)


def _read(fd: int, file: str) -> bytes | None:
    try:
        return read_at(fd, file, LIMIT)[0]
    except OSError:
        return None


def write(run_dir: str, name: str, wanted: Mapping[str, bytes]) -> str | None:
    """Write them, keeping their inodes; answers with an error."""
    try:
        own_directory(f"{run_dir}/dns", 0o755)
        own_directory(f"{run_dir}/dns/{name}", 0o755)
        with folder(f"{run_dir}/dns/{name}") as fd:
            for file, text in wanted.items():
                _write(fd, file, text, os.O_CREAT)
    except OSError as error:
        return f"{run_dir}/dns/{name}: {error.strerror}"
    return None


def renew_hosts(run_dir: str, name: str, text: bytes) -> None:
    """Bring the hosts file of a container up to date; one that has none yet gets it when it is made."""
    try:
        fd = os.open(f"{run_dir}/dns/{name}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        _write(fd, "hosts", text, 0)
    except OSError:
        return  # a whole pass says what is wrong with it
    finally:
        os.close(fd)


def _write(fd: int, file: str, text: bytes, more: int) -> None:
    """From where it differs on: containers read it meanwhile, and thousands may be written."""
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | more
    opened = os.open(file, flags, 0o644, dir_fd=fd)
    try:
        found = os.fstat(opened)
        if found.st_mode & 0o777 != 0o644:
            # Whatever the umask: every user of the container reads it.
            os.fchmod(opened, 0o644)
        old = os.pread(opened, min(found.st_size, LIMIT), 0)
        if old == text:
            return
        same = _alike(old, text)
        at = same
        while at < len(text):
            at += os.pwrite(opened, text[at:], at)
        if found.st_size > len(text):
            os.ftruncate(opened, len(text))
    finally:
        os.close(opened)


def _alike(one: bytes, other: bytes) -> int:
    """How many bytes from the beginning are the same."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def standing(run_dir: str) -> set[str]:
    """Containers that have such files."""
    try:
        return set(os.listdir(f"{run_dir}/dns"))
    except FileNotFoundError:
        return set()


def remove(run_dir: str, name: str) -> None:
    """Take a container's files away."""
    import shutil  # 3 ms, for what is seldom done

    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(f"{run_dir}/dns/{name}")
