"""`python -m tests.support.confined COMMAND...`: under the filters that systemd would make of our unit.

systemd.exec(5) says what each option of config/runcnet.service forbids; here the same is told to
libseccomp, which systemd uses as well. RestrictRealtime=, RestrictSUIDSGID= and LockPersonality=
are left out: they forbid what nothing here does.
"""

import ctypes
import errno
import mmap
import os
import socket
import sys

from tests.support import unitfile

ALLOW, REFUSE = 0x7FFF0000, 0x00050000
NOT_EQUAL, EQUAL, MASKED = 1, 4, 7
NAMESPACES = {
    "mnt": 0x20000, "cgroup": 0x2000000, "uts": 0x4000000, "ipc": 0x8000000,
    "user": 0x10000000, "pid": 0x20000000, "net": 0x40000000,
}  # fmt: skip
PROT_EXEC_AND_WRITE = mmap.PROT_EXEC | mmap.PROT_WRITE


class Condition(ctypes.Structure):
    """libseccomp's scmp_arg_cmp. MASKED: `argument & a == b`."""

    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("a", ctypes.c_uint64),
        ("b", ctypes.c_uint64),
    )


class Filter:
    """One seccomp filter; every one that is loaded has to agree."""

    def __init__(self, default: int) -> None:
        self.library = ctypes.CDLL("libseccomp.so.2")
        self.library.seccomp_init.restype = ctypes.c_void_p
        self.context = ctypes.c_void_p(self.library.seccomp_init(default))
        self.default = default

    def rule(self, action: int, name: str, *conditions: Condition) -> None:
        """What is to be done at a call; names that this machine does not have are passed over."""
        number = self.library.seccomp_syscall_resolve_name(name.encode())
        if number < 0 or action == self.default:
            return
        listed = (Condition * len(conditions))(*conditions)
        code = self.library.seccomp_rule_add_array(
            self.context, ctypes.c_uint32(action), number, len(conditions), listed
        )
        if code:
            raise OSError(-code, f"seccomp rule for {name}")

    def load(self) -> None:
        """Put it in force, for good."""
        code = self.library.seccomp_load(self.context)
        if code:
            raise OSError(-code, "seccomp_load")


def system_calls() -> Filter:
    """SystemCallFilter="""
    made = Filter(REFUSE | getattr(errno, unitfile.settings()["SystemCallErrorNumber"][0]))
    for name in unitfile.syscalls():
        made.rule(ALLOW, name)
    return made


def namespaces() -> Filter:
    """RestrictNamespaces="""
    made = Filter(ALLOW)
    # Its flags lie in memory, where no filter looks; libraries fall back to clone.
    made.rule(REFUSE | errno.ENOSYS, "clone3")
    for name in NAMESPACES.keys() - set(unitfile.words("RestrictNamespaces")):
        flag = NAMESPACES[name]
        for call, argument in (("unshare", 0), ("clone", 0), ("setns", 1)):
            made.rule(REFUSE | errno.EPERM, call, Condition(argument, MASKED, flag, flag))
    made.rule(REFUSE | errno.EPERM, "setns", Condition(1, EQUAL, 0, 0))
    return made


def address_families() -> Filter:
    """RestrictAddressFamilies="""
    made = Filter(ALLOW)
    allowed = {getattr(socket, name) for name in unitfile.words("RestrictAddressFamilies")}
    for family in set(range(64)) - allowed:
        made.rule(REFUSE | errno.EAFNOSUPPORT, "socket", Condition(0, EQUAL, family, 0))
    return made


def writable_code() -> Filter:
    """MemoryDenyWriteExecute="""
    made = Filter(ALLOW)
    both, code = PROT_EXEC_AND_WRITE, mmap.PROT_EXEC
    made.rule(REFUSE | errno.EPERM, "mmap", Condition(2, MASKED, both, both))
    for call in ("mprotect", "pkey_mprotect"):
        made.rule(REFUSE | errno.EPERM, call, Condition(2, MASKED, code, code))
    return made


def main() -> None:
    """Confine this process and become the command."""
    filters = [namespaces(), address_families(), writable_code(), system_calls()]
    for one in filters:  # the last one forbids to load another
        one.load()
    os.execvp(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
