"""The options that every command has."""

import argparse
import os
import sys
from typing import Any, NoReturn

from reconciler.running import USAGE
from reconciler.settings import FIREWALLS, USUAL, Settings


class Help(argparse.HelpFormatter):
    """As wide as the terminal. Left to itself it loads compression libraries to learn that, with the
    first option that is added: 3 ms of each command."""

    def __init__(self, prog: str) -> None:
        try:
            width = int(os.environ.get("COLUMNS") or 0) or os.get_terminal_size().columns
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
    add("--state-dir", type=_folder, default=USUAL.state_dir, metavar="DIR", help="leases")
    add("--run-dir", type=_folder, default=USUAL.run_dir, metavar="DIR", help="lock, dns files")
    add("--netns-dir", type=_folder, default=USUAL.netns_dir, metavar="DIR")
    add("--firewall", choices=FIREWALLS, default=USUAL.firewall)
    add("--max-removals", type=_limit, default=USUAL.max_removals, metavar="N|N%|all",
        help="how much one run may remove (50%%, and three always)")  # fmt: skip
    add("--no-interrupt", action="store_true", help="hold back what interrupts running containers")
    add("--lock-timeout", type=float, default=USUAL.lock_timeout_s, metavar="SECONDS")
    add("--json", action="store_true", help="one JSON object on stdout")
    add("--log-format", choices=("text", "json"), default="text")
    add("-v", "--verbose", action="count", default=0)
    add("-q", "--quiet", action="store_true")
    return common


def settings_of(options: argparse.Namespace) -> Settings:
    """The options as the engine wants them."""
    return Settings(
        config_dirs=tuple(options.config_dir or USUAL.config_dirs),
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
