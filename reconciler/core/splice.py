"""config.json with a network namespace wired in: a splice of bytes, everything else untouched."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

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


class Mount(NamedTuple):
    """A file to be bound read-only into the container."""

    destination: str
    source: str


def namespace_edits(
    scanner: Scanner, linux: Value | None, root: Value, mode: str, path: str
) -> Iterator[Edit]:
    entry = b'{"type": "network", "path": ' + dump(path) + b"}"
    if linux is None:
        if mode != "host":
            parts = list(scanner.members(root, "config.json").values())
            new = b'"linux": {"namespaces": [' + entry + b"]}"
            yield insert(scanner, root, parts, [new])
        return
    members = scanner.members(linux, "linux")
    namespaces = members.get("namespaces")
    if namespaces is None:
        if mode != "host":
            new = b'"namespaces": [' + entry + b"]"
            yield insert(scanner, linux, list(members.values()), [new])
        return
    items = scanner.items(namespaces, "linux.namespaces")
    found = []
    for item in items:
        fields = scanner.members(item, "an entry of linux.namespaces")
        if "type" in fields and scanner.text(fields["type"]) == "network":
            found.append((item, fields))
    if len(found) > 1:
        raise SpliceError("linux.namespaces holds two entries of type network (drop one)")
    if mode == "host":
        if found:
            start, end = removal(items, found[0][0])
            yield Edit(start, end, b"")
    elif not found:
        yield insert(scanner, namespaces, items, [entry])
    else:
        item, fields = found[0]
        if "path" not in fields:
            new = b'"path": ' + dump(path)
            yield insert(scanner, item, list(fields.values()), [new])
        elif scanner.text(fields["path"]) != path:
            yield Edit(fields["path"].start, fields["path"].end, dump(path))


def _mount_edits(
    scanner: Scanner, root: Value, mounts: Sequence[Mount], ours: str
) -> Iterator[Edit]:
    members = scanner.members(root, "config.json")
    new = {
        mount.destination: dump(
            {
                "destination": mount.destination,
                "type": "bind",
                "source": mount.source,
                "options": ["rbind", "ro", "nosuid", "nodev", "noexec"],
            }
        )
        for mount in mounts
    }
    wanted = {mount.destination: mount.source for mount in mounts}
    if "mounts" not in members:
        if new:
            text = b'"mounts": [' + b", ".join(new.values()) + b"]"
            yield insert(scanner, root, list(members.values()), [text])
        return
    items = scanner.items(members["mounts"], "mounts")
    left = list(items)
    for item in items:
        fields = scanner.members(item, "an entry of mounts")
        place = scanner.text(fields["destination"]) if "destination" in fields else None
        source = scanner.text(fields["source"]) if "source" in fields else None
        mine = source is not None and source.startswith(ours)
        if place in new and (not mine or place in wanted):
            # The bundle's own mount wins; ours is brought up to date.
            del new[place]
            if mine and source != wanted[place]:
                yield Edit(fields["source"].start, fields["source"].end, dump(wanted[place]))
        elif mine:
            start, end = removal(left, item)
            left.remove(item)
            yield Edit(start, end, b"")
    if new:
        yield insert(scanner, members["mounts"], items, list(new.values()))


def splice(
    content: bytes, *, mode: str, netns_path: str, mounts: Sequence[Mount] = (), ours: str
) -> bytes:
    """The file with its network wired for `mode` (network, none: the path is set; host: the entry
    goes), and `mounts` bound. Mounts whose source begins with `ours` were made by an earlier splice.

    Raises SpliceError.
    """
    scanner = Scanner(content)
    root = root_of(scanner)
    linux = scanner.members(root, "config.json").get("linux")
    content = apply(content, list(namespace_edits(scanner, linux, root, mode, netns_path)))
    # Both kinds of edit may end at the same byte: one after the other.
    scanner = Scanner(content)
    for edit in _mount_edits(scanner, root_of(scanner), mounts, ours):
        return splice(
            apply(content, [edit]), mode=mode, netns_path=netns_path, mounts=mounts, ours=ours
        )
    return content


def unjoinable(content: bytes) -> bool:
    """Whether the runtime would fail in a network namespace by path: the container gets a user
    namespace of its own, and a new /sys, which the kernel mounts only where both belong together.
    (`runc spec --rootless` binds the host's /sys instead.) Raises SpliceError.
    """
    scanner = Scanner(content)
    members = scanner.members(root_of(scanner), "config.json")

    def holds(owner: Value, path: str, kind: str) -> bool:
        for item in scanner.items(owner, path):
            fields = scanner.members(item, f"an entry of {path}")
            if "type" in fields and scanner.text(fields["type"]) == kind:
                return True
        return False

    linux = scanner.members(members["linux"], "linux") if "linux" in members else {}
    return (
        "namespaces" in linux
        and holds(linux["namespaces"], "linux.namespaces", "user")
        and "mounts" in members
        and holds(members["mounts"], "mounts", "sysfs")
    )
