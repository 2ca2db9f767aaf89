"""Who this machine is, and since which start of it."""

import _socket as socket
import functools


def machine_id() -> str:
    """The text of /etc/machine-id (machine-id(5)); empty where there is none."""
    return _read("/etc/machine-id")


@functools.cache
def boot_id() -> str:
    """A number that changes with each start of the machine (random(4))."""
    return _read("/proc/sys/kernel/random/boot_id")


def link_number(name: str) -> int:
    """The ifindex of a link of ours; 0: there is none of that name."""
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return 0


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().strip()
    except FileNotFoundError:
        return ""
