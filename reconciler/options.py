"""What every command has in common: options, privileges, signals, exit codes."""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from reconciler.core.errors import LockedError, RuncnetError, UsageError
from reconciler.host import userns

OK, FAILED, REJECTED, DIFFERS, LOCKED, USAGE = 0, 1, 2, 3, 4, 64
CONFIG_DIRS = ("/etc/runcnet.d", "/run/runcnet.d")
DAY_S = 86_400
CAPABILITIES = {12: "CAP_NET_ADMIN", 21: "CAP_SYS_ADMIN"}


class Help(argparse.HelpFormatter):
    """As wide as the terminal. Left to itself it loads compression libraries to learn that, with the
    first option that is added: 3 ms of each command."""

    def __init__(self, prog: str) -> None:
        try:
            width = int(os.environ.get("COLUMNS", "")) or os.get_terminal_size().columns
        except (ValueError, OSError):
            width = 80
        super().__init__(prog, width=max(width - 2, 20))


class Parser(argparse.ArgumentParser):
    """Exits with 64 where the command line is wrong."""

    def __init__(self, **words: Any) -> None:
        super().__init__(**{"formatter_class": Help, **words})

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        print(f"{self.prog}: {message}", file=sys.stderr)
        raise SystemExit(USAGE)


def _limit(text: str) -> str:
    from reconciler.core.limits import removal_limit

    try:
        removal_limit(text, 0)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not N, N% or all") from None
    return text


def _folder(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("a folder is missing")
    return os.path.abspath(text)


def period(text: str) -> float:
    """Seconds between two looks, from the command line."""
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found <= 86_400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds up to a day")
    return found


def common() -> Parser:
    """The options that every command takes."""
    common = Parser(add_help=False)
    add = common.add_argument
    add("--config-dir", action="append", type=_folder, metavar="DIR",
        help="definition files; may be given several times (/etc/runcnet.d, /run/runcnet.d)")  # fmt: skip
    add("--state-dir", type=_folder, default="/var/lib/runcnet", metavar="DIR", help="leases")
    add("--run-dir", type=_folder, default="/run/runcnet", metavar="DIR", help="lock, dns files")
    add("--netns-dir", type=_folder, default="/run/netns", metavar="DIR")
    add("--firewall", choices=("auto", "iptables", "nftables", "none"), default="auto")
    add("--max-removals", type=_limit, default="50%", metavar="N|N%|all",
        help="how much one run may remove (50%%, and three always)")  # fmt: skip
    add("--no-interrupt", action="store_true", help="hold back what interrupts running containers")
    add("--lock-timeout", type=float, default=30.0, metavar="SECONDS")
    add("--json", action="store_true", help="one JSON object on stdout")
    add("--log-format", choices=("text", "json"), default="text")
    add("-v", "--verbose", action="count", default=0)
    add("-q", "--quiet", action="store_true")
    return common


def settings_of(options: argparse.Namespace) -> Any:
    """The options as the engine wants them."""
    from reconciler.settings import Settings

    return Settings(
        config_dirs=tuple(options.config_dir or CONFIG_DIRS),
        state_dir=options.state_dir,
        run_dir=options.run_dir,
        netns_dir=options.netns_dir,
        firewall=options.firewall,
        max_removals=options.max_removals,
        no_interrupt=options.no_interrupt,
        lock_timeout_s=options.lock_timeout,
    )


def terminal_of(options: argparse.Namespace) -> Any:
    """Where and how to print."""
    from reconciler.terminal import Terminal

    return Terminal(log_format=options.log_format, verbosity=options.verbose, quiet=options.quiet)


def need_privileges() -> None:
    """Raises RuncnetError where this process may not change networks."""
    with open("/proc/self/status", encoding="ascii") as file:
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
