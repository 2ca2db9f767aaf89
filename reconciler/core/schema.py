"""The shape of the YAML, as types: what keys there are and whether they hold text, lists or maps.

Every scalar is text here; `declare.py` reads it by the type of its field.
"""

import functools
import types
import typing
from collections.abc import Iterator
from typing import Any

import msgspec

from reconciler.core.tree import Map, Path, Seq

Words = str | list[str]

RESERVED = {
    "vlan", "parent", "attach", "dhcp", "bandwidth", "qos", "firewall",
}  # fmt: skip
"""Keys that a later version may take; they are refused with a word of their own."""


class RawRoute(msgspec.Struct, forbid_unknown_fields=True):
    """`{to: 10.0.0.0/8, via: 176.10.0.254}`."""

    to: str
    via: str


class RawDns(msgspec.Struct, forbid_unknown_fields=True):
    """`{servers: [...], search: [...], options: [...], hosts: {name: address}}`."""

    servers: Words = []
    search: Words = []
    options: Words = []
    hosts: dict[str, str] = {}


class RawEgress(msgspec.Struct, forbid_unknown_fields=True):
    """`{deny: [169.254.169.254, 10.0.0.0/8]}`."""

    deny: Words = []


class RawPort(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """`{published: 8080, target: 80, protocol: tcp, host_ip: 192.0.2.7, network: runc0}`."""

    published: str
    target: str
    protocol: str = "tcp"
    host_ip: str | None = None
    network: str | None = None


class RawNetwork(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a network."""

    type: str = "bridge"
    bridge: str | None = None
    external: str = "false"
    subnets: Words = []
    gateways: Words | None = None
    ranges: Words | None = None
    uplink: Words = "any"
    masquerade: str | None = None
    inbound: str = "established"
    internal: str = "false"
    isolate_members: str = "false"
    antispoof: str | None = None
    allow: Words = []
    host_access: Words = "true"
    egress: RawEgress | None = None
    mtu: str = "auto"
    routes: RawRoute | list[RawRoute] = []
    dns: str | RawDns | None = None


class RawInterface(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One interface of a container."""

    network: str
    name: str | None = None
    addresses: Words = []
    mac: str | None = None
    mtu: str | None = None
    host_interface: str | None = None
    default_route: str | None = None
    antispoof: str | None = None


class RawContainer(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """The body of a container."""

    netns: str | None = None
    mode: str | None = None
    interfaces: str | RawInterface | list[str | RawInterface] = []
    routes: RawRoute | list[RawRoute] = []
    ports: str | RawPort | list[str | RawPort] = []
    sysctls: dict[str, str] = {}
    dns: str | RawDns | None = None
    bundle: str | None = None
    join: str | None = None
    replicas: str | None = None


class RawFile(msgspec.Struct, forbid_unknown_fields=True):
    """A whole file."""

    version: str = "1"
    networks: dict[str, RawNetwork] = {}
    containers: dict[str, RawContainer] = {}


class ShapeError(msgspec.Struct, frozen=True):
    """What is wrong with the shape at `path`; `key`: the key itself is."""

    path: Path
    message: str
    key: bool = False


def shape_errors(node: Any, shape: Any, path: Path) -> Iterator[ShapeError]:
    """Everything that keeps `node` from being a `shape`, each with its path."""
    union = isinstance(shape, types.UnionType) or typing.get_origin(shape) is typing.Union
    options = typing.get_args(shape) if union else (shape,)
    lists = [o for o in options if typing.get_origin(o) is list]
    maps = [o for o in options if typing.get_origin(o) is dict or _is_struct(o)]
    if node is None:
        yield ShapeError(path, "a value is missing (write one, or drop the key)")
    elif isinstance(node, str):
        if str not in options:
            yield ShapeError(path, f"{_short(node)} is text ({_wanted(lists, maps)} is needed)")
    elif isinstance(node, Seq):
        if not lists:
            yield ShapeError(path, f"a list is not possible here ({_wanted([], maps)} is needed)")
        else:
            item = typing.get_args(lists[0])[0]
            for number, value in enumerate(node):
                yield from shape_errors(value, item, (*path, number))
    elif not maps:
        yield ShapeError(path, f"a map is not possible here ({_wanted(lists, [])} is needed)")
    elif _is_struct(maps[0]):
        yield from _struct_errors(node, maps[0], path)
    else:
        for key, value in node.items():
            yield from shape_errors(value, typing.get_args(maps[0])[1], (*path, key))


@functools.cache
def _fields(shape: Any) -> dict[str, Any]:
    return {field.name: field for field in msgspec.structs.fields(shape)}


def _is_struct(shape: Any) -> bool:
    return isinstance(shape, type) and issubclass(shape, msgspec.Struct)


def _wanted(lists: list[Any], maps: list[Any]) -> str:
    return "a list" if lists else "a map" if maps else "one word"


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")


def _struct_errors(node: Map, shape: Any, path: Path) -> Iterator[ShapeError]:
    fields = _fields(shape)
    for key, value in node.items():
        if key in fields:
            yield from shape_errors(value, fields[key].type, (*path, key))
        elif key in RESERVED:
            yield ShapeError((*path, key), "reserved, not built yet", key=True)
        else:
            yield ShapeError((*path, key), unknown("key", key, fields), key=True)
    for name, field in fields.items():
        if field.required and name not in node:
            yield ShapeError(path, f"`{name}` is missing (it says which one)")


def unknown(kind: str, name: str, known: Any) -> str:
    """`unknown key adresses (did you mean addresses?)`."""
    import difflib  # only a mistake needs it

    near = difflib.get_close_matches(name, list(known), 1)
    if near:
        return f"unknown {kind} {_short(name)} (did you mean {near[0]}?)"
    some = ", ".join(sorted(known)[:15]) or "none"
    return f"unknown {kind} {_short(name)} (known: {some})"


def json_schema() -> dict[str, Any]:
    """The JSON schema of a definition file, for editors."""
    return msgspec.json.schema(RawFile)
