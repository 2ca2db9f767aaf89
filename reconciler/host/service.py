"""What systemd is told about this process: sd_notify(3), datagrams to a socket of its choosing."""

import math
import os
import socket
import time
from collections.abc import MutableMapping

PATIENCE_S = 1.0
"""How long a full socket is waited for; pid 1 empties it all the time, unless it is ill itself."""


class Service:
    """The service manager that started this process, or nobody: then every method does nothing.

    What cannot be delivered is lost without a word, because a daemon whose manager is gone still
    has its work to do.
    """

    def __init__(self, environ: MutableMapping[str, str] = os.environ) -> None:
        """Take the variables out of `environ`: a child that found them could speak in our name."""
        name = environ.pop("NOTIFY_SOCKET", "")
        interval_us = environ.pop("WATCHDOG_USEC", "")
        pid = environ.pop("WATCHDOG_PID", "")
        self._address = _address(name)
        self._watchdog_s: float | None = None
        # A process between systemd and this one may have passed on what was meant for itself.
        ours = pid in ("", str(os.getpid()))
        if self._address and ours and interval_us.isdecimal() and int(interval_us):
            self._watchdog_s = int(interval_us) / 1e6
        self._alive_at_s = -math.inf
        self._status = ""

    @property
    def keep_alive_s(self) -> float | None:
        """How often `alive` is to be called at least, or None where nobody waits for it.

        A quarter of what systemd allows: a call that comes just too early to be passed on and the
        next one are then still less than the whole of it apart.
        """
        return None if self._watchdog_s is None else self._watchdog_s / 4

    def ready(self, text: str) -> None:
        """The first pass, or a reload, is over; `text` is what `systemctl status` shows."""
        line = _line(text)
        if self._send(f"READY=1\nSTATUS={line}"):
            self._status = line

    def reloading(self) -> None:
        """A reload has begun; `ready` ends it."""
        # systemd takes the time to tell the answer to this reload from the answer to an older one.
        now_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send(f"RELOADING=1\nMONOTONIC_USEC={now_us}")

    def stopping(self) -> None:
        """The end has begun."""
        self._send("STOPPING=1")

    def status(self, text: str) -> None:
        """What goes on, in one line; sent when it is another than before."""
        line = _line(text)
        if line != self._status and self._send(f"STATUS={line}"):
            self._status = line

    def alive(self, now: float) -> None:
        """The loop turns. `now`: seconds of a clock that never goes back."""
        if self._watchdog_s is None or now - self._alive_at_s < self._watchdog_s / 2:
            return
        if self._send("WATCHDOG=1"):
            self._alive_at_s = now

    def _send(self, text: str) -> bool:
        """Whether it was delivered."""
        if not self._address:
            return False
        try:
            # A socket a message: pid 1 may have bound its own anew since the last one.
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.settimeout(PATIENCE_S)
                sock.connect(self._address)
                sock.send(text.encode(errors="surrogateescape"))
        except OSError:
            return False
        return True


def _address(name: str) -> bytes:
    """The socket's address: a path, or an abstract name, which is written with an @ in front."""
    if name.startswith("@"):
        return b"\0" + os.fsencode(name[1:])
    # The rest are addresses outside this machine (vsock:...), which no unit is given.
    return os.fsencode(name) if name.startswith("/") else b""


def _line(text: str) -> str:
    # A line of its own would be a word of its own to systemd.
    return " ".join(text.splitlines())
