"""What every command does around its work: privileges, signals, errors, exit codes."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator

from reconciler.core.errors import LockedError, RuncnetError, UsageError
from reconciler.host import userns

OK, FAILED, REJECTED, DIFFERS, LOCKED, USAGE = 0, 1, 2, 3, 4, 64
CAPABILITIES = {12: "CAP_NET_ADMIN", 21: "CAP_SYS_ADMIN"}


def need_privileges() -> None:
    """Raises RuncnetError where this process may not change networks."""
    with open("/proc/self/status", encoding="utf-8") as file:
        line = next(text for text in file if text.startswith("CapEff:"))
    held = int(line.split()[1], 16)
    missing = [name for bit, name in CAPABILITIES.items() if not held >> bit & 1]
    if missing:
        raise RuncnetError(
            f"this needs {' and '.join(missing)}: run it as root, or in a user namespace of your own "
            "(unshare -Urnm)"
        )
    for kind, name in (("net", "network"), ("mnt", "mount")):
        if userns.belongs_outside(kind):
            raise RuncnetError(
                f"this {name} namespace belongs to a user namespace around this one, where nothing may "
                "be changed from in here: make both together (unshare -Urnm)"
            )


@contextlib.contextmanager
def stoppable() -> Iterator[Callable[[], bool]]:
    """SIGINT and SIGTERM set a flag: the batch in flight ends. A second one ends the program."""
    import signal

    stopped = False

    def note(number: int, _: object) -> None:
        nonlocal stopped
        stopped = True
        signal.signal(number, signal.SIG_DFL)

    before = {n: signal.signal(n, note) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def guarded(run: Callable[[], int]) -> int:
    """Run a command; an error that an operator can mend becomes a line and an exit code."""
    try:
        code = run()
        sys.stdout.flush()
        return code
    except LockedError as error:
        print(error, file=sys.stderr)
        return LOCKED
    except UsageError as error:
        print(error, file=sys.stderr)
        return USAGE
    except (RuncnetError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            # Who reads has gone; Python would complain once more while it shuts down.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            return FAILED
        print(error, file=sys.stderr)
        return FAILED
