"""A parsed file: maps, lists and text, each knowing the line and column of what it holds."""

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from reconciler.core.model import Place

Mark = tuple[int, int]


class Map(dict[str, Any]):
    """A mapping; `marks` holds where each value stands, `keys_at` where its key does."""

    __slots__ = ("keys_at", "marks")

    def __init__(self) -> None:
        super().__init__()
        self.marks: dict[str, Mark] = {}
        self.keys_at: dict[str, Mark] = {}


class Seq(list[Any]):
    """A list; `marks` holds where each item stands."""

    __slots__ = ("marks",)

    def __init__(self) -> None:
        super().__init__()
        self.marks: list[Mark] = []


Path = tuple[str | int, ...]


class Tree(msgspec.Struct, frozen=True):
    """One file's document: its root, None where it is empty."""

    file: str
    root: Any
    nulls: bool = True
    """Whether a value somewhere may be absent (`key:` and nothing behind it)."""
    hook: bool = False
    """Whether it stands for what a hook attached (`attached.py`), and not for a file."""

    def place(self, path: Path, *, key: bool = False) -> Place:
        """Where the value at `path` stands (or its key); the nearest that exists, else 1:1."""
        mark: Mark = (1, 1)
        node = self.root
        for depth, part in enumerate(path):
            if isinstance(node, Map) and isinstance(part, str) and part in node:
                last = key and depth == len(path) - 1
                mark = node.keys_at[part] if last else node.marks[part]
            elif isinstance(node, Seq) and isinstance(part, int) and part < len(node):
                mark = node.marks[part]
            else:
                break
            node = node[part]
        return Place(self.file, *mark)


def planted(value: Any, mark: Mark) -> Any:
    """Plain maps and lists as a file would hold them, all of it at one place."""
    if isinstance(value, Mapping):
        found = Map()
        for key, one in value.items():
            found[key] = planted(one, mark)
            found.marks[key] = found.keys_at[key] = mark
        return found
    if isinstance(value, list):
        items = Seq()
        items.extend(planted(one, mark) for one in value)
        items.marks = [mark] * len(items)
        return items
    return value


def path_text(path: Iterable[str | int]) -> str:
    """`containers.web.interfaces[0].addresses[0]`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text
