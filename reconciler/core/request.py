"""What a runtime asks of a hook: the state on stdin (OCI runtime spec, `state`), flags and annotations."""

from collections.abc import Sequence
from typing import Any

import msgspec

from reconciler.core import fields
from reconciler.core.errors import RuncnetError
from reconciler.core.flags import interface_of
from reconciler.core.schema import RawContainer

ATTACHING = ("createRuntime", "prestart")
NETWORKS, PORTS = "runcnet.networks", "runcnet.ports"
STATE_BYTES = 1 << 20
WORDS = 256
"""More networks or ports than these nobody means."""


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """A call of a hook."""

    stage: str
    name: str
    """The container's id."""
    pid: int
    """Its first process; 0 where there is none (any more)."""
    bundle: str
    body: RawContainer
    """What it is to be attached to; empty for `poststop`."""
    ip_file: str = ""
    """Where the address is written, in the bundle; empty: nowhere."""


class _State(msgspec.Struct):
    id: str
    pid: int = 0
    bundle: str = ""
    annotations: dict[str, Any] | None = None


def request(
    stage: str,
    state: bytes,
    *,
    networks: Sequence[str],
    ports: Sequence[str],
    annotated: bool,
    ip_file: str = "",
) -> Request:
    """Read a call. `annotated`: whether annotations count. Raises RuncnetError, one sentence."""
    found = _state(state)
    if not fields.is_name(found.id, 128):
        raise RuncnetError(
            f"the container's id {_short(found.id)} cannot be the name of a container "
            "(1 to 128 of A-Z a-z 0-9 _ . + -, beginning with a letter or digit)"
        )
    attaching = stage in ATTACHING
    body = _body(found, networks, ports, annotated) if attaching else RawContainer()
    if attaching and not 0 < found.pid < 1 << 31:
        raise RuncnetError(f"{found.id}: the state's pid {found.pid} is no process")
    if "\0" in found.bundle:
        raise RuncnetError(
            f"{found.id}: the state's bundle is no path: it holds a NUL (the runtime names the folder "
            "of the container's config.json there)"
        )
    return Request(
        stage=stage,
        name=found.id,
        pid=found.pid,
        bundle=found.bundle,
        body=body,
        ip_file=ip_file,
    )


def _state(text: bytes) -> _State:
    if len(text) > STATE_BYTES:
        raise RuncnetError(
            "the state on stdin is larger than 1 MiB (the runtime's is some hundred bytes)"
        )
    try:
        return msgspec.json.decode(text, type=_State)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        hint = (
            "a runtime writes it there when it calls the hook" if not text.strip() else str(error)
        )
        raise RuncnetError(f"stdin holds no OCI state: {hint}") from None


def _body(
    state: _State, networks: Sequence[str], ports: Sequence[str], annotated: bool
) -> RawContainer:
    where = "--network"
    if annotated:
        said = _words(state, NETWORKS)
        if said:
            networks, where = said, f"annotation {NETWORKS}"
        ports = _words(state, PORTS) or ports
    if not networks:
        raise RuncnetError(
            f"{state.id}: no network is named (give the hook --network NAME, or the container the "
            f"annotation {NETWORKS})"
        )
    if len(networks) > WORDS or len(ports) > WORDS:
        raise RuncnetError(f"{state.id}: more than {WORDS} networks or ports")
    try:
        return RawContainer(interfaces=[interface_of(text) for text in networks], ports=list(ports))
    except ValueError as error:
        raise RuncnetError(f"{state.id}: {where}: {error}") from None


def _words(state: _State, key: str) -> list[str]:
    """The words of an annotation, between blanks or semicolons."""
    value = (state.annotations or {}).get(key, "")
    if not isinstance(value, str):
        raise RuncnetError(f"{state.id}: the annotation {key} is no text")
    return value.replace(";", " ").split()


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
