"""Waits for processes to end that containers are held back for (pidfd_open(2))."""

import os
import select
from collections.abc import Mapping


class Waiting:
    """One process of each container that is in use, among what `poll` waits for."""

    def __init__(self, poll: select.poll) -> None:
        self._poll = poll
        self._names: dict[int, str] = {}

    def follow(self, busy: Mapping[str, tuple[int, ...]]) -> list[str]:
        """Watch these, of which the pids are given; answers which cannot be watched."""
        watched = set(self._names.values())
        late = []
        for name, pids in busy.items():
            if name in watched:
                continue
            try:
                fd = os.pidfd_open(pids[0])
            except OSError:
                # It has ended meanwhile, or this is more than the limit of open files allows.
                late.append(name)
                continue
            self._names[fd] = name
            self._poll.register(fd, select.POLLIN)
        return late

    def ended(self, fd: int) -> str | None:
        """Whose process has ended; None: it is another descriptor."""
        name = self._names.pop(fd, None)
        if name is not None:
            self._poll.unregister(fd)
            os.close(fd)
        return name

    def close(self) -> None:
        """Wait for none any more."""
        for fd in self._names:
            os.close(fd)
        self._names.clear()
