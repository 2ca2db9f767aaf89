"""The process that has python-iptables loaded, and the parent's talk with it.

python-iptables is not thread-safe, caches its handles for the life of the process, moves file
descriptor 1 about, can leave Python by longjmp, and takes some 90 ms to load. So it is loaded by a
child of ours, once, and that one forks for each turn of work: what the library caches or breaks ends
with the turn, and the next one finds it loaded. The turn does as it is told and no more: it holds the
lock of all iptables programs and edits tables. Reading, comparing and checking are the parent's.

Messages are pickled (links and chains of others may have names that are no UTF-8), each behind its
length: four bytes, lowest first. Nobody else has an end of these pipes.
"""

import atexit
import os
import pickle
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import reconciler
from reconciler.core.errors import FirewallError
from reconciler.core.xtables import Edit

LENGTH = struct.Struct("<I")
TELL_LAST = 4096
"""Bytes of what a worker has said last that are looked at once it has ended."""


class Begin(NamedTuple):
    """A turn: take the lock."""

    version: int
    lock_timeout_s: float
    tables: tuple[str, ...] = ()
    """Those that exist and are likely to be edited: they can be opened meanwhile."""


class Change(NamedTuple):
    """Edit one table, in one commit."""

    table: str
    steps: tuple[Edit, ...]


class End(NamedTuple):
    """Let go of the lock."""


class Answer(NamedTuple):
    """To each of them."""

    error: str = ""
    """What went wrong, in one sentence."""
    broken: bool = False
    """Whether the worker is of no use any more."""


class Broken(Exception):  # noqa: N818 - told by what the callers raise
    """The worker has ended, or is about to."""


def send(descriptor: int, message: object) -> None:
    """Write one message. Raises OSError."""
    data = pickle.dumps(message)
    left = memoryview(LENGTH.pack(len(data)) + data)
    while left:
        left = left[os.write(descriptor, left) :]


def receive(descriptor: int) -> object:
    """Read one message, and nothing behind it. Raises EOFError."""
    (size,) = LENGTH.unpack(_exactly(descriptor, LENGTH.size))
    return pickle.loads(_exactly(descriptor, size))


def _exactly(descriptor: int, size: int) -> bytes:
    parts = []
    while size:
        part = os.read(descriptor, size)
        if not part:
            raise EOFError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


class Worker:
    """One such process."""

    def __init__(self) -> None:
        """Start it. Raises OSError."""
        # What it and its libraries say: nobody reads along, so it must not be a pipe.
        self._said = os.memfd_create("runcnet-worker", os.MFD_CLOEXEC)
        # -P and a bare environment: nothing of the caller's folder or variables reaches root's child;
        # the package is found where this one was. A session of its own: an interrupt from the
        # terminal is for the parent, which lets the commit in flight end.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "reconciler.host.firewall.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            bufsize=0,
            cwd="/",
            start_new_session=True,
            env={
                "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
                "LC_ALL": "C",
                "PYTHONPATH": str(Path(reconciler.__file__).parents[1]),
                # python-iptables imports distutils, in whose place setuptools puts all of itself.
                "SETUPTOOLS_USE_DISTUTILS": "stdlib",
                # iptables(8) knows it; sudo does not pass it on.
                "XTABLES_LOCKFILE": os.environ.get("XTABLES_LOCKFILE", ""),
            },
        )

    def ask(self, message: object) -> None:
        """Send one message and wait for its answer.

        Raises FirewallError with what went wrong in the worker, and Broken with how it ended.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            send(self._process.stdin.fileno(), message)
            answer = receive(self._process.stdout.fileno())
        except (OSError, EOFError):
            raise Broken(
                f"python-iptables ended with {self._process.wait()}: {self._last()}"
            ) from None
        assert isinstance(answer, Answer)
        if answer.broken:
            raise Broken(f"python-iptables ended with {answer.error}: {self._last()}")
        if answer.error:
            raise FirewallError(answer.error)

    def _last(self) -> str:
        size = os.fstat(self._said).st_size
        said = os.pread(self._said, TELL_LAST, max(0, size - TELL_LAST))
        lines = said.decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "no word"

    def close(self, *, busy: bool) -> None:
        """Have it end; where it may be `busy` with a commit, once that is through."""
        if not busy and self._process.poll() is None:
            # Not reaped: the number is still its own. A fork that outlives it ends with the pipes.
            os.killpg(self._process.pid, signal.SIGKILL)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        self._process.wait()
        os.close(self._said)


_worker: Worker | None = None
"""The one that stands by."""


def ready() -> None:
    """Have one stand by: what takes long begins, and nothing is waited for. Raises FirewallError."""
    global _worker
    if _worker is None:
        try:
            _worker = Worker()
        except OSError as error:
            raise FirewallError(f"firewall: start a process: {error.strerror}") from error


def close(*, busy: bool = False) -> None:
    """Nobody is needed any more."""
    global _worker
    if _worker is not None:
        worker, _worker = _worker, None
        worker.close(busy=busy)


atexit.register(close)


def _begun(begin: Begin) -> Worker:
    """A worker that holds the lock. Raises FirewallError, and Broken."""
    fresh = _worker is None
    ready()
    assert _worker is not None
    try:
        _worker.ask(begin)
    except Broken:
        close()
        if fresh:
            raise
        # It has stood by for long, and somebody has ended it meanwhile: nothing has begun yet.
        return _begun(begin)
    return _worker


def _end(worker: Worker) -> None:
    try:
        worker.ask(End())
    except Broken:
        close(busy=True)  # and with it the lock is gone


def _cause(error: Broken) -> FirewallError:
    return FirewallError(
        f"firewall: change the tables: {error} (run with --firewall none to go without)"
    )


@contextmanager
def locked(begin: Begin) -> Iterator[Callable[[str, Iterable[Edit]], None]]:
    """Hold the lock that every iptables program takes; gives what commits edits to a table of that IP
    version. Raises FirewallError, and so does that."""
    try:
        worker = _begun(begin)
    except FirewallError:
        raise
    except Broken as error:
        raise _cause(error) from None
    except BaseException:
        close()  # it waits for the lock
        raise

    def commit(table: str, steps: Iterable[Edit]) -> None:
        # What goes is told by its number.
        told = (step._replace(rule=None) if step.verb == "delete" else step for step in steps)
        worker.ask(Change(table, tuple(told)))

    try:
        yield commit
    except FirewallError:
        _end(worker)
        raise
    except Broken as error:
        close(busy=True)
        raise _cause(error) from None
    except BaseException:
        close(busy=True)
        raise
    _end(worker)
