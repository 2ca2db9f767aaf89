"""What the soak has declared: a small model of its own, its files, and what must stand for it.

Nothing here is asked of the reconciler; what it says about names, addresses and marks follows from the
documents.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class LeaseKey(NamedTuple):
    """What an automatic address belongs to."""

    container: str
    network: str
    interface: str
    version: int


@dataclass
class Net:
    """A network. `moving`: its subnet may be edited, so that nobody is given an address of it."""

    name: str
    kind: str
    number: int
    dual: bool = False
    moving: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def subnets(self) -> list[str]:
        """IPv4, and IPv6 where it has one."""
        return [f"10.{self.number}.0.0/16", *([f"fd00:{self.number}::/64"] if self.dual else [])]

    @property
    def gateways(self) -> list[str]:
        """The default: the first usable address of each."""
        return [f"10.{self.number}.0.1", *([f"fd00:{self.number}::1"] if self.dual else [])]

    @property
    def versions(self) -> tuple[int, ...]:
        return (4, 6) if self.dual else (4,)

    def document(self) -> dict[str, Any]:
        """Its definition."""
        return {"type": self.kind, "subnets": self.subnets, **self.options}


@dataclass
class Port:
    """An interface of a container. `given`: which of its addresses it declares; None: automatic."""

    network: str
    name: str | None = None
    given: int | None = None
    mtu: int | None = None
    host_name: bool = False


@dataclass
class Box:
    """A container, or as many as `replicas` says. `number` tells it from all others."""

    name: str
    number: int
    ports: list[Port]
    mode: str = "network"
    own_netns: bool = False
    somaxconn: int | None = None
    route: bool = False
    replicas: int | None = None


@dataclass(frozen=True)
class Member:
    """One container as it must stand: interface → network, given addresses."""

    box: Box
    name: str
    netns: str
    ports: tuple[tuple[str, Port], ...]


def given_addresses(net: Net, box: Box, port: Port) -> dict[int, str]:
    """IP version → the address that the definition names. Even ones leave IPv6 to the range."""
    if port.given is None:
        return {}
    found = {4: f"10.{net.number}.{200 + port.given}.{box.number + 1}"}
    if net.dual and port.given % 2:
        found[6] = f"fd00:{net.number}::{200 + port.given}:{box.number + 1:x}"
    return found


class Declared:
    """The files' content: networks in one of them, containers in the others."""

    def __init__(self) -> None:
        self.networks: dict[str, Net] = {}
        self.boxes: dict[str, Box] = {}
        self.files: dict[str, list[str]] = {}
        """File → its containers, in order."""

    def file_of(self, name: str) -> str:
        """Where a container is declared."""
        return next(file for file, names in self.files.items() if name in names)

    def text(self, file: str) -> str:
        """A file as it should be: one container a line, so that many a prefix of it is valid YAML."""
        if file == "00-networks.yaml":
            lines = [f"  {n.name}: {json.dumps(n.document())}" for n in self.networks.values()]
            return "\n".join(["networks:", *lines, ""])
        names = self.files[file]
        lines = [f"  {name}: {json.dumps(self._document(self.boxes[name]))}" for name in names]
        return "\n".join(["containers:", *lines, ""]) if names else "# nobody\n"

    def texts(self) -> dict[str, str]:
        """All files."""
        return {file: self.text(file) for file in ["00-networks.yaml", *self.files]}

    def _document(self, box: Box) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if box.mode == "none":
            found["mode"] = "none"
        else:
            found["interfaces"] = [self._interface(box, port) for port in box.ports]
            first = self.networks[box.ports[0].network]
            if box.route and not first.moving:
                via = first.gateways[0]
                found["routes"] = [{"to": f"10.99.{box.number}.0/24", "via": via}]
        if box.own_netns:
            found["netns"] = f"ns-{box.name}" + ("-%i" if box.replicas is not None else "")
        if box.somaxconn is not None:
            found["sysctls"] = {"net.core.somaxconn": box.somaxconn}
        if box.replicas is not None:
            found["replicas"] = box.replicas
        return found

    def _interface(self, box: Box, port: Port) -> dict[str, Any]:
        found: dict[str, Any] = {"network": port.network}
        if port.name is not None:
            found["name"] = port.name
        addresses = given_addresses(self.networks[port.network], box, port)
        if addresses:
            found["addresses"] = list(addresses.values())
        if port.mtu is not None:
            found["mtu"] = port.mtu
        if port.host_name:
            found["host_interface"] = f"h-{box.name}-{port.network}"
        return found

    # -- what must stand for it -----------------------------------------------------------------

    def members(self) -> Iterator[Member]:
        """Every container."""
        for box in self.boxes.values():
            ports = () if box.mode == "none" else tuple(
                (port.name or f"eth{i}", port) for i, port in enumerate(box.ports)
            )  # fmt: skip
            if box.replicas is None:
                netns = f"ns-{box.name}" if box.own_netns else box.name
                yield Member(box, box.name, netns, ports)
                continue
            for i in range(box.replicas):
                name = f"{box.name}-{i}"
                yield Member(box, name, f"ns-{name}" if box.own_netns else name, ports)

    def leases(self) -> set[LeaseKey]:
        """Everything that is to have an automatic address."""
        return {
            LeaseKey(member.name, port.network, name, version)
            for member in self.members()
            for name, port in member.ports
            for version in self.networks[port.network].versions
            if version not in given_addresses(self.networks[port.network], member.box, port)
        }

    def prefixed(self, network: str, address: str) -> str:
        """The address as its link carries it."""
        four = ":" not in address
        if self.networks[network].kind == "routed":
            return f"{address}/{32 if four else 128}"
        return f"{address}/{16 if four else 64}"
