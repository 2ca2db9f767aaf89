"""The daemon's door: a unix socket in the run dir, by which hooks hand over what they are called for.

One request a connection: the number of words, the words of the command line, each ended by a NUL,
then stdin to its end. The answer is the exit code in decimal, a line break, and what is to be said on
stderr; ELSEWHERE: whoever asks is to do it himself.
"""

import contextlib
import os
import select
import socket
import stat
import struct
import time

import msgspec

FILE = "daemon.sock"
ELSEWHERE = 75
"""EX_TEMPFAIL of sysexits.h."""
LIMIT = (1 << 20) + (1 << 16)
"""Bytes of a request: the state, and a command line."""
PATIENCE_S = 5.0
"""How long a request may take to arrive."""
VISITORS = 512
CREDENTIALS = struct.Struct("=iII")  # struct ucred of unix(7): pid, uid, gid


class Request(msgspec.Struct, frozen=True):
    """What somebody asks."""

    visitor: int
    """By which `Door.answer` knows who it was."""
    words: tuple[str, ...]
    stdin: bytes
    since: float
    """Seconds of the monotonic clock."""


class _Visitor:
    def __init__(self, sock: socket.socket, now: float) -> None:
        self.sock = sock
        self.since = now
        self.heard = bytearray()
        self.asked = False


class Door:
    """Listens from now on. What is ready to be read or is over is known by `poll`."""

    def __init__(self, run_dir: str, poll: select.poll) -> None:
        self._poll = poll
        self._path = os.path.join(run_dir, FILE)
        self._visitors: dict[int, _Visitor] = {}
        self._open()

    def _open(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISSOCK(os.lstat(self._path).st_mode):
                os.unlink(self._path)  # of a daemon that was killed; its lock is ours now
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        old = os.umask(0o177)
        try:
            self._sock.bind(self._path)
        finally:
            os.umask(old)
        self._sock.listen(VISITORS)
        self._poll.register(self._sock.fileno(), select.POLLIN)

    def renew(self) -> None:
        """Listen anew where somebody has removed the socket, or the run dir with it."""
        if not os.path.lexists(self._path) and os.path.isdir(os.path.dirname(self._path)):
            self._poll.unregister(self._sock.fileno())
            self._sock.close()
            self._open()

    def close(self) -> None:
        """Stop listening; whoever waits is sent away, and does it himself."""
        with contextlib.suppress(OSError):
            os.unlink(self._path)
        self._sock.close()
        for visitor in self._visitors.values():
            visitor.sock.close()
        self._visitors.clear()

    def hear(self, fd: int) -> Request | None:
        """Take in what `fd` has brought; a request, where it is whole now."""
        if fd == self._sock.fileno():
            self._let_in()
            return None
        visitor = self._visitors.get(fd)
        if visitor is None:
            return None
        try:
            # All that is there: while a pass goes on, nobody is heard, and that is not his fault.
            while part := visitor.sock.recv(1 << 16):
                visitor.heard += part
                if len(visitor.heard) > LIMIT:
                    self._send_off(fd)
                    return None
        except BlockingIOError:
            return None
        except OSError:
            self._send_off(fd)
            return None
        self._poll.unregister(fd)
        visitor.asked = True
        request = _read(fd, bytes(visitor.heard), visitor.since)
        if request is None:
            self._send_off(fd)
        return request

    def knows(self, fd: int) -> bool:
        """Whether it is one of the door's."""
        return fd == self._sock.fileno() or fd in self._visitors

    def sweep(self, now: float) -> None:
        """Send those off who do not say what they want."""
        late = [
            fd for fd, v in self._visitors.items() if now - v.since > PATIENCE_S and not v.asked
        ]
        for fd in late:
            self._send_off(fd)

    def answer(self, request: Request, code: int, text: str = "") -> None:
        """Answer and part."""
        visitor = self._visitors.get(request.visitor)
        if visitor is None:
            return
        with contextlib.suppress(OSError):
            visitor.sock.send(f"{code}\n{text}".encode(errors="replace")[: 1 << 16])
        self._send_off(request.visitor)

    def waits(self, request: Request) -> bool:
        """Whether whoever asked is still there for the answer."""
        visitor = self._visitors.get(request.visitor)
        if visitor is None:
            return False
        look = select.poll()
        look.register(visitor.sock.fileno(), 0)  # POLLHUP is always told: both ways are closed
        return not look.poll(0)

    def leave(self, request: Request) -> None:
        """Part from somebody who has gone."""
        if request.visitor in self._visitors:
            self._send_off(request.visitor)

    def _let_in(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while len(self._visitors) < VISITORS:
                sock, _ = self._sock.accept()
                who = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
                _, uid, _ = CREDENTIALS.unpack(who)
                if uid not in (0, os.geteuid()):
                    sock.close()
                    continue
                sock.setblocking(False)
                self._visitors[sock.fileno()] = _Visitor(sock, time.monotonic())
                self._poll.register(sock.fileno(), select.POLLIN)

    def _send_off(self, fd: int) -> None:
        visitor = self._visitors.pop(fd)
        with contextlib.suppress(KeyError, OSError):
            self._poll.unregister(fd)
        visitor.sock.close()


def _read(visitor: int, heard: bytes, since: float) -> Request | None:
    """A request; None: it is none."""
    count, _, rest = heard.partition(b"\0")
    if not count.isdigit() or not 0 < int(count) < 10_000:
        return None
    parts = rest.split(b"\0", int(count))
    if len(parts) != int(count) + 1:
        return None
    words = tuple(os.fsdecode(part) for part in parts[:-1])
    return Request(visitor, words, parts[-1], since)
