"""`python everyone.py SEED [keep]`: who reaches whom, asked by real echo requests.

Reads lines `NETNS ADDRESS` from stdin. First the host asks each address, then each member one other,
at random. In rounds of 150; between two, the neighbours that the kernel has learned are dropped: one
table serves all namespaces, it holds 1,024 by default, and others have theirs there (`keep`: there is
nothing learned to drop). Prints the pairs that had no answer.
"""

import ctypes
import os
import random
import select
import socket
import struct
import sys
import time

ROUND = 150
CLONE_NEWNET = 0x40000000
LIBC = ctypes.CDLL(None, use_errno=True)
RTM_DELNEIGH, NLM_F_REQUEST, NDA_DST = 29, 1, 1


def enter(path: str) -> None:
    """Move this process into a namespace."""
    fd = os.open(path, os.O_RDONLY)
    try:
        if LIBC.setns(fd, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), path)
    finally:
        os.close(fd)


def request(number: int) -> bytes:
    """An ICMP echo request (RFC 792)."""
    head = struct.pack(">BBHHH", 8, 0, 0, 1, number & 0xFFFF)
    words = sum(struct.unpack(">4H", head))
    words = (words >> 16) + (words & 0xFFFF)
    return struct.pack(">BBHHH", 8, 0, ~words & 0xFFFF, 1, number & 0xFFFF)


def forget(address: str) -> None:
    """Drop a learned neighbour of link 2 in the present namespace, if it is there."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as netlink:
        body = struct.pack("=BBHiHBB", socket.AF_INET, 0, 0, 2, 0, 0, 0)
        body += struct.pack("=HH", 8, NDA_DST) + socket.inet_aton(address)
        head = struct.pack("=IHHII", 16 + len(body), RTM_DELNEIGH, NLM_F_REQUEST, 1, 0)
        netlink.send(head + body)


def asked(pairs: list[tuple[str, str, str]]) -> list[tuple[str, str]]:
    """(namespace or nothing, own address, other address) triples that had no answer in time."""
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    waiting: dict[int, tuple[socket.socket, str, str]] = {}
    for number, (path, _, other) in enumerate(pairs):
        if path:
            enter(path)
        sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        sock.connect((other, 0))
        sock.send(request(number))
        waiting[sock.fileno()] = (sock, path, other)
    poll = select.poll()
    for fd in waiting:
        poll.register(fd, select.POLLIN)
    deadline = time.monotonic() + 30
    again = time.monotonic() + 2
    while waiting and time.monotonic() < deadline:
        if time.monotonic() > again:
            # On a bridge of 1,000 each question who has an address goes to 1,000 ports.
            for sock, _, _ in waiting.values():
                sock.send(request(0))
            again = time.monotonic() + 2
        for fd, _ in poll.poll(100):
            sock, _, other = waiting[fd]
            packet, source = sock.recvfrom(200)
            if source[0] == other and packet[20] == 0:
                poll.unregister(fd)
                sock.close()
                del waiting[fd]
    missed = [(path, other) for _, path, other in waiting.values()]
    for sock, _, _ in waiting.values():
        sock.close()
    for path, own, other in pairs if "keep" not in sys.argv else ():
        if path:
            enter(path)
            forget(other)
        # Who answers has learned the one who asked.
        enter(f"{DIRECTORY}/{NAMES[other]}")
        forget(own)
    LIBC.setns(home, CLONE_NEWNET)
    os.close(home)
    return missed


NAMES: dict[str, str] = {}
DIRECTORY = "/run/netns"
GATEWAY = "10.60.0.1"


def main() -> None:
    """Ask all."""
    members = [tuple(line.split()) for line in sys.stdin]
    NAMES.update({address: name for name, address in members})
    dice = random.Random(int(sys.argv[1]))
    every = [address for _, address in members]
    missed = []
    for start in range(0, len(members), ROUND):
        part = members[start : start + ROUND]
        missed += asked([("", GATEWAY, address) for _, address in part])
        missed += asked(
            [
                (f"{DIRECTORY}/{name}", own, dice.choice([a for a in every if a != own]))
                for name, own in part
            ]
        )
    for path, other in missed:
        print(path or "host", other)


if __name__ == "__main__":
    main()
