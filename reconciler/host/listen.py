"""Listening sockets, by rules of our own: nothing of others is replaced, nobody else can connect to
a unix socket, and what was made is taken away again."""

import contextlib
import errno
import os
import socket
import stat

from reconciler.core.errors import ObjectError
from reconciler.core.listen import TcpAddress, UnixAddress

BACKLOG = 128
"""Connections that wait in the kernel; a unix socket turns away at once who comes after them."""

CAUSES = {
    errno.EADDRINUSE: (
        "another program listens there",
        "give another address, or stop that program: `ss -ltnpx` names it",
    ),
    errno.EADDRNOTAVAIL: (
        "this host has no such address",
        "give one that `ip address` shows, or 0.0.0.0 or [::] for all",
    ),
    errno.EACCES: ("not permitted", "give a port above 1023 or another path, or run as root"),
    errno.ENOENT: ("its folder does not exist", "make the folder, or give another path"),
}


class Listener:
    """A listening socket that does not block. `address` is where it listens, with the real port."""

    def __init__(self, sock: socket.socket, address: TcpAddress | UnixAddress) -> None:
        self.socket = sock
        self.address = address
        self._file = _identity(address.path) if isinstance(address, UnixAddress) else None

    def close(self) -> None:
        """End it, and remove its file where that is still the one that was made."""
        if isinstance(self.address, UnixAddress):
            with contextlib.suppress(FileNotFoundError):
                if _identity(self.address.path) == self._file:
                    os.unlink(self.address.path)
        self.socket.close()


def _identity(path: str) -> tuple[int, int]:
    found = os.lstat(path)
    return found.st_dev, found.st_ino


def listen(address: TcpAddress | UnixAddress, *, purpose: str) -> Listener:
    """Begin to listen. `purpose` is what an error names as its object.

    The file of a unix socket has mode 0600; one that nobody listens on any more is replaced, and a
    last folder that is absent is made. Raises ObjectError.
    """
    try:
        if isinstance(address, UnixAddress):
            return _unix(address, purpose)
        return _tcp(address)
    except OSError as error:
        code = error.errno or 0
        cause, remedy = CAUSES.get(code, (os.strerror(code), "give another address"))
        raise _refusal(purpose, address, cause, remedy, code) from None


def _refusal(
    purpose: str, address: TcpAddress | UnixAddress, cause: str, remedy: str, code: int = 0
) -> ObjectError:
    return ObjectError(purpose, f"listen on {address}", cause, remedy, errno=code)


def _tcp(address: TcpAddress) -> Listener:
    family = socket.AF_INET6 if address.ip.version == 6 else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        # Connections of a daemon that ended just now linger, and would hold the address.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((str(address.ip), address.port))
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return Listener(sock, TcpAddress(address.ip, sock.getsockname()[1]))


def _unix(address: UnixAddress, purpose: str) -> Listener:
    folder = os.path.dirname(address.path)
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder, 0o755)
    found = os.stat(folder)
    if found.st_uid not in (0, os.geteuid()) or found.st_mode & 0o022:
        raise _refusal(
            purpose,
            address,
            f"others can write to {folder}",
            "give a path in a folder of root's, such as /run/runcnet",
        )
    _make_way(address, purpose)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        # The file takes its mode from the socket (unix_bind_bsd()), so there is no instant at which
        # others could connect, and no umask of the whole process to change.
        os.fchmod(sock.fileno(), 0o600)
        sock.bind(address.path)
        sock.listen(BACKLOG)
        return Listener(sock, address)
    except BaseException:
        sock.close()
        raise


def _make_way(address: UnixAddress, purpose: str) -> None:
    """Remove a socket that was left behind, by a kill for one; refuse what is none of ours."""
    try:
        found = os.lstat(address.path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        cause = "what stands there is no socket"
        raise _refusal(purpose, address, cause, "remove it, or give another path")
    if found.st_uid not in (0, os.geteuid()):
        cause = f"the socket that stands there belongs to uid {found.st_uid}"
        raise _refusal(purpose, address, cause, "remove it, or give another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        code = probe.connect_ex(address.path)
    if code == errno.ECONNREFUSED:  # nobody listens; else bind() will say that it is in use
        os.unlink(address.path)
