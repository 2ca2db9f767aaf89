"""Real clients and servers in the namespaces of a private host: who reaches whom, and as whom."""

import ctypes
import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.host import PrivateHost

CLONE_NEWNET = 0x40000000
PATIENCE_S = 1.0
KINDS = {
    "tcp": (socket.SOCK_STREAM, socket.IPPROTO_TCP),
    "udp": (socket.SOCK_DGRAM, socket.IPPROTO_UDP),
    # Raw: the packets are made here, for few kernels have SCTP built in.
    "sctp": (socket.SOCK_RAW, socket.IPPROTO_SCTP),
}
_LIBC = ctypes.CDLL(None, use_errno=True)


@contextmanager
def inside(host: PrivateHost, netns: str) -> Iterator[None]:
    """Sockets made here belong to one of the host's namespaces (`""`: its own), and stay there."""
    holder = f"/proc/{host.holder}"
    path = f"{holder}/root/run/netns/{netns}" if netns else f"{holder}/ns/net"
    back = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    there = os.open(path, os.O_RDONLY)
    try:
        assert _LIBC.setns(there, CLONE_NEWNET) == 0
        yield
    finally:
        assert _LIBC.setns(back, CLONE_NEWNET) == 0
        os.close(there)
        os.close(back)


def _socket(address: str, protocol: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return socket.socket(family, *KINDS[protocol])


@contextmanager
def serving(
    host: PrivateHost, netns: str, port: int, protocol: str, version: int
) -> Iterator[socket.socket]:
    """A server on every address of that namespace."""
    everywhere = "::" if version == 6 else "0.0.0.0"
    with inside(host, netns):
        server = _socket(everywhere, protocol)
    with server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if version == 6 and protocol != "sctp":
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        server.bind((everywhere, 0 if protocol == "sctp" else port))
        if protocol == "tcp":
            server.listen()
        server.settimeout(PATIENCE_S)
        yield server


def ask(
    host: PrivateHost,
    client: str,
    to: tuple[str, int],
    protocol: str,
    server: socket.socket,
    port: int,
    patience_s: float = PATIENCE_S,
) -> str | None:
    """Where the server at `port` sees the client's question come from; None: no answer comes back."""
    with inside(host, client):
        caller = _socket(to[0], protocol)
    with caller:
        caller.settimeout(patience_s)
        server.settimeout(patience_s)
        try:
            if protocol == "sctp":
                return _associate(caller, to, server, port)
            caller.connect(to)
            caller.sendall(b"question")
            if protocol == "udp":
                _, peer = server.recvfrom(100)
                server.sendto(b"answer", peer)
                assert caller.recv(100) == b"answer"
                return str(peer[0])
            served, peer = server.accept()
        except OSError:
            return None
        with served:
            served.settimeout(PATIENCE_S)
            assert served.recv(100) == b"question"
            served.sendall(b"answer")
            assert caller.recv(100) == b"answer"
        return str(peer[0])


def _associate(
    caller: socket.socket, to: tuple[str, int], server: socket.socket, port: int
) -> str | None:
    """The first two packets of an SCTP association (RFC 9260): INIT, INIT ACK."""
    own = 0xC000 | os.getpid() & 0xFFF
    caller.sendto(_sctp(own, to[1], 1, 0), (to[0], 0))
    source, peer_port = _await(server, port, 1)
    server.sendto(_sctp(port, peer_port, 2, 7), (source, 0))
    answered, answering_port = _await(caller, own, 2)
    assert (answered, answering_port) == to
    return source


def _sctp(source: int, to: int, kind: int, tag: int) -> bytes:
    chunk = struct.pack("!BBHIIHHI", kind, 0, 20, 7, 65536, 1, 1, 1)
    if kind == 2:
        chunk = struct.pack("!BBH", kind, 0, 28) + chunk[4:] + struct.pack("!HHI", 7, 8, 0)
    bare = struct.pack("!HHII", source, to, tag, 0) + chunk
    return bare[:8] + struct.pack("<I", _crc32c(bare)) + bare[12:]


def _crc32c(data: bytes) -> int:
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


def _await(sock: socket.socket, port: int, kind: int) -> tuple[str, int]:
    """Source and port of the first packet of that kind to that port. Raises TimeoutError."""
    deadline = time.monotonic() + (sock.gettimeout() or PATIENCE_S)
    while time.monotonic() < deadline:
        data, peer = sock.recvfrom(1000)
        if sock.family == socket.AF_INET:
            data = data[(data[0] & 15) * 4 :]  # raw IPv4 sockets show the IP header
        source, to = struct.unpack_from("!HH", data)
        if to == port and data[12] == kind:
            return str(peer[0]), source
    raise TimeoutError


def reached(
    host: PrivateHost,
    client: str,
    to: tuple[str, int],
    *,
    server: str,
    port: int,
    protocol: str = "tcp",
    patience_s: float = PATIENCE_S,
) -> str | None:
    """As `ask`, with a server made for it in the namespace `server`, at `port`."""
    version = 6 if ":" in to[0] else 4
    with serving(host, server, port, protocol, version) as listener:
        return ask(host, client, to, protocol, listener, port, patience_s)
