"""A few read-only pages over HTTP: one thread, and a bound on all that a client can use up.

http.server gives each connection a thread, counts its timeout anew with every byte that trickles in, and
accepts megabytes of headers. Here a connection is one request of a few kilobytes and has a few seconds.
"""

import math
import os
import re
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus

import msgspec

from reconciler.host.listen import Listener

CLIENTS = 16
"""Connections at a time; further ones wait in the kernel."""
REQUEST_BYTES = 8192
PATIENCE_S = 5.0
"""How long a connection may take from beginning to end."""
PAUSE_S = 1.0
"""How long to leave new connections alone when there is no descriptor for them."""

REQUEST_LINE = re.compile(rb"([A-Z]{1,20}) (/[!-~]*) HTTP/1\.[0-9]\r?\n")
END = re.compile(rb"\r?\n\r?\n")


class Page(msgspec.Struct, frozen=True):
    """What a path answers; `make` is called in the server's thread, for each request."""

    content_type: str
    make: Callable[[], bytes]


class _Client:
    """A connection: a request is read, the answer written, and the other side left to close."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self.socket = sock
        self.deadline = deadline
        self._request = bytearray()
        self._answer: memoryview | None = None
        """What of it is still to be written."""

    @property
    def waits_for(self) -> int:
        """The event of poll(2) with which it goes on."""
        return select.POLLOUT if self._answer else select.POLLIN

    def go_on(self, answer: Callable[[bytes], bytes]) -> bool:
        """Do what the socket is ready for; False: the connection is over."""
        try:
            if self._answer is None:
                piece = self.socket.recv(REQUEST_BYTES)
                self._request += piece
                if END.search(self._request) or len(self._request) > REQUEST_BYTES:
                    self._answer = memoryview(answer(bytes(self._request)))
                return bool(piece)
            if self._answer:
                self._answer = self._answer[self.socket.send(self._answer) :]
                if not self._answer:
                    self.socket.shutdown(socket.SHUT_WR)
                return True
            # What was sent and not read would make close() a reset, which takes the answer along.
            return bool(self.socket.recv(REQUEST_BYTES))
        except BlockingIOError:
            return True  # poll(2) may err
        except OSError:
            return False  # the other side has gone


class PageServer:
    """Serves `pages` (path → page) until it is closed. It does not keep the process from ending."""

    def __init__(
        self, listener: Listener, pages: Mapping[str, Page], *, patience_s: float = PATIENCE_S
    ) -> None:
        self._listener = listener
        self._pages = pages
        self._patience_s = patience_s
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name="pages", daemon=True)
        # A thread begins with the signals of its maker: they are all to reach the main thread.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            self._thread.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    @property
    def address(self) -> str:
        """Where it listens, with the real port."""
        return str(self._listener.address)

    def close(self) -> None:
        """Drop all connections, stop listening and remove the socket's file; again: nothing."""
        if self._wake < 0:
            return
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        os.close(self._wake)
        self._wake = -1
        self._listener.close()

    def _run(self) -> None:
        clients: dict[int, _Client] = {}
        door = self._listener.socket.fileno()
        resume = 0.0
        while True:
            now = time.monotonic()
            for fd in [fd for fd, client in clients.items() if client.deadline <= now]:
                clients.pop(fd).socket.close()
            poll = select.poll()
            poll.register(self._wake, select.POLLIN)
            if len(clients) < CLIENTS and resume <= now:
                poll.register(door, select.POLLIN)
            for fd, client in clients.items():
                poll.register(fd, client.waits_for)
            dates = [client.deadline for client in clients.values()]
            dates += [resume] if resume > now else []
            wait_ms = math.ceil((min(dates) - now) * 1000) if dates else None
            ready = poll.poll(wait_ms)
            now = time.monotonic()
            for fd, _ in ready:
                if fd == self._wake:
                    for client in clients.values():
                        client.socket.close()
                    return
                if fd == door:
                    try:
                        sock = self._listener.socket.accept()[0]
                    except (BlockingIOError, ConnectionAbortedError):
                        continue  # it has gone already
                    except OSError:
                        # No descriptor or memory for it: it waits there, and poll() would not.
                        resume = now + PAUSE_S
                        continue
                    sock.setblocking(False)
                    clients[sock.fileno()] = _Client(sock, now + self._patience_s)
                elif not clients[fd].go_on(self._answer):
                    clients.pop(fd).socket.close()

    def _answer(self, request: bytes) -> bytes:
        """The whole answer to a request, whatever it is."""
        whole = self._reply(request)
        return whole[: whole.index(b"\r\n\r\n") + 4] if request.startswith(b"HEAD ") else whole

    def _reply(self, request: bytes) -> bytes:
        match = REQUEST_LINE.match(request)
        if END.search(request) is None:
            return _plain(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        if match is None:
            return _plain(HTTPStatus.BAD_REQUEST)
        method, target = match.groups()
        if method not in (b"GET", b"HEAD"):
            return _plain(HTTPStatus.METHOD_NOT_ALLOWED, "Allow: GET, HEAD")
        page = self._pages.get(target.partition(b"?")[0].decode("ascii"))
        if page is None:
            return _plain(HTTPStatus.NOT_FOUND)
        try:
            body = page.make()
        except Exception:  # one page that fails must not end the thread for all later ones
            sys.excepthook(*sys.exc_info())
            return _plain(HTTPStatus.INTERNAL_SERVER_ERROR)
        return _head(HTTPStatus.OK, page.content_type, len(body)) + body


def _head(status: HTTPStatus, content_type: str, size: int, *more: str) -> bytes:
    lines = [
        f"HTTP/1.1 {status.value} {status.phrase}",
        f"Content-Type: {content_type}",
        f"Content-Length: {size}",
        "Connection: close",
        *more,
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")


def _plain(status: HTTPStatus, *more: str) -> bytes:
    body = f"{status.phrase}\n".encode("ascii")
    return _head(status, "text/plain; charset=utf-8", len(body), *more) + body
