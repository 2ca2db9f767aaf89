"""RUN_DIR/dns/NAME: resolv.conf and hosts, written in place, for they are bound into containers."""

import contextlib
import os

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


def differing(run_dir: str, name: str, wanted: dict[str, str]) -> tuple[str, ...]:
    """Which of the files are not as wanted."""
    try:
        with folder(f"{run_dir}/dns/{name}") as fd:
            return tuple(file for file in wanted if _read(fd, file) != wanted[file].encode())
    except FileNotFoundError:
        return tuple(wanted)


def _read(fd: int, file: str) -> bytes | None:
    try:
        return read_at(fd, file, LIMIT)[0]
    except OSError:
        return None


def write(run_dir: str, name: str, wanted: dict[str, str]) -> str | None:
    """Write them, keeping their inodes; answers with an error."""
    try:
        own_directory(f"{run_dir}/dns", 0o755)
        own_directory(f"{run_dir}/dns/{name}", 0o755)
        with folder(f"{run_dir}/dns/{name}") as fd:
            for file, text in wanted.items():
                flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
                opened = os.open(file, flags, 0o644, dir_fd=fd)
                with open(opened, "wb") as out:
                    os.fchmod(
                        opened, 0o644
                    )  # whatever the umask: every user of the container reads it
                    out.truncate(0)
                    out.write(text.encode())
    except OSError as error:
        return f"{run_dir}/dns/{name}: {error.strerror}"
    return None


def standing(run_dir: str) -> set[str]:
    """Containers that have such files."""
    try:
        return set(os.listdir(f"{run_dir}/dns"))
    except FileNotFoundError:
        return set()


def remove(run_dir: str, name: str) -> None:
    """Take a container's files away."""
    import shutil

    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(f"{run_dir}/dns/{name}")
