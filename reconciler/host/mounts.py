"""Which files of the netns dir have a namespace mounted on them, and hearing when that changes.

An unmount makes no inotify event; `poll` for POLLPRI on /proc/self/mountinfo is what the kernel offers
(proc(5)).
"""

import os
import re
import select

TABLE = "/proc/self/mountinfo"
ESCAPED = re.compile(rb"\\([0-7]{3})")
"""A space, tab, newline or backslash in a path (proc(5))."""


class Mounts:
    """The mount table; to be polled for POLLPRI."""

    def __init__(self, netns_dir: str) -> None:
        self._lead = os.path.realpath(netns_dir).encode() + b"/"
        self._fd = os.open(TABLE, os.O_RDONLY | os.O_CLOEXEC)
        self._known = self._read()

    def fileno(self) -> int:
        """For poll(2)."""
        return self._fd

    def rang(self) -> bool:
        """Whether the table has changed since poll(2) last said so: it tells each change once."""
        one = select.poll()
        one.register(self._fd, select.POLLPRI)
        return bool(one.poll(0))

    def changed(self) -> frozenset[str]:
        """The files on which something was mounted, or from which it went, since the last call."""
        now = self._read()
        before, self._known = self._known, now
        return frozenset(name for name, _ in now ^ before)

    def _read(self) -> frozenset[tuple[str, bytes]]:
        """Each file, and which mount of which namespace is on it: one may have taken another's place."""
        os.lseek(self._fd, 0, os.SEEK_SET)
        parts = []
        while part := os.read(self._fd, 1 << 20):
            parts.append(part)
        lead, found = self._lead, []
        for line in b"".join(parts).split(b"\n"):
            # 36 35 0:4 net:[4026532345] /run/netns/web rw ...: the fifth word is where it is mounted
            if b" - nsfs " in line:
                number, _, _, space, place, _ = line.split(b" ", 5)
                if place.startswith(lead):
                    name = ESCAPED.sub(lambda m: bytes([int(m[1], 8)]), place[len(lead) :])
                    found.append((name.decode("utf-8", "surrogateescape"), number + space))
        return frozenset(found)

    def close(self) -> None:
        """Stop to listen."""
        os.close(self._fd)
