"""config.json with a network namespace wired in: a splice of bytes, everything else untouched.

A scanner of RFC 8259 that keeps where values begin and end; `1e3` stays `1e3`.
"""

import json
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

DEPTH_LIMIT = 512
_SPACE = re.compile(rb"[ \t\n\r]*")
_STRING = re.compile(rb'"(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*"')
_ATOM = re.compile(rb"true|false|null|-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_OPEN = {b"{": b"}", b"[": b"]"}


class SpliceError(ValueError):
    """The file cannot be wired: no JSON, a repeated key on the way, an unexpected shape."""


class Mount(NamedTuple):
    """A file to be bound read-only into the container."""

    destination: str
    source: str


class _Value(NamedTuple):
    """A value's bytes; of a member also where its key begins."""

    start: int
    end: int
    lead: int


class _Scanner:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def fail(self, at: int, what: str) -> SpliceError:
        line = self.content.count(b"\n", 0, at) + 1
        column = at - (self.content.rfind(b"\n", 0, at) + 1) + 1
        return SpliceError(f"no valid JSON: {what} in line {line}, column {column}")

    def space(self, at: int) -> int:
        found = _SPACE.match(self.content, at)
        assert found is not None  # it matches nothing, too
        return found.end()

    def skip(self, at: int) -> int:
        """The end of the value that begins at `at`; iterative, for files may be nested deep."""
        closers: list[bytes] = []
        content = self.content
        expect_value = True
        while True:
            at = self.space(at)
            char = content[at : at + 1]
            if expect_value:
                if char in _OPEN:
                    if len(closers) >= DEPTH_LIMIT:
                        raise self.fail(at, f"nesting over {DEPTH_LIMIT}")
                    closers.append(_OPEN[char])
                    at = self.space(at + 1)
                    if content[at : at + 1] == closers[-1]:
                        at += 1
                        closers.pop()
                        expect_value = False
                    elif closers[-1] == b"}":
                        at = self._key(at)
                else:
                    at = self.scalar(at)
                    expect_value = False
            elif char == b"," and closers:
                at += 1
                if closers[-1] == b"}":
                    at = self._key(self.space(at))
                expect_value = True
            elif closers and char == closers[-1]:
                closers.pop()
                at += 1
            elif closers:
                raise self.fail(at, f"`,` or `{closers[-1].decode()}` is missing")
            if not expect_value and not closers:
                return at

    def _key(self, at: int) -> int:
        end = self.string(at)
        at = self.space(end)
        if self.content[at : at + 1] != b":":
            raise self.fail(at, "`:` is missing")
        return at + 1

    def string(self, at: int) -> int:
        found = _STRING.match(self.content, at)
        if not found:
            raise self.fail(at, "a string is missing or broken")
        return found.end()

    def scalar(self, at: int) -> int:
        if self.content[at : at + 1] == b'"':
            return self.string(at)
        found = _ATOM.match(self.content, at)
        if not found:
            raise self.fail(at, "a value is missing or broken")
        return found.end()

    def text(self, value: _Value) -> str | None:
        """The string at a value; None where it is none."""
        raw = self.content[value.start : value.end]
        if raw[:1] != b'"':
            return None
        found = json.loads(raw)
        assert isinstance(found, str)
        return found

    def members(self, owner: _Value, what: str) -> dict[str, _Value]:
        """An object's members. A key that stands twice on our way is refused."""
        if self.content[owner.start : owner.start + 1] != b"{":
            raise SpliceError(f"{what} is no object")
        found: dict[str, _Value] = {}
        at = self.space(owner.start + 1)
        while self.content[at : at + 1] != b"}":
            end = self.string(at)
            key = json.loads(self.content[at:end])
            start = self.space(self.space(end) + 1)
            stop = self.skip(start)
            if key in found:
                raise SpliceError(f"{what} holds the key {key!r} twice (drop one)")
            found[key] = _Value(start, stop, at)
            at = self.space(stop)
            if self.content[at : at + 1] == b",":
                at = self.space(at + 1)
        return found

    def items(self, owner: _Value, what: str) -> list[_Value]:
        """A list's items."""
        if self.content[owner.start : owner.start + 1] != b"[":
            raise SpliceError(f"{what} is no list")
        found = []
        at = self.space(owner.start + 1)
        while self.content[at : at + 1] != b"]":
            end = self.skip(at)
            found.append(_Value(at, end, at))
            at = self.space(end)
            if self.content[at : at + 1] == b",":
                at = self.space(at + 1)
        return found


class _Edit(NamedTuple):
    start: int
    end: int
    new: bytes


def _root(scanner: _Scanner) -> _Value:
    content = scanner.content
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise scanner.fail(error.start, "a byte that is not UTF-8") from None
    start = scanner.space(0)
    end = scanner.skip(start)
    if scanner.space(end) != len(content):
        raise scanner.fail(scanner.space(end), "something behind the value")
    return _Value(start, end, start)


def _apply(content: bytes, edits: list[_Edit]) -> bytes:
    for edit in sorted(edits, reverse=True):
        content = content[: edit.start] + edit.new + content[edit.end :]
    return content


def _insert(scanner: _Scanner, owner: _Value, parts: Sequence[_Value], new: list[bytes]) -> _Edit:
    """Put members or items behind the last one, in the white space that parts the others."""
    content = scanner.content
    if not parts:
        return _Edit(owner.start + 1, owner.start + 1, b", ".join(new))
    last = parts[-1]
    if len(parts) > 1:
        gap_start = parts[-2].end
        gap = content[gap_start : last.lead]
    else:
        gap = b"," + (content[owner.start + 1 : last.lead] or b" ")
    return _Edit(last.end, last.end, b"".join(gap + piece for piece in new))


def _remove(parts: Sequence[_Value], gone: _Value) -> tuple[int, int]:
    """The bytes that an item takes with its comma."""
    position = parts.index(gone)
    if position + 1 < len(parts):
        return gone.lead, parts[position + 1].lead
    if position:
        return parts[position - 1].end, gone.end
    return gone.lead, gone.end


def _dump(value: object) -> bytes:
    return json.dumps(value).encode()


def _namespace_edits(
    scanner: _Scanner, linux: _Value | None, root: _Value, mode: str, path: str
) -> Iterator[_Edit]:
    entry = b'{"type": "network", "path": ' + _dump(path) + b"}"
    if linux is None:
        if mode != "host":
            parts = list(scanner.members(root, "config.json").values())
            new = b'"linux": {"namespaces": [' + entry + b"]}"
            yield _insert(scanner, root, parts, [new])
        return
    members = scanner.members(linux, "linux")
    namespaces = members.get("namespaces")
    if namespaces is None:
        if mode != "host":
            new = b'"namespaces": [' + entry + b"]"
            yield _insert(scanner, linux, list(members.values()), [new])
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
            start, end = _remove(items, found[0][0])
            yield _Edit(start, end, b"")
    elif not found:
        yield _insert(scanner, namespaces, items, [entry])
    else:
        item, fields = found[0]
        if "path" not in fields:
            new = b'"path": ' + _dump(path)
            yield _insert(scanner, item, list(fields.values()), [new])
        elif scanner.text(fields["path"]) != path:
            yield _Edit(fields["path"].start, fields["path"].end, _dump(path))


def _mount_edits(
    scanner: _Scanner, root: _Value, mounts: Sequence[Mount], ours: str
) -> Iterator[_Edit]:
    members = scanner.members(root, "config.json")
    new = {
        mount.destination: _dump(
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
            yield _insert(scanner, root, list(members.values()), [text])
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
                yield _Edit(fields["source"].start, fields["source"].end, _dump(wanted[place]))
        elif mine:
            start, end = _remove(left, item)
            left.remove(item)
            yield _Edit(start, end, b"")
    if new:
        yield _insert(scanner, members["mounts"], items, list(new.values()))


def splice(
    content: bytes, *, mode: str, netns_path: str, mounts: Sequence[Mount] = (), ours: str
) -> bytes:
    """The file with its network wired for `mode` (network, none: the path is set; host: the entry
    goes), and `mounts` bound. Mounts whose source begins with `ours` were made by an earlier splice.

    Raises SpliceError.
    """
    scanner = _Scanner(content)
    root = _root(scanner)
    linux = scanner.members(root, "config.json").get("linux")
    content = _apply(content, list(_namespace_edits(scanner, linux, root, mode, netns_path)))
    # Both kinds of edit may end at the same byte: one after the other.
    scanner = _Scanner(content)
    for edit in _mount_edits(scanner, _root(scanner), mounts, ours):
        return splice(
            _apply(content, [edit]), mode=mode, netns_path=netns_path, mounts=mounts, ours=ours
        )
    return content


def unjoinable(content: bytes) -> bool:
    """Whether the runtime would fail in a network namespace by path: the container gets a user
    namespace of its own, and a new /sys, which the kernel mounts only where both belong together.
    (`runc spec --rootless` binds the host's /sys instead.) Raises SpliceError.
    """
    scanner = _Scanner(content)
    members = scanner.members(_root(scanner), "config.json")

    def holds(owner: _Value, path: str, kind: str) -> bool:
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
