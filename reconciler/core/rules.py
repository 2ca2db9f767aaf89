"""Errors of meaning that concern several objects: who holds what, who refers to whom."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping

import msgspec

from reconciler.core import names
from reconciler.core.model import Address, Container, Network, PortForward
from reconciler.core.schema import unknown

BRIDGE_PORTS = 1023
"""BR_PORT_BITS is 10 (net/bridge/br_private.h); port number 0 is not used."""


class Clash(msgspec.Struct, frozen=True):
    """An error of `kind`/`name` (kind: networks or containers), and where below it."""

    kind: str
    name: str
    path: tuple[str | int, ...]
    message: str


class Claims:
    """What objects have taken so far; whoever comes later and wants the same is refused."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, object], str] = {}
        self._ports: dict[tuple[str, int], list[tuple[PortForward, str]]] = {}

    def take(self, kind: str, value: object, holder: str) -> str | None:
        """Take it, or answer with the one that has it."""
        other = self._held.setdefault((kind, value), holder)
        return other if other != holder else None

    def held(self, kind: str) -> list[str]:
        """All of a kind that is taken."""
        return [str(value) for of, value in self._held if of == kind]

    def release(self, names: Collection[str]) -> None:
        """Let go of all that these containers hold."""
        if not names:
            return
        mine = {f"container {name}" for name in names}
        gone = [key for key, who in self._held.items() if who.partition("/")[0] in mine]
        for key in gone:
            del self._held[key]
        for others in self._ports.values():
            others[:] = [(port, who) for port, who in others if who not in mine]

    def addresses(self) -> Iterator[tuple[str, Address]]:
        """Every declared address, with its network."""
        return (value for of, value in self._held if of == "address")  # type: ignore[misc]

    def take_ports(self, port: PortForward, holder: str) -> str | None:
        """Take a run of host ports, or answer with who holds one of them."""
        for number in range(port.host_port, port.host_port + abs(port.count)):
            others = self._ports.setdefault((port.protocol, number), [])
            for other, who in others:
                if _same_address(other.host_ip, port.host_ip):
                    return f"host port {number}/{port.protocol} is {who}'s"
            others.append((port, holder))
        return None


def _same_address(one: Address | None, other: Address | None) -> bool:
    if one is None or other is None:
        return True
    return one == other or (one.version == other.version and 0 in (one.value, other.value))


def network_clashes(
    network: Network, claims: Claims, others: Mapping[str, Network]
) -> Iterator[Clash]:
    """What this network wants and another one has."""

    def clash(message: str, *path: str | int) -> Clash:
        return Clash("networks", network.name, path, message)

    if network.type == "routed":
        holder = claims.take("group", names.network_group(network.name), f"network {network.name}")
        if holder:
            yield clash(f"its name gives it the device group of {holder} (choose another name)")
    else:
        holder = claims.take("bridge", network.bridge, f"network {network.name}")
        if holder:
            yield clash(f"the bridge {network.bridge} is {holder}'s", "bridge")
    for other in others.values():
        for mine in network.subnets:
            for theirs in other.subnets:
                if other.name != network.name and mine.overlaps(theirs):
                    yield clash(f"{mine} overlaps {theirs} of network {other.name}", "subnets")


def allow_clashes(network: Network, networks: Mapping[str, Network]) -> Iterator[Clash]:
    """Networks that are let in and are not there, or send nothing out."""
    for number, name in enumerate(network.allow):
        other = networks.get(name)
        if other is None:
            text = unknown("network", name, networks)
        elif other.internal:
            text = f"network {name} is internal: its members go nowhere (drop it here, or `internal` there)"
        else:
            continue
        yield Clash("networks", network.name, ("allow", number), text)


def uplink_clashes(network: Network, bridges: Mapping[str, str]) -> Iterator[Clash]:
    """An uplink that is the bridge of a network."""
    for uplink in network.uplinks:
        if uplink in bridges:
            yield Clash(
                "networks",
                network.name,
                ("uplink",),
                f"{uplink} is the bridge of network {bridges[uplink]} (name a link that leads out)",
            )


def container_clashes(
    container: Container, claims: Claims, networks: Mapping[str, Network]
) -> Iterator[Clash]:
    """What this container wants and another one has, and routes and ports that lead nowhere."""
    me = f"container {container.name}"

    def clash(message: str, *path: str | int) -> Clash:
        return Clash("containers", container.name, path, message)

    if container.mode in ("network", "none") and not container.hooked:
        holder = claims.take("netns", container.netns, me)
        if holder:
            yield clash(f"the netns file {container.netns} is {holder}'s", "netns")
    if container.bundle is not None:
        holder = claims.take("bundle", container.bundle, me)
        if holder:
            yield clash(f"the bundle {container.bundle} is {holder}'s", "bundle")
    for number, interface in enumerate(container.interfaces):
        at = ("interfaces", number)
        for place, address in enumerate(interface.addresses):
            holder = claims.take("address", (interface.network, address), me)
            if holder:
                yield clash(f"{address} is {holder}'s already", *at, "addresses", place)
        if interface.mac is not None:
            holder = claims.take("mac", interface.mac, me)
            if holder:
                yield clash(f"{names.mac_text(interface.mac)} is {holder}'s", *at, "mac")
        if interface.host_interface is None:
            continue  # derived: see `derived_clashes`
        end = interface.host_interface
        holder = claims.take("bridge", end, f"{me}/{interface.name}")
        if holder:
            yield clash(f"the host's link {end} is {holder}'s", *at, "host_interface")
    inside = [networks[i.network] for i in container.interfaces]
    for number, route in enumerate(container.routes):
        if not any(s.holds(route.via) for network in inside for s in network.subnets):
            yield clash(f"via {route.via} is on no link of the container", "routes", number, "via")
        elif not any(
            network.type != "routed" or route.via in network.gateways
            for network in inside
            if any(s.holds(route.via) for s in network.subnets)
        ):
            home = next(n.name for n in inside if any(s.holds(route.via) for s in n.subnets))
            yield clash(routed_via(route.via, home), "routes", number, "via")
    for number, port in enumerate(container.ports):
        served = networks[container.serving(port).network]
        if served.internal:
            text = (
                f"ports cannot be published into the internal network {served.name} "
                "(name another network, or drop `internal`)"
            )
            yield clash(text, "ports", number)
        elif served.external:
            text = (
                f"ports cannot be published into the external network {served.name}, whose owner "
                "decides what it answers (name another network)"
            )
            yield clash(text, "ports", number)
        elif port.host_ip is not None and served.subnet(port.host_ip.version) is None:
            yield clash(
                f"{port} is published on an IPv{port.host_ip.version} address, and network "
                f"{served.name} has no such addresses (name another network, or drop the address)",
                "ports",
                number,
            )
        holder = claims.take_ports(port, me)
        if holder:
            text = f"{port}: {holder} already (publish it on another port or address)"
            yield clash(text, "ports", number)


def derived_clashes(claims: Claims, containers: Iterable[Container]) -> Iterator[Clash]:
    """Host ends whose derived name somebody has declared for another link.

    Derived names do not meet one another (names.py), so only a declared one that looks derived counts.
    """
    if not any(names.looks_derived(name) for name in claims.held("bridge")):
        return
    for container in containers:
        for number, interface in enumerate(container.interfaces):
            if interface.host_interface is None:
                end = names.host_interface(interface.network, container.name, interface.name)
                holder = claims.take("bridge", end, f"container {container.name}/{interface.name}")
                if holder:
                    text = f"the host's link {end} is {holder}'s"
                    yield Clash("containers", container.name, ("interfaces", number), text)


class Crowd:
    """How many members each network has, and how many of them want an address handed out."""

    def __init__(self) -> None:
        self.ports: Counter[str] = Counter()
        self.wanted: Counter[tuple[str, int]] = Counter()
        self.given: dict[tuple[str, int], set[int]] = {}

    def count(self, container: Container, step: int = 1) -> None:
        """Count a container in, or with `step` -1 out again."""
        for interface in container.interfaces:
            self.ports[interface.network] += step
            for version in interface.automatic:
                self.wanted[interface.network, version] += step
            for address in interface.addresses:
                given = self.given.setdefault((interface.network, address.version), set())
                (given.add if step > 0 else given.discard)(address.value)

    def clashes(self, networks: Mapping[str, Network]) -> Iterator[Clash]:
        """Networks with more members than their bridge or their ranges can take."""
        for name, count in self.ports.items():
            if count > BRIDGE_PORTS and networks[name].type == "bridge":
                yield Clash(
                    "networks",
                    name,
                    (),
                    f"{count} members, and a bridge takes {BRIDGE_PORTS} ports (spread them over "
                    "several networks, or use type: routed)",
                )
        for (name, version), count in self.wanted.items():
            room = self._room(networks[name], version) if count else 0
            if count > room:
                yield Clash(
                    "networks",
                    name,
                    ("ranges",),
                    f"{count} members want an IPv{version} address and {room} are there to be "
                    "handed out (widen `ranges` or `subnets`)",
                )

    def _room(self, network: Network, version: int) -> int:
        taken = {g.value for g in network.gateways if g.version == version}
        taken |= self.given.get((network.name, version), set())
        return sum(
            r.last - r.first + 1 - sum(r.first <= value <= r.last for value in taken)
            for r in network.ranges
            if r.version == version
        )


def join_clash(container: Container, containers: Mapping[str, Container]) -> Clash | None:
    """A `join` that leads nowhere."""
    target = container.join
    if target is None:
        return None
    message = ""
    if target == container.name:
        message = "a container cannot join itself"
    elif target not in containers:
        message = unknown("container", target, containers)
    elif containers[target].mode not in ("network", "none"):
        message = f"{target} has no namespace of its own (join one with mode network or none)"
    elif containers[target].hooked:
        message = f"{target} was attached by a hook and has no file in the netns dir (join a declared one)"
    return Clash("containers", container.name, ("join",), message) if message else None


def routed_via(via: Address, network: str) -> str:
    """Why a route's `via` cannot be: all that a member sends goes to the host, which looks at the
    destination alone."""
    return (
        f"via {via} is not the gateway of the routed network {network}, and a member reaches nothing "
        "else by itself (name the gateway, or make it a bridge network)"
    )
