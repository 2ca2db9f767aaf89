"""What a container takes that nobody else may have, as texts that can be kept and looked up."""

from collections.abc import Iterator, Mapping

import msgspec

from reconciler.core import names, rules
from reconciler.core.amend import key_of
from reconciler.core.model import PROTOCOL, Address, Container, Network
from reconciler.core.observed import Observed, SeenContainer


class Count(msgspec.Struct, frozen=True):
    """How many there are in a network."""

    ports: int
    """Interfaces."""
    wanted: Mapping[int, int]
    """IP version → interfaces that want an address handed out."""
    given: Mapping[int, int]
    """IP version → addresses that are declared."""


def address_claim(network: str, address: Address) -> str:
    """That of an address of a network."""
    return f"address {network} {address.version} {address.value:x}"


def claims_of(container: Container) -> Iterator[str]:
    """All that a declared container takes."""
    yield f"name {container.name}"
    yield f"name {key_of(container)}"
    if container.mode in ("network", "none") and not container.hooked:
        yield f"netns {container.netns}"
    if container.bundle is not None:
        yield f"bundle {container.bundle}"
    for interface in container.interfaces:
        for address in interface.addresses:
            yield address_claim(interface.network, address)
        if interface.mac is not None:
            yield f"mac {interface.mac.hex()}"
        yield "link " + (
            interface.host_interface
            or names.host_interface(interface.network, container.name, interface.name)
        )
    for port in container.ports:
        # Whatever the address: who shares a port on another one is left to a look at everything.
        for number in range(port.host_port, port.host_port + abs(port.count)):
            yield f"port {port.protocol} {number}"


def claims_carried(seen: SeenContainer) -> Iterator[str]:
    """What a container has that stands otherwise than it is declared, or is not."""
    if seen.netns:
        yield f"netns {seen.netns}"
    network = {end.inner.index: end.network for end in seen.ends if end.inner is not None}
    for row in seen.space.addresses if seen.space is not None else ():
        if row.protocol == PROTOCOL and row.index in network:
            yield address_claim(network[row.index], row.address.address)
    for end in seen.ends:
        yield f"link {end.host.name}"
        if end.inner is not None:
            yield f"mac {end.inner.mac.hex()}"


def odd(observed: Observed, sealed: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """The claims of all that stands and was not found to be as declared, each with its holder."""
    for seen in observed.containers.values():
        if seen.name not in sealed:
            yield from ((claim, seen.name) for claim in claims_carried(seen))


def fits(fresh: Container, networks: Mapping[str, Network], counts: Mapping[str, Count]) -> bool:
    """Whether a container can be declared, as far as its networks go; False also where that takes a
    closer look. `counts`: of its networks, without it."""
    if any(rules.container_clashes(fresh, rules.Claims(), networks)):
        return False
    links = {n.bridge for n in networks.values()}
    if any(i.host_interface in links for i in fresh.interfaces):
        return False
    for name in {i.network for i in fresh.interfaces}:
        network, count = networks[name], counts[name]
        mine = [i for i in fresh.interfaces if i.network == name]
        if network.type == "bridge" and count.ports + len(mine) > rules.BRIDGE_PORTS:
            return False
        for version in (s.version for s in network.subnets):
            room = sum(r.last - r.first + 1 for r in network.ranges if r.version == version)
            room -= count.given.get(version, 0)
            room -= sum(
                r.version == version and r.first <= g.value <= r.last
                for r in network.ranges
                for g in network.gateways
                if g.version == version
            )
            room -= sum(a.version == version for i in mine for a in i.addresses)
            wanted = count.wanted.get(version, 0) + sum(version in i.automatic for i in mine)
            if wanted > room:
                return False
    return True
