"""JSON as bytes: where values begin and end, and edits that leave all other bytes as they are.

A scanner of RFC 8259; `1e3` stays `1e3`.
"""

import json
import re
from collections.abc import Sequence
from typing import NamedTuple

DEPTH_LIMIT = 512
_SPACE = re.compile(rb"[ \t\n\r]*")
_STRING = re.compile(rb'"(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*"')
_ATOM = re.compile(rb"true|false|null|-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_OPEN = {b"{": b"}", b"[": b"]"}


class SpliceError(ValueError):
    """The file cannot be wired: no JSON, a repeated key on the way, an unexpected shape."""


class Value(NamedTuple):
    """A value's bytes; of a member also where its key begins."""

    start: int
    end: int
    lead: int


class Scanner:
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

    def text(self, value: Value) -> str | None:
        """The string at a value; None where it is none."""
        raw = self.content[value.start : value.end]
        if raw[:1] != b'"':
            return None
        found = json.loads(raw)
        assert isinstance(found, str)
        return found

    def members(self, owner: Value, what: str) -> dict[str, Value]:
        """An object's members. A key that stands twice on our way is refused."""
        if self.content[owner.start : owner.start + 1] != b"{":
            raise SpliceError(f"{what} is no object")
        found: dict[str, Value] = {}
        at = self.space(owner.start + 1)
        while self.content[at : at + 1] != b"}":
            end = self.string(at)
            key = json.loads(self.content[at:end])
            start = self.space(self.space(end) + 1)
            stop = self.skip(start)
            if key in found:
                raise SpliceError(f"{what} holds the key {key!r} twice (drop one)")
            found[key] = Value(start, stop, at)
            at = self.space(stop)
            if self.content[at : at + 1] == b",":
                at = self.space(at + 1)
        return found

    def items(self, owner: Value, what: str) -> list[Value]:
        """A list's items."""
        if self.content[owner.start : owner.start + 1] != b"[":
            raise SpliceError(f"{what} is no list")
        found = []
        at = self.space(owner.start + 1)
        while self.content[at : at + 1] != b"]":
            end = self.skip(at)
            found.append(Value(at, end, at))
            at = self.space(end)
            if self.content[at : at + 1] == b",":
                at = self.space(at + 1)
        return found


class Edit(NamedTuple):
    start: int
    end: int
    new: bytes


def root_of(scanner: Scanner) -> Value:
    content = scanner.content
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise scanner.fail(error.start, "a byte that is not UTF-8") from None
    start = scanner.space(0)
    end = scanner.skip(start)
    if scanner.space(end) != len(content):
        raise scanner.fail(scanner.space(end), "something behind the value")
    return Value(start, end, start)


def apply(content: bytes, edits: list[Edit]) -> bytes:
    for edit in sorted(edits, reverse=True):
        content = content[: edit.start] + edit.new + content[edit.end :]
    return content


def insert(scanner: Scanner, owner: Value, parts: Sequence[Value], new: list[bytes]) -> Edit:
    """Put members or items behind the last one, in the white space that parts the others."""
    content = scanner.content
    if not parts:
        return Edit(owner.start + 1, owner.start + 1, b", ".join(new))
    last = parts[-1]
    if len(parts) > 1:
        gap_start = parts[-2].end
        gap = content[gap_start : last.lead]
    else:
        gap = b"," + (content[owner.start + 1 : last.lead] or b" ")
    return Edit(last.end, last.end, b"".join(gap + piece for piece in new))


def removal(parts: Sequence[Value], gone: Value) -> tuple[int, int]:
    """The bytes that an item takes with its comma."""
    position = parts.index(gone)
    if position + 1 < len(parts):
        return gone.lead, parts[position + 1].lead
    if position:
        return parts[position - 1].end, gone.end
    return gone.lead, gone.end


def dump(value: object) -> bytes:
    return json.dumps(value).encode()
