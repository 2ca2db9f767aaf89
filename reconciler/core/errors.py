"""Every exception of runcnet. Each says object, action, cause and remedy."""

import errno as _errno


class RuncnetError(Exception):
    """Something that an operator can mend; its text is one line for people."""


class ObjectError(RuncnetError):
    """`OBJECT: ACTION: CAUSE (REMEDY)`, with the kernel's errno where there is one (0: none)."""

    def __init__(
        self, object_: str, action: str, cause: str, remedy: str = "", *, errno: int = 0
    ) -> None:
        self.object = object_
        self.action = action
        self.cause = cause
        self.remedy = remedy
        self.errno = errno
        lead = f"{object_}: {action}: " if action else f"{object_}: "
        name = f"{_errno.errorcode.get(errno, errno)}: " if errno else ""
        super().__init__(lead + name + cause + (f" ({remedy})" if remedy else ""))


class UsageError(RuncnetError):
    """The command line is wrong (exit code 64)."""


class LockedError(RuncnetError):
    """Another run held the lock to the end of the timeout (exit code 4)."""


class StoreError(RuncnetError):
    """The state dir cannot be read or written."""


class FirewallError(RuncnetError):
    """The firewall cannot be read or changed."""
