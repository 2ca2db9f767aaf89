"""Which processes live in which network namespace, from /proc (needs CAP_SYS_PTRACE for others')."""

import os
from collections.abc import Collection, Iterator


def _pids() -> list[str]:
    return [entry for entry in os.listdir("/proc") if entry.isdigit()]


def _inode(path: str) -> int | None:
    try:
        return os.stat(path).st_ino
    except OSError:  # it ended meanwhile, or is a zombie, which has left its namespaces
        return None


def started(pid: int) -> int | None:
    """When a process began (clock ticks since the boot, proc_pid_stat(5)); None: it has ended."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            # The name, in brackets, may hold anything; behind it come the state and 49 numbers.
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def shut(pid: int, began: int) -> bool:
    """Whether that process is there, and where it lives cannot be seen (it needs CAP_SYS_PTRACE)."""
    if started(pid) != began:
        return False
    try:
        os.stat(f"/proc/{pid}/ns/net")
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def veiled() -> bool:
    """Whether there is a process of which it cannot be seen where it lives (it needs CAP_SYS_PTRACE).

    Process 1 does not count: no hook may attach its namespace.
    """
    for pid in _pids():
        if pid == "1":
            continue
        try:
            os.stat(f"/proc/{pid}/ns/net")
        except PermissionError:
            return True
        except OSError:  # it has ended
            continue
    return False


def namespaces() -> dict[int, str]:
    """Inode of each network namespace in which a thread lives → one path to it in /proc."""
    found: dict[int, str] = {}
    for pid in _pids():
        for path in (f"/proc/{pid}/ns/net", *_threads(pid)):
            inode = _inode(path)
            if inode is not None:
                found.setdefault(inode, path)
    return found


def _threads(pid: str) -> Iterator[str]:
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return
    # A thread may live elsewhere than the thread that leads its process.
    for task in tasks:
        yield f"/proc/{pid}/task/{task}/ns/net"


def pids_by_inode() -> dict[int, tuple[int, ...]]:
    """Inode of each network namespace → the pids that have a thread in it, ascending."""
    found: dict[int, set[int]] = {}
    for pid in _pids():
        for path in _threads(pid):
            inode = _inode(path)
            if inode is not None:
                found.setdefault(inode, set()).add(int(pid))
    return {inode: tuple(sorted(pids)) for inode, pids in found.items()}


def init_of(pids: Collection[int]) -> int | None:
    """Of the processes that live in a namespace, the one that began it: the first process of a pid
    namespace of its own, else the lowest pid; None: there is none."""
    for pid in sorted(pids):
        numbers = _numbers(pid)
        if len(numbers) > 1 and numbers[-1] == "1":
            return pid
    return min(pids, default=None)


def _numbers(pid: int) -> list[str]:
    """A process's pid in each pid namespace that it is in, ours first."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
            line = next((text for text in file if text.startswith("NSpid:")), "")
    except OSError:
        return []
    return line.split()[1:]
