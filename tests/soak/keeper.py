"""The daemon under the soak: started, killed, stopped, and looked at from outside."""

import os
import signal
import subprocess
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from tests.support.host import ROOT, PrivateHost, wait_for


class Weight(NamedTuple):
    """What a daemon holds."""

    files: Counter[str]
    """Open descriptors by kind."""
    threads: int
    rss_kib: int
    mounts: Counter[str]
    """Mounts of its mount namespace by kind, namespaces aside."""
    namespaces: int
    """Mounts of namespaces."""
    children: tuple[str, ...]


class Served:
    """One daemon after the other."""

    def __init__(self, host: PrivateHost, *words: str) -> None:
        self.host = host
        self.words = words
        self.child: subprocess.Popen[bytes] | None = None
        self.lives = 0
        self.log = host.dir / "soak.log"

    def start(self) -> None:
        """Start one and do not wait for its first pass."""
        self.lives += 1
        command = self.host.command(
            "runcnet-reconcile", "--private-mounts", *self.words, *self.host.options
        )
        with self.log.open("a") as file:
            file.write(f"--- life {self.lives}\n")
            file.flush()
            self.child = subprocess.Popen(
                self.host.enter(*command), stdout=file, stderr=file, cwd=ROOT
            )

    def up(self) -> bool:
        """Whether one is meant to run; fails loudly where it ended by itself."""
        if self.child is None:
            return False
        code = self.child.poll()
        if code is not None:
            raise AssertionError(f"the daemon ended by itself with {code}")
        return True

    def end(self, number: int) -> None:
        """End it with a signal. SIGTERM must do within two seconds and some for a busy machine."""
        child, self.child = self.child, None
        if child is None:
            return
        child.send_signal(number)
        code = child.wait(10.0)
        # What comes before Python has its handlers in place ends it without a word.
        fine = {-signal.SIGKILL} if number == signal.SIGKILL else {0, -number}
        assert code in fine, f"signal {number} ended the daemon with {code}"

    def close(self) -> None:
        """End it in any case."""
        if self.child is not None:
            self.child.kill()
            self.child.wait(10)

    def said(self) -> str:
        """Everything that all of them said."""
        return self.log.read_text() if self.log.exists() else ""

    def wait_until_it_watches(self) -> None:
        """Wait for the first pass of this life."""
        mark = f"--- life {self.lives}\n"
        wait_for(
            lambda: self.up() and "watching " in self.said().rpartition(mark)[2],
            60.0,
            "the daemon's first pass",
        )

    def weight(self) -> Weight:
        """What it holds now."""
        assert self.child is not None  # the caller has started one
        proc = Path(f"/proc/{self.child.pid}")
        status = dict(
            line.split(":", 1) for line in (proc / "status").read_text().splitlines() if ":" in line
        )
        mounts: Counter[str] = Counter()
        for line in (proc / "mountinfo").read_text().splitlines():
            mounts[line.partition(" - ")[2].split()[0]] += 1
        namespaces = mounts.pop("nsfs", 0)
        return Weight(
            files=Counter(_kinds(proc / "fd")),
            threads=int(status["Threads"]),
            rss_kib=int(status["VmRSS"].split()[0]),
            mounts=mounts,
            namespaces=namespaces,
            children=tuple(_children(self.child.pid)),
        )


def _kinds(folder: Path) -> list[str]:
    found = []
    for entry in os.listdir(folder):
        try:
            target = os.readlink(folder / entry)
        except FileNotFoundError:
            continue  # closed meanwhile
        kind = target.partition(":[")[0]
        found.append(os.path.basename(kind) if kind.startswith("/") else kind)
    return found


def _children(pid: int) -> list[str]:
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                stat = Path(f"/proc/{entry}/stat").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue  # ended meanwhile
            name, _, rest = stat.rpartition(")")
            if int(rest.split()[1]) == pid:
                found.append(f"{name.partition('(')[2]} {rest.split()[0]}")
    return found
