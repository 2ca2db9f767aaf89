"""The front door: `runcnet-reconcile` and `runcnet`. Only here and in `terminal` is anything printed."""

import argparse
import contextlib
import gc
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from reconciler import __version__
from reconciler.core.errors import LockedError, RuncnetError, UsageError

OK, FAILED, REJECTED, DIFFERS, LOCKED, USAGE = 0, 1, 2, 3, 4, 64
CONFIG_DIRS = ("/etc/runcnet.d", "/run/runcnet.d")
CAPABILITIES = {12: "CAP_NET_ADMIN", 21: "CAP_SYS_ADMIN"}


class _Parser(argparse.ArgumentParser):
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


def _common() -> _Parser:
    common = _Parser(add_help=False)
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


def _settings(options: argparse.Namespace) -> Any:
    from reconciler.prospect import Settings

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


def _terminal(options: argparse.Namespace) -> Any:
    from reconciler.terminal import Terminal

    return Terminal(log_format=options.log_format, verbosity=options.verbose, quiet=options.quiet)


def _need_privileges() -> None:
    with open("/proc/self/status", encoding="ascii") as file:
        line = next(text for text in file if text.startswith("CapEff:"))
    held = int(line.split()[1], 16)
    missing = [name for bit, name in CAPABILITIES.items() if not held >> bit & 1]
    if missing:
        raise RuncnetError(f"this needs {' and '.join(missing)}: run it as root")


@contextlib.contextmanager
def _stoppable() -> Iterator[Callable[[], bool]]:
    """SIGINT and SIGTERM set a flag: the batch in flight ends. A second one ends the program."""
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


def _guarded(run: Callable[[], int]) -> int:
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


def _pass(options: argparse.Namespace, *, dry: bool, only: frozenset[str] | None = None) -> int:
    from reconciler.reconcile import reconcile

    # A pass makes many objects, hardly one in a cycle, and ends: to look for cycles again and again
    # costs a third of its time.
    gc.disable()

    terminal = _terminal(options)
    try:
        with _stoppable() as stop:
            report = reconcile(
                _settings(options), dry_run=dry, only=only, stop=stop, begin=terminal.progress
            )
    finally:
        terminal.finish()
    if options.json:
        for rejection in report.rejections:
            terminal.log("error", str(rejection))
        print(json.dumps(report.as_json()))
    else:
        terminal.report(report)
    differs = bool(report.operations) and getattr(options, "check", False)
    return DIFFERS if differs and not report.rejections else report.exit_code


def reconcile_main(argv: Sequence[str] | None = None) -> int:
    """`runcnet-reconcile`."""
    parser = _Parser(
        prog="runcnet-reconcile",
        parents=[_common()],
        description="Make the kernel match the definition files.",
    )
    parser.add_argument("--once", action="store_true", help="one pass, then exit")
    parser.add_argument("--dry-run", action="store_true", help="print the plan, change nothing")
    parser.add_argument("--check", action="store_true", help="as --dry-run; exit 3 if it differs")
    parser.add_argument("--version", action="version", version=f"runcnet {__version__}")
    options = parser.parse_args(argv)

    def run() -> int:
        if not (options.once or options.dry_run or options.check):
            raise UsageError("the daemon is not built yet: give --once, --dry-run or --check")
        _need_privileges()
        return _pass(options, dry=options.dry_run or options.check)

    return _guarded(run)


def reconcile_entry() -> NoReturn:
    """`runcnet-reconcile` as a program: what it holds is freed at once by the kernel, where Python
    would take thousands of containers apart piece by piece."""
    code = reconcile_main()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """`runcnet`."""
    parser = _Parser(prog="runcnet", description="Container networks for plain runc.")
    parser.add_argument("--version", action="version", version=f"runcnet {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    common = _common()

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str) -> Any:
        one = commands.add_parser(name, parents=[common], help=text, description=text)
        one.set_defaults(run=run)
        return one

    plan = command("plan", _plan, "print what a pass would change")
    plan.add_argument("names", nargs="*", metavar="NAME")
    plan.add_argument("--commands", action="store_true", help="as ip and iptables commands")
    apply = command("apply", _apply, "one pass, of these names alone where given")
    apply.add_argument("names", nargs="*", metavar="NAME")
    validate = command("validate", _validate, "check definition files; any user may")
    validate.add_argument("files", nargs="*", metavar="FILE")
    status = command("status", _status, "what is, what differs, where it was declared")
    status.add_argument("name", nargs="?")
    wait = command("wait", _wait, "wait until containers or networks are ok")
    wait.add_argument("names", nargs="+", metavar="NAME")
    wait.add_argument("--timeout", type=float, default=60.0, metavar="S")
    command("doctor", _doctor, "limits of the host that what is declared would meet")
    show = command("show", _show, "the declaration with every default and address filled in")
    show.add_argument("name", nargs="?")
    execute = command("exec", _exec, "run a command in a container's network namespace")
    execute.add_argument("name")
    execute.add_argument("words", nargs=argparse.REMAINDER, metavar="-- CMD...")
    teardown = command("teardown", _teardown, "remove all that is owned")
    teardown.add_argument("--yes", action="store_true", help="do not ask")
    for name in ("add", "rm", "hook"):
        later = command(name, _later, "reserved, not built yet")
        later.add_argument("words", nargs=argparse.REMAINDER)
    options = parser.parse_args(argv)
    return _guarded(lambda: int(options.run(options)))


def _later(options: argparse.Namespace) -> int:
    raise UsageError(f"runcnet {options.command}: reserved, not built yet")


def _prospect(options: argparse.Namespace) -> Any:
    from reconciler.reconcile import Pass, opened

    settings = _settings(options)
    with opened(settings, change=False) as (store, record):
        return Pass(settings, store=store, record=record, changing=False).prospect()


def _scope(options: argparse.Namespace, prospect: Any) -> frozenset[str] | None:
    """The objects that the named containers and networks consist of."""
    if not options.names:
        return None
    from reconciler.core.schema import unknown

    spec, only = prospect.spec, set()
    known = {*spec.networks, *spec.containers, *prospect.observed.containers}
    for name in options.names:
        if name not in known:
            raise UsageError(unknown("name", name, known))
        if name in spec.networks:
            only.add(f"network/{name}")
        if name in spec.containers or name in prospect.observed.containers:
            only.add(f"container/{name}")
        if name in spec.containers:
            only |= {f"network/{i.network}" for i in spec.containers[name].interfaces}
    return frozenset(only)


def _plan(options: argparse.Namespace) -> int:
    _need_privileges()
    only = _scope(options, _prospect(options)) if options.names else None
    if options.commands:
        from reconciler.reconcile import Pass, opened

        settings = _settings(options)
        with opened(settings, change=False) as (store, record):
            one = Pass(settings, store=store, record=record, changing=False, only=only)
            for operation in one.prospect().operations:
                for text in operation.commands():
                    print(text)
        return OK
    return _pass(options, dry=True, only=only)


def _apply(options: argparse.Namespace) -> int:
    _need_privileges()
    only = _scope(options, _prospect(options)) if options.names else None
    return _pass(options, dry=False, only=only)


def _validate(options: argparse.Namespace) -> int:
    from reconciler.validate import validate

    folders = options.config_dir or CONFIG_DIRS
    rejections, count = validate(options.files, folders)
    for rejection in rejections:
        print(rejection, file=sys.stderr)
    if not rejections and not options.quiet:
        print(f"{count} {'file is' if count == 1 else 'files are'} fine")
    return REJECTED if rejections else OK


def _status(options: argparse.Namespace) -> int:
    from reconciler.status import status, table

    _need_privileges()
    found = status(_prospect(options))
    if options.name:
        for kind in ("networks", "containers"):
            found[kind] = [one for one in found[kind] if one["name"] == options.name]
        if not found["networks"] and not found["containers"]:
            raise RuncnetError(f"{options.name}: nothing of that name is declared or stands")
        found["firewall"], found["host"] = [], []
    print(json.dumps(found) if options.json else table(found))
    states = [one["state"] for kind in ("networks", "containers") for one in found[kind]]
    return OK if all(state == "ok" for state in states) else FAILED


def _wait(options: argparse.Namespace) -> int:
    from reconciler.status import status

    _need_privileges()
    deadline = time.monotonic() + options.timeout
    while True:
        found = status(_prospect(options))
        states = {one["name"]: one["state"] for one in found["networks"] + found["containers"]}
        late = [name for name in options.names if states.get(name) != "ok"]
        if not late:
            return OK
        if time.monotonic() >= deadline:
            text = ", ".join(f"{name} is {states.get(name, 'not declared')}" for name in late)
            raise RuncnetError(f"{text} after {options.timeout:g} s")
        time.sleep(0.1)


def _doctor(options: argparse.Namespace) -> int:
    import msgspec

    from reconciler.doctor import examine

    _need_privileges()
    found = examine(_settings(options))
    serious = any(one.serious for one in found)
    if options.json:
        print(json.dumps({"version": 1, "findings": msgspec.to_builtins(found)}))
        return FAILED if serious else OK
    for one in found:
        remedy = f" ({one.command})" if one.command else ""
        print(f"{'limit' if one.serious else 'note '}  {one.topic}: {one.text}{remedy}")
    if not found:
        print("nothing stands in the way of what is declared")
    return FAILED if serious else OK


def _show(options: argparse.Namespace) -> int:
    from reconciler.core.show import render

    _need_privileges()
    prospect = _prospect(options)
    known = {*prospect.spec.networks, *prospect.spec.containers}
    if options.name and options.name not in known:
        raise RuncnetError(f"{options.name}: nothing of that name is declared")
    names = {options.name} if options.name else None
    print(render(prospect.spec, prospect.assignment.addresses, names), end="")
    return OK


def _exec(options: argparse.Namespace) -> int:
    from reconciler.entering import run

    _need_privileges()
    words = options.words[1:] if options.words[:1] == ["--"] else options.words
    found = _prospect(options)
    container = found.spec.containers.get(options.name)
    seen = found.observed.containers.get(
        container.join if container and container.join else options.name
    )
    if seen is None or not seen.source:
        raise RuncnetError(f"container {options.name} has no namespace (see `runcnet status`)")
    folders = [f"/etc/netns/{seen.netns}", f"{options.run_dir}/dns/{seen.name}"]
    command = words or [os.environ.get("SHELL", "/bin/sh")]
    return run(seen.source, folders=folders, command=command)


def _teardown(options: argparse.Namespace) -> int:
    from reconciler.core.report import line
    from reconciler.teardown import in_use, teardown

    _need_privileges()
    settings = _settings(options)
    names, busy = in_use(settings)
    if not options.yes:
        print(f"{len(names)} networks and containers will be removed.")
        for name, pids in busy.items():
            print(f"  container {name} is in use by pid {', '.join(str(p) for p in pids[:3])}")
        if not sys.stdin.isatty() or input("Remove them? [y/N] ").strip().lower() != "y":
            raise RuncnetError("nothing was removed (--yes answers the question)")
    done = teardown(settings)
    for one in done:
        if not one.ok:
            print(f"{line(one.operation)}: {one.error}", file=sys.stderr)
        elif not options.quiet:
            print(line(one.operation))
    return OK if all(one.ok for one in done) else FAILED


if __name__ == "__main__":
    raise SystemExit(main())
