"""One writer: a lock on the run dir, one in the state dir, and a socket name for the namespace."""

import contextlib
import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator

from reconciler.core.errors import LockedError
from reconciler.host.files import own_directory

PAUSE_S = 0.05
DAEMON = "daemon.lock"
SOCKET = "\0runcnet"
"""An abstract unix socket name is unique in a network namespace, whatever folders are used."""


def _take(path: str, deadline: float) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        except BlockingIOError:
            if time.monotonic() >= deadline:
                holder = os.pread(fd, 100, 0).decode("ascii", "replace").strip()
                os.close(fd)
                raise LockedError(
                    f"{path} is held by another run{f' ({holder})' if holder else ''} "
                    "(wait for it, or give --lock-timeout more seconds)"
                ) from None
        time.sleep(PAUSE_S)


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
            fd = _take(os.path.join(folder, "lock"), deadline)
            stack.callback(os.close, fd)
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"pid {os.getpid()}\n".encode(), 0)
        stack.enter_context(_bind(deadline))
        yield


@contextlib.contextmanager
def daemon_lock(run_dir: str, *, timeout_s: float) -> Iterator[None]:
    """Held by a daemon for its life. Raises LockedError where another one serves `run_dir`."""
    own_directory(run_dir, 0o755)
    fd = _take(os.path.join(run_dir, DAEMON), time.monotonic() + timeout_s)
    try:
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"pid {os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)
