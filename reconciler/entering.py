"""`runcnet exec`: a command in a container's network namespace, as `ip netns exec` runs it."""

import ctypes
import os
import signal
import subprocess
import sys

from reconciler.core.errors import ObjectError

CLONE_NEWNS = 0x00020000
CLONE_NEWNET = 0x40000000
MS_BIND, MS_REC, MS_SLAVE = 0x1000, 0x4000, 0x80000
MNT_DETACH = 2


def _call(name: str, *arguments: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _mount(source: str, target: str, kind: str, flags: int) -> None:
    _call("mount", source.encode(), target.encode(), kind.encode(), flags, None)


def _enter(path: str, folders: list[str]) -> None:
    """In the child: its namespace, a /sys that shows it, and its own files in place of the host's."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    _call("setns", fd, CLONE_NEWNET)
    os.close(fd)
    _call("unshare", CLONE_NEWNS)
    _mount("", "/", "none", MS_SLAVE | MS_REC)
    libc = ctypes.CDLL(None)
    libc.umount2(b"/sys", MNT_DETACH)
    _mount("runcnet", "/sys", "sysfs", 0)
    for folder in folders:
        try:
            files = sorted(os.listdir(folder))
        except OSError:
            continue
        for file in files:
            if os.path.exists(f"/etc/{file}"):
                _mount(f"{folder}/{file}", f"/etc/{file}", "none", MS_BIND)


def run(path: str, *, folders: list[str], command: list[str]) -> int:
    """Run `command` and answer with its exit code (128 + signal where one ended it)."""
    sys.stdout.flush()
    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        done = subprocess.run(command, preexec_fn=lambda: _start(path, folders), check=False)
    except FileNotFoundError:
        raise ObjectError("exec", command[0], "there is no such command") from None
    except (OSError, subprocess.SubprocessError) as error:
        raise ObjectError("exec", f"enter {path}", str(error)) from None
    finally:
        signal.signal(signal.SIGINT, interrupt)
    return done.returncode if done.returncode >= 0 else 128 - done.returncode


def _start(path: str, folders: list[str]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _enter(path, folders)
