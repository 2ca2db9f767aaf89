"""Definition files: which are read, whose they must be, and their YAML as a tree.

Strict: events of the C parser, every scalar as text; no anchors, tags, merge keys, second documents.
"""

import errno
import os
import re
import stat
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from reconciler.core.model import Place, Rejection
from reconciler.core.tree import Map, Mark, Seq, Tree
from reconciler.host.trust import trusted_way, untrusted

SIZE_LIMIT = 8 << 20
DEPTH_LIMIT = 32
LINKS_LIMIT = 40
ENDINGS = (".yaml", ".yml")


class SourceFile(msgspec.Struct, frozen=True):
    """A file's bytes, and when it was changed (nanoseconds since the epoch)."""

    file: str
    content: bytes
    modified_ns: int


class Sources(msgspec.Struct, frozen=True):
    """All definition files that may be read, and what is wrong with the others."""

    files: tuple[SourceFile, ...]
    rejections: tuple[Rejection, ...]


def _rejection(file: str, message: str) -> Rejection:
    return Rejection(place=Place(file, 1, 1), path="", message=message)


class _Refused(Exception):  # noqa: N818 - never leaves this file
    pass


def is_definition(name: str) -> bool:
    """Whether a file of that name is read: not hidden, no editor's leftover."""
    return name.endswith(ENDINGS) and not name.startswith((".", "#")) and not name.endswith("~")


def read_folders(folders: Sequence[str]) -> Sources:
    """Read every definition file of the folders, each folder's in byte order."""
    files: list[SourceFile] = []
    rejections: list[Rejection] = []
    for folder in folders:
        folder = os.path.normpath(folder)
        try:
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        except OSError as error:
            rejections.append(_rejection(folder, f"cannot be read: {error.strerror}"))
            continue
        try:
            problem = trusted_way(folder)
            if problem:
                rejections.append(_rejection(folder, problem))
                continue
            for name in sorted(os.listdir(fd), key=os.fsencode):
                if not is_definition(name):
                    continue
                found = read_one(os.path.join(folder, name))
                if isinstance(found, Rejection):
                    rejections.append(found)
                elif found is not None:
                    files.append(found)
        finally:
            os.close(fd)
    return Sources(tuple(files), tuple(rejections))


def read_one(path: str) -> SourceFile | Rejection | None:
    """A definition file, or why it may not be read; None: there is none."""
    plain = readable(path)
    if plain != path:
        return _rejection(plain, "its name is not UTF-8 (rename it)") if _there(path) else None
    try:
        return _read(path, trusted=True)
    except _Refused as error:
        return _rejection(path, str(error))
    except IsADirectoryError:
        return None
    except OSError as error:
        if error.errno == errno.ENOENT and not os.path.islink(path):
            return None
        return _rejection(path, f"cannot be read: {error.strerror}")


def readable(path: str) -> str:
    """A path as it can be shown and kept: bytes that are no UTF-8 are written as numbers."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _there(path: str) -> bool:
    return os.path.lexists(path) and not os.path.isdir(path)


def changed_ns(path: str) -> int | None:
    """When a file was changed, or a folder was given or lost one (nanoseconds since the epoch)."""
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return None


def read_file(path: str) -> SourceFile:
    """A file to be validated: whoever owns it, `-` is stdin. Raises OSError or ValueError."""
    if path == "-":
        content = sys.stdin.buffer.read(SIZE_LIMIT + 1)
        if len(content) > SIZE_LIMIT:
            raise ValueError("larger than 8 MiB (split it)")
        return SourceFile("-", content, 0)
    try:
        return _read(path, trusted=False)
    except _Refused as error:
        raise ValueError(str(error)) from None


def _read(path: str, *, trusted: bool) -> SourceFile:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    with open(fd, "rb") as opened:
        found = os.fstat(fd)
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(21, "is a folder")
        if not stat.S_ISREG(found.st_mode):
            raise _Refused("is no regular file (put a file, or a link to one, in its place)")
        if trusted:
            real = os.path.realpath(path)
            problem = untrusted(found, real) or trusted_way(os.path.dirname(real))
            if problem:
                raise _Refused(problem)
        content = opened.read(SIZE_LIMIT + 1)
    if len(content) > SIZE_LIMIT:
        raise _Refused("is larger than 8 MiB (split it)")
    return SourceFile(path, content, max(found.st_mtime_ns, _link_time(path)))


def _link_time(path: str) -> int:
    return os.lstat(path).st_mtime_ns if os.path.islink(path) else 0


class _Stop(Exception):  # noqa: N818 - never leaves this file
    def __init__(self, mark: Mark, path: str, message: str) -> None:
        super().__init__(message)
        self.mark, self.path, self.message = mark, path, message


def parse(content: bytes, file: str) -> tuple[Tree | None, tuple[Rejection, ...]]:
    """The tree of a file's bytes, or why there is none. Never raises."""
    try:
        text = content.decode("utf-8-sig" if content[:3] == b"\xef\xbb\xbf" else "utf-8")
    except UnicodeDecodeError as error:
        before = content[: error.start]
        line = before.count(b"\n") + 1
        column = error.start - (before.rfind(b"\n") + 1) + 1
        text = f"byte 0x{content[error.start]:02x} is not UTF-8 (save the file as UTF-8)"
        return None, (Rejection(place=Place(file, line, column), path="", message=text),)
    if len(content) > SIZE_LIMIT:
        return None, (_rejection(file, "is larger than 8 MiB (split it)"),)
    import yaml  # where nothing has changed, nothing is parsed

    builder = _Builder()
    try:
        root = builder.build(yaml.parse(text, Loader=yaml.CSafeLoader))
    except _Stop as stop:
        place = Place(file, *stop.mark)
        return None, (Rejection(place=place, path=stop.path, message=stop.message),)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        if mark and error.context_mark and mark.index >= len(text.rstrip()):
            mark = error.context_mark  # something is never closed: where it was opened
        place = Place(file, mark.line + 1, mark.column + 1) if mark else Place(file, 1, 1)
        said = " ".join(p for p in (error.context, error.problem) if p)
        return None, (Rejection(place=place, path="", message=f"no YAML: {_hint(said)}"),)
    except yaml.YAMLError as error:
        place = _reader_place(file, text)
        said = str(getattr(error, "reason", error)).splitlines()[0]
        return None, (Rejection(place=place, path="", message=f"no YAML: {said}"),)
    errors = tuple(
        Rejection(place=Place(file, *mark), path=path, message=message)
        for mark, path, message in builder.errors
    )
    return (None if errors else Tree(file, root, builder.nulls)), errors


def _reader_place(file: str, text: str) -> Place:
    control = re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", text)
    at = control.start() if control else 0
    return Place(file, text.count("\n", 0, at) + 1, at - (text.rfind("\n", 0, at) + 1) + 1)


def _hint(said: str) -> str:
    if "cannot start any token" in said and "tab" in said.lower():
        return f"{said} (indent with spaces)"
    return said


class _Builder:
    """Events → tree; what does not end the file is noted and read past."""

    def __init__(self) -> None:
        self.errors: list[tuple[Mark, str, str]] = []
        self.nulls = False
        self.way: list[str] = []
        """The keys and numbers that lead to the node being built."""

    def build(self, events: Iterator[Any]) -> Any:
        import yaml

        root: Any = None
        documents = 0
        stack: list[Map | Seq] = []
        keys: list[tuple[str, Mark] | None] = []
        for event in events:
            kind = type(event)
            if kind is yaml.ScalarEvent or kind is yaml.AliasEvent:
                mark = (event.start_mark.line + 1, event.start_mark.column + 1)
                if kind is yaml.AliasEvent:
                    self._refuse(mark, keys, f"alias *{event.anchor} (write the value out)")
                    value: Any = ""
                else:
                    if event.anchor is not None or event.tag is not None:
                        self._plain(event, mark, keys)
                    empty = event.value == "" and not event.style
                    null = not event.style and event.value in ("~", "null")
                    value = None if empty or null else event.value
                    self.nulls = self.nulls or value is None
                if stack and isinstance(stack[-1], Map) and keys[-1] is None:
                    keys[-1] = self._key(stack[-1], event, value, mark, keys)
                    continue
                if stack:
                    self._place(stack, keys, value, mark)
                else:
                    root = value
            elif kind is yaml.MappingStartEvent or kind is yaml.SequenceStartEvent:
                mark = (event.start_mark.line + 1, event.start_mark.column + 1)
                self._plain(event, mark, keys)
                if len(stack) >= DEPTH_LIMIT:
                    raise _Stop(mark, "", f"nested deeper than {DEPTH_LIMIT} levels")
                if stack and isinstance(stack[-1], Map) and keys[-1] is None:
                    raise _Stop(mark, "", "a key must be text, not a map or a list")
                node: Map | Seq = Map() if kind is yaml.MappingStartEvent else Seq()
                if stack:
                    key = keys[-1]
                    self.way.append(f".{key[0]}" if key else f"[{len(stack[-1])}]")
                    self._place(stack, keys, node, mark)
                else:
                    self.way.append("")
                    root = node
                stack.append(node)
                keys.append(None)
            elif kind is yaml.MappingEndEvent or kind is yaml.SequenceEndEvent:
                stack.pop()
                keys.pop()
                self.way.pop()
            elif kind is yaml.DocumentStartEvent:
                documents += 1
                if documents > 1:
                    mark = (event.start_mark.line + 1, event.start_mark.column + 1)
                    raise _Stop(mark, "", "a second document (put it in a file of its own)")
        return root

    def _refuse(self, mark: Mark, keys: list[tuple[str, Mark] | None], what: str) -> None:
        key = keys[-1] if keys else None
        self.errors.append((mark, self._path(key[0] if key else ""), what))

    def _path(self, key: str) -> str:
        return "".join([*self.way, f".{key}" if key else ""]).lstrip(".")

    def _plain(self, event: Any, mark: Mark, keys: list[tuple[str, Mark] | None]) -> None:
        if event.anchor is not None:
            self._refuse(
                mark, keys, f"anchor &{event.anchor} (write the value out where it is used)"
            )
        if event.tag is not None:
            self._refuse(
                mark, keys, f"tag {event.tag} (drop it: the field decides what a text means)"
            )

    def _key(
        self, owner: Map, event: Any, value: Any, mark: Mark, keys: list[tuple[str, Mark] | None]
    ) -> tuple[str, Mark]:
        text = value if isinstance(value, str) else getattr(event, "value", "") or ""
        if text == "<<" and not event.style:
            self._refuse(mark, keys, "merge key << (write the keys out)")
        elif text in owner:
            line = owner.keys_at[text][0]
            message = f"the key stands in line {line} already (drop one)"
            self.errors.append((mark, self._path(text), message))
        return text, mark

    def _place(
        self, stack: list[Map | Seq], keys: list[tuple[str, Mark] | None], value: Any, mark: Mark
    ) -> None:
        owner = stack[-1]
        if isinstance(owner, Seq):
            owner.append(value)
            owner.marks.append(mark)
        else:
            key = keys[-1]
            assert key is not None  # the key's scalar came before
            owner[key[0]] = value
            owner.marks[key[0]] = mark
            owner.keys_at[key[0]] = key[1]
            keys[-1] = None
