"""A bundle wired by hand: a namespace's path, or hooks, in its config.json; and taken out again.

What is ours in a file is told by what it says: hooks whose args are `runcnet hook STAGE ...`, a path in
the netns dir. Where an entry of type network had to be added, an annotation notes it, for nothing else
could tell it from one that was there.
"""

import json
import posixpath
from collections.abc import Callable, Iterator, Mapping

import msgspec

from reconciler.core.jsonbytes import (
    Edit,
    Scanner,
    SpliceError,
    Value,
    apply,
    dump,
    insert,
    removal,
    root_of,
)
from reconciler.core.splice import namespace_edits

WIRED = ("createRuntime", "poststop")
OURS = ("createRuntime", "prestart", "poststop")
"""Stages that `runcnet hook` knows."""
ADDED = "runcnet.added"
"""Annotation: the outermost part of linux.namespaces that was added with the entry."""
PARTS = ("linux", "namespaces", "network")


class Hook(msgspec.Struct, frozen=True):
    """A hook as config.json has it."""

    path: str
    args: tuple[str, ...]


def is_ours(path: str | None, args: list[str | None]) -> bool:
    """Whether that hook calls `runcnet hook`."""
    if len(args) < 3 or args[1] != "hook" or args[2] not in OURS:
        return False
    named = {posixpath.basename(path or ""), posixpath.basename(args[0] or "")}
    return bool(named & {"runcnet", "runcnet-hook"})


def with_path(content: bytes, path: str) -> bytes:
    """Wired to the namespace at `path`; hooks of ours go. Raises SpliceError."""
    content = _unhooked(content)
    missing = _missing(content)
    scanner = Scanner(content)
    root = root_of(scanner)
    linux = scanner.members(root, "config.json").get("linux")
    content = apply(content, list(namespace_edits(scanner, linux, root, "network", path)))
    return _noted(content, missing) if missing else content


def with_hooks(content: bytes, hooks: Mapping[str, Hook]) -> bytes:
    """Wired by these hooks (stage → hook); a namespace's path goes, for the runtime is to make one.

    Raises SpliceError.
    """
    missing = _missing(content)
    content = with_path(content, "/") if missing else content
    content = _repeated(content, _pathless)
    return _repeated(content, lambda scanner, root: _hook_edits(scanner, root, hooks))


def unwired(content: bytes, netns_dir: str) -> bytes:
    """Without what `with_path` and `with_hooks` put there. A path elsewhere than in `netns_dir` stays.

    Raises SpliceError.
    """
    content = _unhooked(content)
    return _repeated(content, lambda scanner, root: _unwiring(scanner, root, netns_dir))


Editing = Callable[[Scanner, Value], Iterator[Edit]]


def _repeated(content: bytes, edits: Editing) -> bytes:
    """One edit after the other, for each may move what the next one is about."""
    while True:
        scanner = Scanner(content)
        edit = next(edits(scanner, root_of(scanner)), None)
        if edit is None:
            return content
        content = apply(content, [edit])


def _unhooked(content: bytes) -> bytes:
    return _repeated(content, lambda scanner, root: _hook_edits(scanner, root, {}))


# -- linux.namespaces ---------------------------------------------------------------------------


class _Place(msgspec.Struct, frozen=True):
    """Where the entry of type network stands, and what is around it."""

    linux: Value | None
    linux_members: dict[str, Value]
    items: list[Value]
    item: Value | None
    fields: dict[str, Value]


def _place(scanner: Scanner, root: Value) -> _Place:
    linux = scanner.members(root, "config.json").get("linux")
    members = scanner.members(linux, "linux") if linux else {}
    items = (
        scanner.items(members["namespaces"], "linux.namespaces") if "namespaces" in members else []
    )
    for item in items:
        fields = scanner.members(item, "an entry of linux.namespaces")
        if "type" in fields and scanner.text(fields["type"]) == "network":
            return _Place(linux, members, items, item, fields)
    return _Place(linux, members, items, None, {})


def _missing(content: bytes) -> str:
    """The outermost part that is not there; empty: the entry is."""
    scanner = Scanner(content)
    place = _place(scanner, root_of(scanner))
    if place.item is not None:
        return ""
    if place.linux is None:
        return "linux"
    return "network" if "namespaces" in place.linux_members else "namespaces"


def _pathless(scanner: Scanner, root: Value) -> Iterator[Edit]:
    place = _place(scanner, root)
    if "path" in place.fields:
        yield _without(list(place.fields.values()), place.fields["path"])


def _unwiring(scanner: Scanner, root: Value, netns_dir: str) -> Iterator[Edit]:
    place = _place(scanner, root)
    path = scanner.text(place.fields["path"]) if "path" in place.fields else None
    if path is not None and posixpath.dirname(path) == netns_dir:
        yield _without(list(place.fields.values()), place.fields["path"])
        return
    members = scanner.members(root, "config.json")
    notes = (
        scanner.members(members["annotations"], "annotations") if "annotations" in members else {}
    )
    if ADDED not in notes:
        return
    added = scanner.text(notes[ADDED])
    first = PARTS.index(added) if added in PARTS else len(PARTS)
    if place.item is not None and len(place.fields) == 1 and first <= PARTS.index("network"):
        yield _without(place.items, place.item)
    elif "namespaces" in place.linux_members and not place.items and first <= 1:
        values = list(place.linux_members.values())
        yield _without(values, place.linux_members["namespaces"])
    elif place.linux is not None and not place.linux_members and first == 0:
        yield _without(list(members.values()), place.linux)
    elif len(notes) == 1:
        yield _without(list(members.values()), members["annotations"])
    else:
        yield _without(list(notes.values()), notes[ADDED])


def _without(parts: list[Value], gone: Value) -> Edit:
    return Edit(*removal(parts, gone), b"")


def _noted(content: bytes, part: str) -> bytes:
    scanner = Scanner(content)
    root = root_of(scanner)
    members = scanner.members(root, "config.json")
    entry = dump(ADDED) + b": " + dump(part)
    if "annotations" not in members:
        text = b'"annotations": {' + entry + b"}"
        return apply(content, [insert(scanner, root, list(members.values()), [text])])
    owner = members["annotations"]
    notes = scanner.members(owner, "annotations")
    if ADDED in notes:
        return content
    return apply(content, [insert(scanner, owner, list(notes.values()), [entry])])


# -- hooks --------------------------------------------------------------------------------------


def _hook_edits(scanner: Scanner, root: Value, wanted: Mapping[str, Hook]) -> Iterator[Edit]:
    """What is left to be done until hooks of ours are these and no others."""
    members = scanner.members(root, "config.json")
    owner = members.get("hooks")
    stages = scanner.members(owner, "hooks") if owner else {}
    open_ = dict(wanted)
    for stage, place in stages.items():
        items = scanner.items(place, f"hooks.{stage}")
        for item in items:
            fields = scanner.members(item, f"an entry of hooks.{stage}")
            path = scanner.text(fields["path"]) if "path" in fields else None
            if not is_ours(path, _texts(scanner, fields.get("args"), stage)):
                continue
            hook = open_.pop(stage, None)
            if hook is not None:
                yield from _adapted(scanner, item, fields, hook)
            elif len(items) > 1:
                yield _without(items, item)
            elif len(stages) > 1:
                yield _without(list(stages.values()), place)
            else:
                assert owner is not None  # it has members
                yield _without(list(members.values()), owner)
    for stage, hook in open_.items():
        entry = dump({"path": hook.path, "args": list(hook.args)})
        if stage in stages:
            items = scanner.items(stages[stage], f"hooks.{stage}")
            yield insert(scanner, stages[stage], items, [entry])
            continue
        text = dump(stage) + b": [" + entry + b"]"
        if owner is not None:
            yield insert(scanner, owner, list(stages.values()), [text])
        else:
            yield insert(scanner, root, list(members.values()), [b'"hooks": {' + text + b"}"])


def _texts(scanner: Scanner, args: Value | None, stage: str) -> list[str | None]:
    if args is None:
        return []
    return [scanner.text(one) for one in scanner.items(args, f"args of a hook of {stage}")]


def _adapted(
    scanner: Scanner, item: Value, fields: Mapping[str, Value], hook: Hook
) -> Iterator[Edit]:
    """Path and args brought up to date; whatever else the entry says (timeout, env) stays."""
    for key, wanted in (("path", hook.path), ("args", list(hook.args))):
        if key not in fields:
            text = dump(key) + b": " + dump(wanted)
            yield insert(scanner, item, list(fields.values()), [text])
        elif json.loads(scanner.content[fields[key].start : fields[key].end]) != wanted:
            yield Edit(fields[key].start, fields[key].end, dump(wanted))


def path_of(content: bytes) -> str | None:
    """The path of the network namespace; None: there is none. Raises SpliceError."""
    scanner = Scanner(content)
    place = _place(scanner, root_of(scanner))
    if "path" not in place.fields:
        return None
    found = scanner.text(place.fields["path"])
    if found is None:
        raise SpliceError("the path of the network namespace is no text")
    return found
