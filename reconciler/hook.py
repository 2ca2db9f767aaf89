"""`runcnet hook STAGE`: what a runtime calls when it starts or ends a container."""

import argparse
import os
import sys
from collections.abc import Sequence

from reconciler.core.errors import RuncnetError, UsageError
from reconciler.core.request import ATTACHING, STATE_BYTES, Request, request
from reconciler.options import OK, Parser, common, guarded, need_privileges, settings_of

STAGES = ("createRuntime", "prestart", "poststop")
IP_FILE = ".ip"


def options_for(parser: argparse.ArgumentParser) -> None:
    """The hook's own options."""
    add = parser.add_argument
    add("stage", choices=STAGES, metavar="createRuntime|prestart|poststop")
    add("--network", action="append", default=[], metavar="NET[:ip=A,mac=M,interface_name=I]")
    add("--port", action="append", default=[], metavar="P", help="as in a definition file")
    add("--no-annotations", action="store_true", help="runcnet.networks and .ports do not count")
    add("--ip-file", nargs="?", const=IP_FILE, default="", metavar="NAME",
        help=f"write the address to that file of the bundle ({IP_FILE})")  # fmt: skip


def asked(options: argparse.Namespace, state: bytes) -> Request:
    """What the command line and the state ask for. Raises RuncnetError."""
    if "/" in options.ip_file or options.ip_file in (".", ".."):
        raise UsageError("--ip-file is the name of a file in the bundle, not a path")
    found = request(
        options.stage,
        state,
        networks=options.network,
        ports=options.port,
        annotated=not options.no_annotations,
        ip_file=options.ip_file,
    )
    if found.ip_file and not os.path.isabs(found.bundle):
        raise RuncnetError(f"{found.name}: the state names no bundle for --ip-file")
    return found


def run(options: argparse.Namespace) -> int:
    """Attach or detach the container whose state is on stdin."""
    need_privileges()
    call = asked(options, sys.stdin.buffer.read(STATE_BYTES + 1))
    from reconciler import joining

    if call.stage in ATTACHING:
        joining.attach(settings_of(options), call)
    else:
        joining.detach(settings_of(options), call)
    return OK


def main(words: Sequence[str]) -> int:
    """`runcnet hook WORDS`, up to its exit code."""
    parser = Parser(prog="runcnet hook", parents=[common()])
    options_for(parser)
    options = parser.parse_args(words)
    return guarded(lambda: run(options))
