"""Waiting for an answer: on a terminal that may go away, with signals that end the wait."""

import contextlib
import errno
import os
import select
import signal
import sys
import termios
import time
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

RINGING = {
    signal.SIGALRM: "it was not confirmed in time",
    signal.SIGHUP: "its terminal hung up",
    signal.SIGINT: "it was interrupted",
    signal.SIGTERM: "it was told to end",
}
STOPPING = (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
"""Who is stopped takes nothing back."""


class Rung(Exception):  # noqa: N818 - never leaves this file
    """A signal has come while it was waited for."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.reason = RINGING[signal.Signals(number)]


class Signals:
    """The signals that end a trial: noted for good, raised while armed."""

    def __init__(self) -> None:
        self.number = 0
        """The first that came; 0: none."""
        self._armed = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        for number in RINGING:
            self._before[number] = signal.signal(number, self._ring)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def _ring(self, number: int, _: FrameType | None) -> None:
        self.number = self.number or number
        if self._armed:
            self._armed = False
            raise Rung(number)

    def stay(self) -> None:
        """From now on nothing stops this process."""
        for number in STOPPING:
            self._before.setdefault(number, signal.signal(number, signal.SIG_IGN))

    @contextlib.contextmanager
    def armed(self, seconds: float = 0.0) -> Iterator[None]:
        """Inside, a signal raises Rung, once, whatever is waited for; so does the end of the time."""
        try:
            self._armed = True
            if self.number:
                raise Rung(self.number)
            if seconds:
                signal.setitimer(signal.ITIMER_REAL, seconds)
            yield
        finally:
            self._armed = False
            signal.setitimer(signal.ITIMER_REAL, 0)


class Prompt:
    """The question on the terminal."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._shown = -1
        try:
            # What was typed before the question is no answer to it.
            termios.tcflush(fd, termios.TCIFLUSH)
        except termios.error as error:
            raise OSError(*error.args) from None

    @classmethod
    def find(cls) -> "Prompt | None":
        """The terminal of whoever typed the command; None: there is none."""
        if not sys.stdin.isatty():
            return None
        # A description of our own: O_NONBLOCK on stdin would be on the shell's as well.
        flags = os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            return cls(os.open("/dev/tty", flags))
        except OSError as error:
            if error.errno in (errno.ENXIO, errno.ENOENT):  # it has no controlling terminal
                return None
            raise

    def close(self) -> None:
        """Leave the line."""
        with contextlib.suppress(OSError):
            os.write(self._fd, b"\n")
        os.close(self._fd)

    def show(self, left_s: float) -> None:
        """The question, once for each second that is left."""
        if self._shown == int(left_s):
            return
        self._shown = int(left_s)
        text = f"\r\x1b[KKeep this? Enter or y keeps it, n takes it back; {self._shown} s left: "
        # A terminal that nobody reads is full at some time: then there is nobody to see it.
        with contextlib.suppress(BlockingIOError):
            os.write(self._fd, text.encode())

    def answer(self, seconds: float) -> bool | None:
        """Wait for a line: True keeps, False takes back, None: nothing that is an answer.

        Raises OSError when the terminal is gone.
        """
        if os.tcgetpgrp(self._fd) != os.getpgrp():
            time.sleep(seconds)  # in the background: what is typed is meant for somebody else
            return None
        if not select.select([self._fd], [], [], seconds)[0]:
            return None
        typed = os.read(self._fd, 1000)
        if not typed:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self._shown = -1
        word = typed.decode("utf-8", "replace").strip().lower()
        return {"": True, "y": True, "yes": True, "n": False, "no": False}.get(word)
