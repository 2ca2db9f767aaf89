"""Which ports of the host its own programs listen on (proc(5), /proc/net/tcp and its like)."""

from collections.abc import Iterator
from typing import NamedTuple

from reconciler.core.model import Address

LISTENING = {"tcp": "0A", "udp": "07"}
"""The state of a socket that waits for anybody (include/net/tcp_states.h)."""


class Listener(NamedTuple):
    """A socket that waits; `address` None: on every address, of IPv6 ones also for IPv4."""

    protocol: str
    version: int
    address: Address | None
    port: int


def listeners() -> Iterator[Listener]:
    """All of this network namespace, TCP and UDP."""
    for protocol, state in LISTENING.items():
        for version, tail in ((4, ""), (6, "6")):
            try:
                with open(f"/proc/thread-self/net/{protocol}{tail}", encoding="utf-8") as file:
                    rows = [line.split() for line in file.read().splitlines()[1:]]
            except FileNotFoundError:
                continue  # a host without IPv6
            for row in rows:
                if row[3] == state:
                    yield _listener(protocol, version, *row[1].split(":"))


def _listener(protocol: str, version: int, address: str, port: str) -> Listener:
    # Words of 32 bits, each in the machine's own byte order.
    words = [bytes.fromhex(address[at : at + 8])[::-1] for at in range(0, len(address), 8)]
    value = int.from_bytes(b"".join(words), "big")
    return Listener(protocol, version, Address(version, value) if value else None, int(port, 16))
