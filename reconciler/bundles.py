"""`runcnet bundle DIR`: wires a bundle's config.json by hand, or says what is wrong with it."""

import argparse
import json
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from reconciler.core.errors import RuncnetError, UsageError
from reconciler.options import common
from reconciler.running import FAILED, OK
from reconciler.settings import USUAL

if TYPE_CHECKING:
    from reconciler.core.bundlefaults import Around, Config, Fault
    from reconciler.core.wiring import Hook

PROGRAM, CLIENT = "runcnet", "runcnet-hook"
FOLDERS = ("config_dir", "state_dir", "run_dir", "netns_dir", "firewall", "lock_timeout")
"""Options that a hook has to be given where they are not the usual ones."""
TRIES = 5


def options_for(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    from reconciler.hook import IP_FILE

    add = parser.add_argument
    add("bundle", metavar="DIR")
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument(
        "--hook", action="store_true", help="by hooks: the runtime makes the namespace"
    )
    ways.add_argument("--netns", action="store_true", help="to the namespace NETNS_DIR/NAME")
    ways.add_argument("--unwire", action="store_true", help="take out what either put there")
    ways.add_argument(
        "--check", action="store_true", help="say what is wrong; exit 1 if anything is"
    )
    add("--name", help="with --netns: the file in the netns dir (the name of DIR)")
    add("--network", action="append", default=[], metavar="NET[:ip=A,mac=M,interface_name=I]")
    add("--port", action="append", default=[], metavar="P", help="as in a definition file")
    add("--no-annotations", action="store_true", help="the hook takes these flags alone")
    add("--ip-file", nargs="?", const=IP_FILE, default="", metavar="NAME",
        help=f"the hook writes the address to that file of the bundle ({IP_FILE})")  # fmt: skip
    add("--program", metavar="PATH", help="with --hook: the runcnet that it calls (this one)")


def run(options: argparse.Namespace) -> int:
    """`runcnet bundle`."""
    folder = os.path.abspath(options.bundle)
    flags = options.network or options.port or options.no_annotations or options.ip_file
    if (options.check or options.unwire or options.netns) and (flags or options.program):
        raise UsageError("--network, --port and the like belong to --hook")
    if options.name is not None and not options.netns:
        raise UsageError("--name belongs to --netns")
    if options.check:
        return _check(options, folder)
    from reconciler.core import wiring

    if options.unwire:
        return _edit(options, folder, "unwired", lambda c: wiring.unwired(c, options.netns_dir))
    if options.netns or not (options.hook or flags):
        path = f"{options.netns_dir}/{_netns_name(options, folder)}"
        return _edit(options, folder, f"wired to {path}", lambda c: wiring.with_path(c, path))
    hooks = _hooks(options)
    return _edit(options, folder, "wired by hooks", lambda c: _with_hooks(c, options, hooks))


def _netns_name(options: argparse.Namespace, folder: str) -> str:
    from reconciler.core import fields

    name = options.name if options.name is not None else os.path.basename(folder)
    try:
        fields.file_name(name)
    except ValueError as error:
        raise UsageError(f"{name}: {error} (give another with --name)") from None
    return str(name)


def _with_hooks(content: bytes, options: argparse.Namespace, hooks: "dict[str, Hook]") -> bytes:
    from reconciler.core import bundlefaults, wiring
    from reconciler.core.request import NETWORKS

    if not options.network:
        annotated = bundlefaults.read(content).annotations.get(NETWORKS)
        if options.no_annotations or not annotated:
            raise UsageError(
                f"no network is named (give --network NAME, or the file the annotation {NETWORKS})"
            )
    return wiring.with_hooks(content, hooks)


def _hooks(options: argparse.Namespace) -> "dict[str, Hook]":
    """The hooks with which a bundle is wired."""
    from reconciler.core import fields
    from reconciler.core.flags import interface_of
    from reconciler.core.wiring import Hook

    try:
        for text in options.network:
            interface_of(text)
        for text in options.port:
            fields.port_forward(text)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if "/" in options.ip_file or options.ip_file in (".", ".."):
        raise UsageError("--ip-file is the name of a file in the bundle, not a path")
    program = _program(options.program)
    path = program if options.program else _client(program)
    folders = _folders(options)
    words = [word for text in options.network for word in ("--network", text)]
    words += [word for text in options.port for word in ("--port", text)]
    words += ["--no-annotations"] if options.no_annotations else []
    words += ["--ip-file", options.ip_file] if options.ip_file else []
    return {
        "createRuntime": Hook(path, (program, "hook", "createRuntime", *folders, *words)),
        "poststop": Hook(path, (program, "hook", "poststop", *folders)),
    }


def _folders(options: argparse.Namespace) -> list[str]:
    usual = common().parse_args([])
    words = []
    for name in FOLDERS:
        given = getattr(options, name)
        if given == getattr(usual, name):
            continue
        for value in given if isinstance(given, list) else [given]:
            words += [f"--{name.replace('_', '-')}", str(value)]
    return words


def _program(asked: str | None) -> str:
    """The absolute path of the program that hooks call."""
    if asked is not None:
        path = os.path.abspath(asked)
        why = _cannot_run(path)
        if why:
            raise UsageError(f"{path}: {why} (--program)")
        return path
    import shutil  # a hook, which comes in by the same door, has no time for it

    beside = os.path.join(os.path.dirname(sys.executable), PROGRAM)
    for path in (os.path.abspath(sys.argv[0]), beside, shutil.which(PROGRAM) or ""):
        if os.path.basename(path) == PROGRAM and not _cannot_run(path):
            return path
    raise RuncnetError(f"the program {PROGRAM} is not found (say where it is: --program PATH)")


def _client(program: str) -> str:
    """What hooks call: runcnet-hook, which asks the daemon and else runs `program`, where it is built."""
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), CLIENT)
    return program if _cannot_run(path) else path


def _cannot_run(path: str) -> str:
    if not os.path.exists(path):
        return "nothing is there"
    if not os.path.isfile(path):
        return "what is there is no file"
    return "" if os.access(path, os.X_OK) else "it is not executable"


def _edit(
    options: argparse.Namespace, folder: str, what: str, edit: Callable[[bytes], bytes]
) -> int:
    from reconciler.core.jsonbytes import SpliceError
    from reconciler.host import bundle

    for _ in range(TRIES):
        old = bundle.read(folder)
        try:
            new = edit(old)
            found = [] if options.unwire else _faults(options, folder, new)
        except SpliceError as error:
            raise RuncnetError(f"{folder}/{bundle.NAME}: {error}") from None
        refusal = bundle.write(bundle.Wiring(folder, old, new)) if new != old else None
        if refusal is None:
            break
        if bundle.read(folder) == old:
            raise RuncnetError(refusal)
    else:
        raise RuncnetError(f"{folder}/{bundle.NAME} changes all the time (find out who writes it)")
    if options.json:
        shown = {"version": 1, "bundle": folder, "changed": new != old, "faults": _plain(found)}
        print(json.dumps(shown))
        return OK
    if not options.quiet:
        print(f"{folder}/{bundle.NAME}: {what}" if new != old else f"{folder}: nothing to do")
    for fault in found:
        if fault.serious:
            print(f"mind: {fault}", file=sys.stderr)
    return OK


# -- check --------------------------------------------------------------------------------------


def _check(options: argparse.Namespace, folder: str) -> int:
    from reconciler.core.bundlefaults import Fault
    from reconciler.core.jsonbytes import SpliceError
    from reconciler.host import bundle

    try:
        found = _faults(options, folder, bundle.read(folder))
    except SpliceError as error:
        name, remedy = f"{folder}/{bundle.NAME}", "mend it, or make it anew: runc spec"
        found = [Fault(object=name, action="read it", cause=str(error), remedy=remedy)]
    serious = any(fault.serious for fault in found)
    if options.json:
        print(json.dumps({"version": 1, "bundle": folder, "faults": _plain(found)}))
        return FAILED if serious else OK
    for fault in found:
        print(f"{'wrong' if fault.serious else 'note '}  {fault}")
    if not found and not options.quiet:
        print(f"{folder} is fine")
    return FAILED if serious else OK


def _plain(found: "list[Fault]") -> Any:
    import msgspec

    return msgspec.to_builtins(found)


def _faults(options: argparse.Namespace, folder: str, content: bytes) -> "list[Fault]":
    from reconciler.core import bundlefaults

    config = bundlefaults.read(content)
    return bundlefaults.faults(config, folder, _around(options, folder, config))


def _around(options: argparse.Namespace, folder: str, config: "Config") -> "Around":
    """What the machine has of what the file names."""
    from reconciler.core.bundlefaults import Around, Holder
    from reconciler.host.netns import lies_at
    from reconciler.load import read_declared

    loaded = read_declared(options.config_dir or USUAL.config_dirs).loaded
    containers = loaded.spec.containers
    holder = None
    here = os.path.realpath(folder)
    for one in containers.values():
        if one.bundle is not None and os.path.realpath(one.bundle) == here:
            serving = containers.get(one.join or "", one)
            holder = Holder(
                name=one.name, mode=serving.mode, netns=serving.netns, place=str(one.place)
            )
    entry = config.network
    has = {c.netns: c.name for c in containers.values() if c.mode in ("network", "none")}
    return Around(
        netns_dir=options.netns_dir,
        programs={path: _cannot_run(path) for path in config.programs},
        space=lies_at(entry.path) if entry is not None and entry.path else "",
        holder=holder,
        spaces=None if loaded.rejections else has,
        networks=frozenset(loaded.spec.networks),
    )
