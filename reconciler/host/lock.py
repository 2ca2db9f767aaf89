"""One writer: a lock on the run dir, one in the state dir, and a socket name for the namespace.

A daemon holds one more for its life, `daemon.lock`, which says that it is there and keeps a second one out.
"""

import _socket as socket  # what `socket` loads beside it takes longer than a lock
import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator

import msgspec

from reconciler.core.errors import LockedError
from reconciler.host.files import own_directory

PAUSE_S = 0.01
SOCKET = "\0runcnet"
"""An abstract unix socket name is unique in a network namespace, whatever folders are used."""
DAEMON_FILE = "daemon.lock"
GLANCE_S = 0.25
"""Who looks whether a daemon is there holds its lock for an instant: no daemon gives up for that."""


class Serving(msgspec.Struct, frozen=True):
    """A daemon that is there."""

    pid: int
    since: float
    """Seconds since the epoch."""


def _by_another_run(path: str, holder: str) -> str:
    return (
        f"{path} is held by another run{f' ({holder})' if holder else ''} "
        "(wait for it, or give --lock-timeout more seconds)"
    )


def _take(path: str, deadline: float, refusal: Callable[[str, str], str]) -> int:
    """A descriptor that holds the lock. `refusal` words the error, from path and holder."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        except BlockingIOError:
            if time.monotonic() >= deadline:
                holder = os.pread(fd, 100, 0).decode("ascii", "replace").strip()
                os.close(fd)
                raise LockedError(refusal(path, holder)) from None
        time.sleep(PAUSE_S)


def _sign(fd: int) -> None:
    """Write down who holds it: always as long, for a disk is waited for when a file becomes shorter."""
    os.pwrite(fd, f"pid {os.getpid():<10}\n".encode(), 0)


def _bind(deadline: float) -> socket.socket:
    name = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    while True:
        try:
            name.bind(SOCKET)
            return name
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            if time.monotonic() >= deadline:
                name.close()
                raise LockedError(
                    "another run with other folders works on this network namespace "
                    "(wait for it, or give --lock-timeout more seconds)"
                ) from None
        time.sleep(PAUSE_S)


@contextlib.contextmanager
def hold(run_dir: str, state_dir: str, *, timeout_s: float) -> Iterator[None]:
    """Hold all three. Raises LockedError when `timeout_s` seconds were not enough."""
    deadline = time.monotonic() + timeout_s
    own_directory(run_dir, 0o755)
    own_directory(state_dir, 0o700)
    with contextlib.ExitStack() as stack:
        for folder in (run_dir, state_dir):
            fd = _take(os.path.join(folder, "lock"), deadline, _by_another_run)
            stack.callback(os.close, fd)
            _sign(fd)
        stack.callback(_bind(deadline).close)
        yield


class DaemonLock:
    """Says for as long as it is held that a daemon serves `run_dir`.

    Raises LockedError, naming its pid, where another one still does after `timeout_s` seconds.
    """

    def __init__(self, run_dir: str, timeout_s: float) -> None:
        self._run_dir = run_dir
        self._path = os.path.join(run_dir, DAEMON_FILE)
        self._fd = self._taken(timeout_s)

    def _taken(self, timeout_s: float) -> int:
        def refusal(_: str, holder: str) -> str:
            who = f" ({holder})" if holder else ""
            return (
                f"a daemon{who} serves {self._run_dir} already (stop it, or give another --run-dir)"
            )

        own_directory(self._run_dir, 0o755)
        fd = _take(self._path, time.monotonic() + max(timeout_s, GLANCE_S), refusal)
        _sign(fd)
        return fd

    def renew(self) -> None:
        """Take it anew where somebody has removed the run dir. Raises LockedError as above."""
        try:
            there = os.stat(self._path)
            here = os.fstat(self._fd)
            if (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino):
                return
        except FileNotFoundError:
            pass
        fd = self._taken(0.0)
        os.close(self._fd)
        self._fd = fd

    def close(self) -> None:
        """Let go."""
        # Who looks between the next daemon's lock and its signature must not read ours.
        os.ftruncate(self._fd, 0)
        os.close(self._fd)


def serving(run_dir: str) -> Serving | None:
    """The daemon that serves `run_dir`. It is looked at, never waited for."""
    try:
        fd = os.open(os.path.join(run_dir, DAEMON_FILE), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        word, _, number = os.pread(fd, 100, 0).decode("ascii", "replace").strip().partition(" ")
        if word != "pid" or not number.isdecimal():
            return None  # it has not signed yet
        return Serving(pid=int(number), since=os.fstat(fd).st_mtime)
    finally:
        os.close(fd)


def daemon_pid(run_dir: str) -> int | None:
    """The pid of the daemon that serves `run_dir`; None: there is none."""
    found = serving(run_dir)
    return found.pid if found else None
