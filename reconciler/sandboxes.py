"""`runcnet add` and `rm`: containers that come and go by the hundred an hour, a file each."""

import argparse
import gc
import json
import os
import sys
import time
from typing import Any

from reconciler.core.errors import UsageError
from reconciler.options import settings_of, terminal_of
from reconciler.running import FAILED, OK, REJECTED, need_privileges

FORM = "NET[:ip=A,mac=M,interface_name=I]"


def run_add(options: argparse.Namespace) -> int:
    """`runcnet add`."""
    gc.disable()  # what is made here hardly ever makes a cycle, and ends with the process
    from reconciler.scoped import RefusedError, Request, apply_names

    need_privileges()
    body = _body(options)
    settings = settings_of(options)
    try:
        applied = apply_names(
            settings, Request(names=frozenset([options.name]), edits={options.name: body})
        )
    except RefusedError as error:
        print(error, file=sys.stderr)
        return REJECTED
    _explain(options, applied)
    return tell(options, settings, applied)


def _explain(options: argparse.Namespace, applied: Any) -> None:
    if options.verbose and applied.widened:
        terminal_of(options).log("debug", f"everything was looked at: {applied.widened}")


def tell(options: argparse.Namespace, settings: Any, applied: Any) -> int:
    """Print a container as `status NAME` does."""
    from reconciler import status
    from reconciler.host.lock import serving

    history = status.History(applied.troubles, applied.mishaps, serving(settings.run_dir))
    found = status.named(status.status(applied.prospect, history), options.name)
    if options.json:
        print(json.dumps(found))
    elif not options.quiet:
        from reconciler.overview import overview

        print(overview(found, now=time.time(), everything=True))
    return OK if all(one["state"] == "ok" for one in found["containers"]) else FAILED


def _body(options: argparse.Namespace) -> Any:
    """What the flags say, as a file would. Raises UsageError."""
    from reconciler.core import fields
    from reconciler.core.flags import interface_of
    from reconciler.core.schema import RawContainer

    if not options.network and options.mode in (None, "network"):
        raise UsageError("no network is named (--network NET gives an interface, or --mode none)")
    try:
        fields.name(options.name, 128, "container")
        for port in options.port:
            fields.port_forward(port)
        found = RawContainer(
            mode=options.mode,
            interfaces=[interface_of(text) for text in options.network],
            ports=list(options.port),
        )
        if options.bundle is not None:
            found.bundle = fields.folder(os.path.abspath(options.bundle))
            found.bundle.encode()
    except ValueError as error:
        raise UsageError(str(error)) from None
    return found


def run_rm(options: argparse.Namespace) -> int:
    """`runcnet rm`."""
    gc.disable()
    from reconciler.commands import show
    from reconciler.core import fields
    from reconciler.scoped import Request, apply_names

    need_privileges()
    try:
        for name in options.names:
            fields.name(name, 128, "container")
    except ValueError as error:
        raise UsageError(str(error)) from None
    settings = settings_of(options)
    names = frozenset(options.names)
    applied = apply_names(
        settings,
        Request(
            names=names,
            edits=dict.fromkeys(names),
            going=names,
            forced=names if options.force else frozenset(),
        ),
    )
    _explain(options, applied)
    show(options, terminal_of(options), applied.report)
    return OK if not (applied.report.failed or applied.report.held) else FAILED
