"""`runcnet hook STAGE`: what a runtime calls when it starts or ends a container."""

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from reconciler.core.errors import RuncnetError, UsageError
from reconciler.core.request import ATTACHING, STATE_BYTES, Request, request
from reconciler.running import OK, guarded, need_privileges
from reconciler.settings import FIREWALLS, Settings

if TYPE_CHECKING:
    import argparse

STAGES = ("createRuntime", "prestart", "poststop")
IP_FILE = ".ip"
PIECE = 1 << 16
FOLDERS = ("--state-dir", "--run-dir", "--netns-dir")


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """The command line of a hook."""

    stage: str
    settings: Settings = Settings()
    networks: Sequence[str] = ()
    ports: Sequence[str] = ()
    annotated: bool = True
    """Whether the annotations of the bundle count."""
    ip_file: str = ""
    """The file of the bundle that is to hold the address; empty: none."""


def options_for(parser: "argparse.ArgumentParser") -> None:
    """The hook's own options."""
    add = parser.add_argument
    add("stage", choices=STAGES, metavar="createRuntime|prestart|poststop")
    add("--network", action="append", default=[], metavar="NET[:ip=A,mac=M,interface_name=I]")
    add("--port", action="append", default=[], metavar="P", help="as in a definition file")
    add("--no-annotations", action="store_true", help="runcnet.networks and .ports do not count")
    add("--ip-file", nargs="?", const=IP_FILE, default="", metavar="NAME",
        help=f"write the address to that file of the bundle ({IP_FILE})")  # fmt: skip


def called(options: "argparse.Namespace") -> Call:
    """What was given on the command line."""
    from reconciler.options import settings_of

    return Call(
        stage=options.stage,
        settings=settings_of(options),
        networks=options.network,
        ports=options.port,
        annotated=not options.no_annotations,
        ip_file=options.ip_file,
    )


def plain(words: Sequence[str]) -> Call | None:
    """What argparse would make of a command line as `runcnet bundle` writes them; None: it is another
    one, which argparse is to read. A container's start waits 5 ms for that, most of it imports."""
    given: dict[str, list[str]] = {}
    annotated = True
    if not words or words[0] not in STAGES:
        return None
    rest = list(words[:0:-1])
    while rest:
        name, joined, value = rest.pop().partition("=")
        if name == "--no-annotations" and not joined:
            annotated = False
            continue
        if name not in ("--network", "--port", "--config-dir", "--firewall", "--ip-file", *FOLDERS):
            return None
        if not joined and name == "--ip-file" and (not rest or rest[-1].startswith("--")):
            value = IP_FILE
        elif not joined:
            value = rest.pop() if rest else ""
        if not value or value.startswith("-"):
            return None
        given.setdefault(name, []).append(value)
    if not set(given.get("--firewall", ())) <= set(FIREWALLS):
        return None
    found = {
        name[2:].replace("-", "_"): os.path.abspath(given[name][-1])
        for name in FOLDERS
        if name in given
    }
    if "--firewall" in given:
        found["firewall"] = given["--firewall"][-1]
    settings = Settings(**found)  # type: ignore[arg-type]
    if "--config-dir" in given:
        folders = tuple(map(os.path.abspath, given["--config-dir"]))
        settings = msgspec.structs.replace(settings, config_dirs=folders)
    return Call(
        stage=words[0],
        settings=settings,
        networks=given.get("--network", []),
        ports=given.get("--port", []),
        annotated=annotated,
        ip_file=given.get("--ip-file", [""])[-1],
    )


def asked(call: Call, state: bytes) -> Request:
    """What a command line and the state ask for. Raises RuncnetError."""
    if "/" in call.ip_file or call.ip_file in (".", ".."):
        raise UsageError("--ip-file is the name of a file in the bundle, not a path")
    found = request(
        call.stage,
        state,
        networks=call.networks,
        ports=call.ports,
        annotated=call.annotated,
        ip_file=call.ip_file,
    )
    if found.ip_file and not os.path.isabs(found.bundle):
        raise RuncnetError(f"{found.name}: the state names no bundle for --ip-file")
    return found


def run(call: Call) -> int:
    """Attach or detach the container whose state is on stdin."""
    need_privileges()
    wanted = asked(call, _state())
    from reconciler import joining

    if wanted.stage in ATTACHING:
        joining.attach(call.settings, wanted)
    else:
        joining.detach(call.settings, wanted)
    return OK


def _state() -> bytes:
    """What stdin says; of what is too much, a byte too much."""
    found, left = b"", STATE_BYTES + 1
    while left and (piece := sys.stdin.buffer.read(min(PIECE, left))):
        found += piece
        left -= len(piece)
    return found


def main(words: Sequence[str]) -> int:
    """`runcnet hook WORDS`, up to its exit code."""
    call = plain(words)
    if call is None:
        from reconciler.options import Parser, common

        parser = Parser(prog="runcnet hook", parents=[common()])
        options_for(parser)
        call = called(parser.parse_args(words))
    return guarded(lambda: run(call))
