"""What `runcnet COMMAND` does, one function a command."""

import argparse
import contextlib
import gc
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from reconciler.core.errors import RuncnetError, UsageError
from reconciler.options import settings_of, terminal_of
from reconciler.running import DIFFERS, FAILED, OK, REJECTED, need_privileges, stoppable
from reconciler.settings import USUAL


def one_pass(
    options: argparse.Namespace,
    *,
    dry: bool,
    only: frozenset[str] | None = None,
    first: Callable[[Any], None] = lambda store: None,
) -> int:
    """One pass, or its plan; answers with the exit code. `first`: see `reconcile`."""
    # To look for cycles again and again costs a third of a pass's time.
    gc.disable()
    from reconciler.once import reconcile

    terminal = terminal_of(options)
    try:
        with stoppable() as stop:
            report = reconcile(
                settings_of(options), dry_run=dry, only=only, stop=stop, begin=terminal.progress,
                first=first,
            )  # fmt: skip
    finally:
        terminal.finish()
    show(options, terminal, report)
    differs = bool(report.operations) and getattr(options, "check", False)
    return DIFFERS if differs and not report.rejections else report.exit_code


def show(options: argparse.Namespace, terminal: Any, report: Any) -> None:
    """A pass's report, for people or as JSON."""
    if options.json:
        for rejection in report.rejections:
            terminal.log("error", str(rejection))
        print(json.dumps(report.as_json()))
    else:
        terminal.report(report)


def serve(options: argparse.Namespace) -> int:
    """`runcnet-reconcile` without `--once`: stay, and keep the kernel as declared."""
    gc.enable()
    from reconciler.core.meter import Meter, NoMetrics
    from reconciler.daemon import Daemon, Watchfulness
    from reconciler.host.service import Service

    with contextlib.ExitStack() as stack:
        meter: Meter = NoMetrics()
        if options.metrics:
            from reconciler.metrics import Metrics, serve

            meter = Metrics()
            stack.callback(serve(meter, options.metrics).close)
        return Daemon(
            settings_of(options),
            Watchfulness(resync_s=options.resync, private_mounts=options.private_mounts),
            terminal=terminal_of(options),
            meter=meter,
            service=Service(os.environ),
        ).run()


def look(options: argparse.Namespace) -> Any:
    """What a pass would find and do; nothing is changed."""
    from reconciler.once import opened
    from reconciler.reconcile import Pass

    settings = settings_of(options)
    with opened(settings, change=False) as (store, record):
        return Pass(settings, store=store, record=record, changing=False).prospect()


def scope_of(options: argparse.Namespace, prospect: Any) -> frozenset[str] | None:
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


def run_plan(options: argparse.Namespace) -> int:
    """`runcnet plan`."""
    need_privileges()
    only = scope_of(options, look(options)) if options.names else None
    if options.commands:
        from reconciler.once import opened
        from reconciler.reconcile import Pass

        settings = settings_of(options)
        with opened(settings, change=False) as (store, record):
            one = Pass(settings, store=store, record=record, changing=False, only=only)
            for operation in one.prospect().operations:
                for text in operation.commands():
                    print(text)
        return OK
    return one_pass(options, dry=True, only=only)


def run_apply(options: argparse.Namespace) -> int:
    """`runcnet apply`."""
    need_privileges()
    if options.names:
        return one_pass(options, dry=False, only=scope_of(options, look(options)))
    from reconciler.trial import accept

    return one_pass(options, dry=False, first=accept)


def run_try(options: argparse.Namespace) -> int:
    """`runcnet try`."""
    from reconciler import rehearsal
    from reconciler.host.trials import CONFIRM, TAKE_BACK

    need_privileges()
    settings = settings_of(options)
    if options.confirm or options.take_back:
        said = CONFIRM if options.confirm else TAKE_BACK
        pid = rehearsal.answer(settings, said, wait_s=options.timeout)
        if not options.quiet:
            print(f"the trial of pid {pid} is {'confirmed' if options.confirm else 'taken back'}")
        return OK
    gc.disable()
    terminal = terminal_of(options)

    def tell(report: Any, waiting: bool) -> None:
        show(options, terminal, report)
        sys.stdout.flush()
        if waiting and not sys.stdin.isatty():
            terminal.log(
                "info",
                f"it is taken back in {options.timeout:g} s, unless `runcnet try --confirm` keeps it",
            )

    verdict = rehearsal.rehearse(
        settings, timeout_s=options.timeout, command=options.words, tell=tell
    )
    if options.json:
        print(json.dumps(verdict.as_json()))
        return verdict.exit_code
    if verdict.back is not None:
        terminal.report(verdict.back)
    text = verdict.outcome + (f": {verdict.reason}" if verdict.reason else "")
    if verdict.exit_code == OK and not options.quiet:
        print(text)
    elif verdict.exit_code != OK:
        terminal.log("error", text)
    return verdict.exit_code


def run_validate(options: argparse.Namespace) -> int:
    """`runcnet validate`."""
    from reconciler.validate import validate

    folders = options.config_dir or USUAL.config_dirs
    rejections, count = validate(options.files, folders)
    for rejection in rejections:
        print(rejection, file=sys.stderr)
    if not rejections and not options.quiet:
        print(f"{count} {'file is' if count == 1 else 'files are'} fine")
    return REJECTED if rejections else OK


def run_status(options: argparse.Namespace) -> int:
    """`runcnet status`."""
    from reconciler import status
    from reconciler.overview import overview

    need_privileges()
    settings = settings_of(options)
    if options.watch:
        return _watch_status(options, partial(status.look, settings))
    found = status.look(settings)
    if options.name:
        found = status.named(found, options.name)
    if options.json:
        print(json.dumps(found))
    else:
        print(overview(found, now=time.time(), everything=options.all))
    states = [one["state"] for kind in ("networks", "containers") for one in found[kind]]
    return OK if all(state == "ok" for state in states) else FAILED


def _watch_status(options: argparse.Namespace, look: Callable[[], dict[str, Any]]) -> int:
    """Follow until SIGINT or SIGTERM."""
    from reconciler.overview import board, change_line, summary
    from reconciler.watching import as_json, looks

    terminal = terminal_of(options)
    # A screen that was drawn on is to be given back, whatever ends the program.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt), contextlib.ExitStack() as stack:
        redraws = terminal.redraws and not options.json
        draw = stack.enter_context(terminal.screen()) if redraws else None
        for count, seen in enumerate(looks(look, name=options.name, interval_s=options.interval)):
            if draw is not None:
                draw(partial(board, seen))
                continue
            if count == 0:
                terminal.log("info", f"{summary(seen)}; a line for each change follows")
            for change in seen.changes:
                found = as_json(change, seen.time)
                print(json.dumps(found) if options.json else change_line(change, seen.time))
            sys.stdout.flush()
    return OK


def run_wait(options: argparse.Namespace) -> int:
    """`runcnet wait`."""
    from reconciler import status

    need_privileges()
    settings = settings_of(options)
    deadline = time.monotonic() + options.timeout
    while True:
        found = status.look(settings)
        states = {one["name"]: one["state"] for one in found["networks"] + found["containers"]}
        late = [name for name in options.names if states.get(name) != "ok"]
        if not late:
            return OK
        if time.monotonic() >= deadline:
            text = ", ".join(f"{name} is {states.get(name, 'not declared')}" for name in late)
            raise RuncnetError(f"{text} after {options.timeout:g} s")
        time.sleep(0.1)


def run_doctor(options: argparse.Namespace) -> int:
    """`runcnet doctor`."""
    import msgspec

    from reconciler.doctor import examine

    need_privileges()
    found = examine(settings_of(options))
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


def run_show(options: argparse.Namespace) -> int:
    """`runcnet show`."""
    from reconciler.core.show import render

    need_privileges()
    prospect = look(options)
    known = {*prospect.spec.networks, *prospect.spec.containers}
    if options.name and options.name not in known:
        raise RuncnetError(f"{options.name}: nothing of that name is declared")
    names = {options.name} if options.name else None
    print(render(prospect.spec, prospect.assignment.addresses, names), end="")
    return OK


def run_exec(options: argparse.Namespace) -> int:
    """`runcnet exec`."""
    from reconciler.entering import run

    need_privileges()
    words = options.words[1:] if options.words[:1] == ["--"] else options.words
    found = look(options)
    container = found.spec.containers.get(options.name)
    seen = found.observed.containers.get(
        container.join if container and container.join else options.name
    )
    if seen is None or not seen.source:
        raise RuncnetError(f"container {options.name} has no namespace (see `runcnet status`)")
    folders = [f"/etc/netns/{seen.netns or seen.name}", f"{options.run_dir}/dns/{seen.name}"]
    command = words or [os.environ.get("SHELL", "/bin/sh")]
    return run(seen.source, folders=folders, command=command)


def run_teardown(options: argparse.Namespace) -> int:
    """`runcnet teardown`."""
    from reconciler.core.report import line
    from reconciler.teardown import in_use, teardown

    need_privileges()
    settings = settings_of(options)
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
