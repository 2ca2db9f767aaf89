"""The definition file of one container that comes and goes: `runcnet add` writes it, `rm` takes it."""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from reconciler.core.schema import RawContainer
from reconciler.core.tree import Map, Tree, planted

HEADER = "# Written by `runcnet add`, which writes it anew; `runcnet rm` takes it away.\n"
NAME_AT = (3, 3)
"""The line and column of the name."""


def declaration(name: str, body: RawContainer) -> str:
    """The text of a file that declares this container alone."""
    said = msgspec.to_builtins(body)
    lines = [f"  {_text(name)}:" if said else f"  {_text(name)}: {{}}"]
    for key, value in said.items():
        if isinstance(value, list):
            lines += [f"    {key}:", *(f"      - {_flow(item)}" for item in value)]
        else:
            lines.append(f"    {key}: {_flow(value)}")
    return f"{HEADER}containers:\n" + "".join(f"{line}\n" for line in lines)


def tree(file: str, name: str, body: RawContainer) -> Tree:
    """What `declaration` comes to when it is read; everything stands where the name does."""
    whole = {"containers": {name: msgspec.to_builtins(body)}}
    return Tree(file, planted(whole, NAME_AT), nulls=False)


def _flow(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {_flow(item)}' for key, item in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_flow, value))}]"
    return _text(value)


def _text(value: str) -> str:
    """A double-quoted scalar, which is text whatever stands in it."""
    return f'"{"".join(map(_character, value))}"'


def _character(c: str) -> str:
    if c in '"\\':
        return f"\\{c}"
    return c if c.isprintable() else f"\\U{ord(c):08x}"


def declares(tree: Tree) -> Iterator[tuple[str, str]]:
    """What a file declares: (`networks` or `containers`, name)."""
    root = tree.root if isinstance(tree.root, Map) else {}
    for kind in ("networks", "containers"):
        section = root.get(kind)
        if isinstance(section, Map):
            yield from ((kind, name) for name in section)
