"""One object of a file → Network or Container: every field read by its type, every default filled in.

What concerns several objects at once is looked at in `rules.py`.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, TypeVar

import msgspec

from reconciler.core import fields, names
from reconciler.core.leases import is_usable, whole_range
from reconciler.core.model import (
    Address,
    Container,
    Dns,
    Interface,
    Network,
    PortForward,
    Range,
    Route,
    Subnet,
)
from reconciler.core.schema import RawContainer, RawDns, RawInterface, RawNetwork, RawRoute, Words
from reconciler.core.tree import Path, Tree

T = TypeVar("T")
PRIVATE6 = Subnet(6, 0xFC << 120, 7)
RESERVED_TYPES = ("macvlan", "ipvlan", "vxlan", "routed")
MODES = ("network", "none", "host")
REPLICAS = range(1, 100_001)


class Trouble(Exception):  # noqa: N818 - a bag of errors, not one
    """Errors of one object: (path, message) pairs."""

    def __init__(self, errors: list[tuple[Path, str]]) -> None:
        super().__init__(errors)
        self.errors = errors


class Reader:
    """Reads the fields of one object and collects what is wrong with them."""

    def __init__(self, tree: Tree, path: Path) -> None:
        self.tree = tree
        self.path = path
        self.errors: list[tuple[Path, str]] = []

    def error(self, message: str, *path: str | int) -> None:
        """Note an error at `path` below the object."""
        self.errors.append(((*self.path, *path), message))

    def read(self, parse: Callable[[str], T], text: str, *path: str | int) -> T | None:
        """The value, or None with the error noted."""
        try:
            return parse(text)
        except ValueError as error:
            self.error(str(error), *path)
            return None

    def maybe(self, parse: Callable[[str], T], text: str | None, *path: str | int) -> T | None:
        """As `read`, where the key may be absent."""
        return None if text is None else self.read(parse, text, *path)

    def flag(self, text: str, *path: str | int) -> bool:
        """true or false."""
        return bool(self.read(fields.boolean, text, *path))

    def many(
        self, parse: Callable[[str], T], value: Words | None, *path: str | int
    ) -> Iterator[tuple[T, tuple[str | int, ...]]]:
        """The items of a list, or the one word that stands for a list of one; each with its path."""
        for text, where in words(value, path):
            found = self.read(parse, text, *where)
            if found is not None:
                yield found, where

    def done(self) -> None:
        """Raise what was noted."""
        if self.errors:
            raise Trouble(self.errors)


def words(
    value: Words | None, path: tuple[str | int, ...]
) -> Iterator[tuple[str, tuple[str | int, ...]]]:
    """Each word of a list with its path; a single word stands for a list of one."""
    if value is None:
        return
    if isinstance(value, str):
        yield value, path
        return
    for number, text in enumerate(value):
        yield text, (*path, number)


def _items(value: Any, path: tuple[str | int, ...]) -> Iterator[tuple[Any, tuple[str | int, ...]]]:
    if not isinstance(value, list):
        yield value, path
        return
    for number, item in enumerate(value):
        yield item, (*path, number)


def _routes(r: Reader, raw: RawRoute | list[RawRoute], *path: str | int) -> list[Route]:
    routes = []
    for item, where in _items(raw, path):
        to = r.read(
            lambda text: Subnet(4, 0, 0) if text == "default" else fields.subnet(text),
            item.to,
            *where,
            "to",
        )
        via = r.read(fields.address, item.via, *where, "via")
        if to is None or via is None:
            continue
        if item.to == "default":
            to = Subnet(via.version, 0, 0)
        if to.version != via.version:
            r.error(f"{via} and {to} are not of one IP version", *where, "via")
            continue
        routes.append(Route(to=to, via=via))
    return routes


def _dns(r: Reader, raw: str | RawDns | None) -> Dns | None:
    """None: nothing is said. `none` is a Dns that is empty."""
    if raw is None:
        return None
    if isinstance(raw, str):
        choice = r.read(lambda text: fields.word(text, "host", "none"), raw, "dns")
        return Dns(host=choice == "host")
    servers = tuple(v for v, _ in r.many(fields.address_or_loopback, raw.servers, "dns", "servers"))
    search = tuple(v for v, _ in r.many(_token, raw.search, "dns", "search"))
    options = tuple(v for v, _ in r.many(_token, raw.options, "dns", "options"))
    hosts = []
    for host, text in raw.hosts.items():
        address = r.read(fields.address_or_loopback, text, "dns", "hosts", host)
        if r.read(_token, host, "dns", "hosts", host) and address:
            hosts.append((host, address))
    return Dns(servers=servers, search=search, options=options, hosts=tuple(hosts))


def _token(text: str) -> str:
    if not text or any(c.isspace() or c == "#" or ord(c) < 33 for c in text) or len(text) > 253:
        raise ValueError(f"{text!r} cannot stand in resolv.conf or hosts (no white space, no #)")
    return text


def network(tree: Tree, path: Path, name: str, raw: RawNetwork) -> Network:
    """Read one network. Raises Trouble."""
    r = Reader(tree, path)
    r.read(lambda text: fields.name(text, 64, "network"), name)
    if raw.type in RESERVED_TYPES:
        r.error("reserved, not built yet (bridge is built)", "type")
    else:
        r.read(lambda text: fields.word(text, "bridge"), raw.type, "type")
    external = r.flag(raw.external, "external")
    internal = r.flag(raw.internal, "internal")
    bridge = r.maybe(fields.interface, raw.bridge, "bridge") or names.bridge_name(name)
    subnets: list[Subnet] = []
    for subnet, where in r.many(fields.subnet, raw.subnets, "subnets"):
        if any(s.version == subnet.version for s in subnets):
            r.error(f"{subnet} is a second IPv{subnet.version} subnet (one is possible)", *where)
        elif subnet.prefix == 0 or (subnet.version, subnet.value >> 120) == (6, 0xFF):
            r.error(f"{subnet} cannot be a network's subnet", *where)
        else:
            subnets.append(subnet)
    if not raw.subnets:
        r.error("`subnets` is missing (as in subnets: 176.10.0.0/16)")
    subnets.sort()
    gateways = _gateways(r, raw, subnets, external)
    uplinks = (
        []
        if raw.uplink == "any"
        else [v for v, _ in r.many(fields.interface, raw.uplink, "uplink")]
    )
    found = Network(
        name=name,
        type="bridge",
        bridge=bridge,
        external=external,
        subnets=tuple(subnets),
        gateways=tuple(gateways),
        ranges=tuple(_ranges(r, raw, subnets)),
        uplinks=tuple(dict.fromkeys(uplinks)),
        masquerade=_masquerade(r, raw, subnets, off=external or internal),
        inbound=r.read(lambda t: fields.word(t, "established", "open"), raw.inbound, "inbound")
        or "",
        internal=internal,
        isolate_members=r.flag(raw.isolate_members, "isolate_members"),
        mtu=None if raw.mtu == "auto" else _mtu(r, raw.mtu, any(s.version == 6 for s in subnets)),
        routes=tuple(_routes(r, raw.routes, "routes")),
        dns=_dns(r, raw.dns),
        place=tree.place(path, key=True),
    )
    for number, route in enumerate(found.routes):
        if not any(s.holds(route.via) for s in subnets):
            r.error(f"via {route.via} is in no subnet of network {name}", "routes", number, "via")
    r.done()
    return found


def _mtu(r: Reader, text: str, ipv6: bool) -> int | None:
    allowed = range(fields.MTU_IPV6, fields.MTU.stop) if ipv6 else fields.MTU
    return r.read(lambda t: fields.number(t, allowed, "MTU in bytes"), text, "mtu")


def _gateways(r: Reader, raw: RawNetwork, subnets: list[Subnet], external: bool) -> list[Address]:
    if raw.gateways == "none":
        return []
    if raw.gateways is None:
        if external:
            return []
        usable = [s for s in subnets if is_usable(s, whole_range(s).first)]
        return [Address(s.version, whole_range(s).first) for s in usable]
    gateways: list[Address] = []
    for gateway, where in r.many(fields.address, raw.gateways, "gateways"):
        subnet = next((s for s in subnets if s.version == gateway.version), None)
        if subnet is None or not subnet.holds(gateway):
            r.error(f"{gateway} is outside {_list(subnets)}", *where)
        elif not is_usable(subnet, gateway.value):
            r.error(f"{gateway} is the network or broadcast address of {subnet}", *where)
        elif any(g.version == gateway.version for g in gateways):
            r.error(f"{gateway} is a second IPv{gateway.version} gateway (one is possible)", *where)
        else:
            gateways.append(gateway)
    return sorted(gateways)


def _list(items: list[Subnet]) -> str:
    return ", ".join(str(i) for i in items) or "every subnet"


def _ranges(r: Reader, raw: RawNetwork, subnets: list[Subnet]) -> list[Range]:
    ranges: list[Range] = []
    for found, where in r.many(fields.address_range, raw.ranges, "ranges"):
        subnet = next((s for s in subnets if s.version == found.version), None)
        if subnet is None or found.first < subnet.value or found.last > subnet.last:
            r.error(f"{found} is outside {_list(subnets)}", *where)
        else:
            ranges.append(found)
    ranged = {found.version for found in ranges}
    return ranges + [whole_range(s) for s in subnets if s.version not in ranged]


def _masquerade(r: Reader, raw: RawNetwork, subnets: list[Subnet], *, off: bool) -> tuple[int, ...]:
    choice = raw.masquerade
    if choice is not None:
        r.read(lambda t: fields.word(t, "true", "false", "ipv4", "ipv6"), choice, "masquerade")
    if off:
        if choice not in (None, "false"):
            kind = "an external" if raw.external == "true" else "an internal"
            r.error(f"{kind} network is not masqueraded (drop the key)", "masquerade")
        return ()
    if choice in ("ipv4", "ipv6"):
        return tuple(s.version for s in subnets if f"ipv{s.version}" == choice)
    if choice == "false":
        return ()
    return tuple(s.version for s in subnets if s.version == 4 or PRIVATE6.overlaps(s))


def containers(
    tree: Tree, path: Path, name: str, raw: RawContainer, networks: Mapping[str, Network]
) -> list[Container]:
    """Read one container, or all replicas that it stands for. Raises Trouble.

    Interfaces in networks that are not in `networks` are passed over: their container is judged by
    `rules.py` first.
    """
    r = Reader(tree, path)
    r.read(lambda text: fields.name(text, 128, "container"), name)
    mode = "join" if raw.join is not None else raw.mode or "network"
    if mode != "join":
        r.read(lambda text: fields.word(text, *MODES), mode, "mode")
    _sensible(r, raw, mode)
    count = r.maybe(
        lambda t: fields.number(t, REPLICAS, "number of replicas"), raw.replicas, "replicas"
    )
    first = raw.netns or ("%n" if raw.replicas is not None else name)
    if raw.replicas is None and ("%" in first or "%" in (raw.bundle or "")):
        first, bundle = raw.netns or name, raw.bundle
    else:
        bundle = raw.bundle
    routes = tuple(_routes(r, raw.routes, "routes"))
    ports = [p for p, _ in r.many(fields.port_forward, raw.ports, "ports")]
    if raw.replicas is None and any(p.count < 0 for p in ports):
        r.error(
            "a run of host ports leads to one container port (only replicas share it out)", "ports"
        )
    sysctls = {}
    for key, value in raw.sysctls.items():
        known = r.read(fields.sysctl, key, "sysctls", key)
        if not value or len(value) > 100 or "\n" in value:
            r.error("a sysctl's value has 1 to 100 characters on one line", "sysctls", key)
        elif known:
            sysctls[known] = " ".join(value.split())
    interfaces = _interfaces(r, raw, networks)
    r.done()
    base = Container(
        name=name,
        netns=name,
        mode=mode,
        join=raw.join,
        interfaces=tuple(interfaces),
        routes=routes,
        ports=tuple(ports),
        sysctls=tuple(sorted(sysctls.items())),
        dns=_container_dns(r, raw, networks, interfaces),
        bundle=None,
        place=tree.place(path, key=True),
    )
    if count is None:
        netns = r.read(fields.file_name, raw.netns, "netns") if raw.netns else _file(r, name)
        folder = r.maybe(fields.folder, bundle, "bundle")
        r.done()
        return [msgspec.structs.replace(base, netns=netns or name, bundle=folder)]
    result = [_replica(r, raw, base, number, count) for number in range(count)]
    r.done()
    return result


def _file(r: Reader, name: str) -> str | None:
    return r.read(fields.file_name, name)


def _container_dns(
    r: Reader, raw: RawContainer, networks: Mapping[str, Network], interfaces: list[Interface]
) -> Dns | None:
    own = _dns(r, raw.dns)
    if own is not None:
        return None if own == Dns() else own
    for interface in interfaces:
        given = networks[interface.network].dns
        if given is not None:
            return None if given == Dns() else given
    return Dns(host=True) if raw.bundle is not None else None


def _sensible(r: Reader, raw: RawContainer, mode: str) -> None:
    """Keys that make no sense for the mode."""

    def refuse(*keys: str, why: str) -> None:
        for key in keys:
            if getattr(raw, key) not in (None, [], {}):
                r.error(f"`{key}` makes no sense with {why} (drop it)", key)

    if mode == "join":
        every = ("netns", "mode", "interfaces", "routes", "ports", "sysctls", "dns", "replicas")
        refuse(*every, why="`join`")
    elif mode == "host":
        refuse("netns", "interfaces", "routes", "ports", "sysctls", why="mode host")
    elif mode == "none":
        refuse("interfaces", "routes", "ports", why="mode none")
    elif not raw.interfaces and mode == "network":
        r.error("`interfaces` is missing (name a network, or say mode: none)")


def _expand(text: str, name: str, number: int) -> str:
    result = ""
    parts = iter(text)
    for char in parts:
        if char != "%":
            result += char
            continue
        code = next(parts, "")
        if code not in ("n", "i", "%"):
            raise ValueError(f"%{code} in {text!r} is unknown (%n, %i or %%)")
        result += {"n": name, "i": str(number), "%": "%"}[code]
    return result


def _replica(r: Reader, raw: RawContainer, base: Container, number: int, count: int) -> Container:
    name = f"{base.name}-{number}"
    last = number == count - 1
    if last:
        r.read(lambda text: fields.name(text, 128, "container"), name, "replicas")

    def fill(text: str | None, key: str, parse: Callable[[str], str]) -> str | None:
        if text is None:
            return None
        return (
            r.read(lambda t: parse(_expand(t, name, number)), text, key) if not r.errors else None
        )

    ports = []
    for port in base.ports:
        runs = abs(port.count)
        if (port.count == 1 and count > 1) or runs % count:
            if last:
                r.error(f"{runs} host ports cannot be shared by {count} replicas", "ports")
            continue
        share = runs // count
        ports.append(
            PortForward(
                host_ip=port.host_ip,
                host_port=port.host_port + number * share,
                container_port=port.container_port + (number * share if port.count > 0 else 0),
                count=share if port.count > 0 or share == 1 else -share,
                protocol=port.protocol,
            )
        )
    return msgspec.structs.replace(
        base,
        name=name,
        netns=fill(raw.netns or "%n", "netns", fields.file_name) or name,
        bundle=fill(raw.bundle, "bundle", fields.folder),
        ports=tuple(ports),
    )


def _interfaces(r: Reader, raw: RawContainer, networks: Mapping[str, Network]) -> list[Interface]:
    found: list[tuple[RawInterface, tuple[str | int, ...]]] = []
    for item, where in _items(raw.interfaces, ("interfaces",)):
        found.append((RawInterface(network=item) if isinstance(item, str) else item, where))
    flags = {
        where: r.maybe(fields.boolean, item.default_route, *where, "default_route")
        for item, where in found
    }
    defaults = _default_versions(r, found, flags, networks)
    result: list[Interface] = []
    for position, (item, where) in enumerate(found):
        network = networks.get(item.network)
        if network is None:
            continue
        name = r.maybe(fields.interface, item.name, *where, "name") or f"eth{position}"
        if any(i.name == name for i in result):
            r.error(f"two interfaces are named {name}", *where, "name")
        if raw.replicas is not None:
            for key in ("mac", "host_interface"):
                if getattr(item, key) is not None:
                    r.error(f"replicas cannot share one `{key}` (drop it)", *where, key)
        addresses, automatic = _addresses(r, item, where, network)
        if raw.replicas is not None and addresses:
            r.error("replicas cannot share one address (drop it: `ranges` hands them out)",
                    *where, "addresses")  # fmt: skip
        mtu = None
        if item.mtu is not None:
            allowed = range(fields.MTU_IPV6 if len(network.subnets) > 1 else 68,
                            (network.mtu or 65535) + 1)  # fmt: skip
            parse = partial(fields.number, allowed=allowed, what="MTU up to the network's")
            mtu = r.read(parse, item.mtu, *where, "mtu")
        result.append(
            Interface(
                network=network.name,
                name=name,
                addresses=tuple(addresses),
                automatic=tuple(automatic),
                mac=r.maybe(fields.mac, item.mac, *where, "mac"),
                mtu=mtu,
                host_interface=r.maybe(
                    fields.interface, item.host_interface, *where, "host_interface"
                ),
                default_versions=defaults.get(where, ()),
                place=r.tree.place((*r.path, *where)),
            )
        )
    return result


def _addresses(
    r: Reader, item: RawInterface, where: tuple[str | int, ...], network: Network
) -> tuple[list[Address], list[int]]:
    given: list[Address] = []
    automatic = {s.version for s in network.subnets}
    listed = list(words(item.addresses, (*where, "addresses")))
    for text, at in listed:
        if text == "none":
            automatic = set()
            if len(listed) > 1:
                r.error("`none` stands alone (drop it, or the addresses)", *at)
        elif text == "dhcp":
            r.error("reserved, not built yet", *at)
        elif text != "auto":
            address = r.read(fields.address, text, *at)
            if address is None:
                continue
            subnet = network.subnet(address.version)
            if subnet is None or not subnet.holds(address):
                where_to = _list([subnet] if subnet else list(network.subnets))
                r.error(f"{address} is outside {where_to} of network {network.name}", *at)
            elif not is_usable(subnet, address.value):
                r.error(f"{address} is the network or broadcast address of {subnet}", *at)
            elif address in network.gateways:
                r.error(f"{address} is the gateway of network {network.name}", *at)
            elif address in given:
                r.error(f"{address} stands here twice", *at)
            else:
                given.append(address)
                automatic.discard(address.version)
    return given, sorted(automatic)


def _default_versions(
    r: Reader,
    found: list[tuple[RawInterface, tuple[str | int, ...]]],
    flags: Mapping[tuple[str | int, ...], bool | None],
    networks: Mapping[str, Network],
) -> dict[tuple[str | int, ...], tuple[int, ...]]:
    """Which interface has the default route of which IP version: the one that says so, else the
    first whose network has a gateway of that version."""
    result: dict[tuple[str | int, ...], tuple[int, ...]] = {}
    for version in (4, 6):
        able = []
        for item, where in found:
            network = networks.get(item.network)
            if network and not network.internal and network.gateway(version):
                able.append(where)
        said = [where for where in able if flags[where]]
        if len(said) > 1:
            r.error(f"a second default route for IPv{version} (one interface can have it)",
                    *said[1], "default_route")  # fmt: skip
        may = said or [where for where in able if flags[where] is not False]
        if may:
            result[may[0]] = (*result.get(may[0], ()), version)
    for item, where in found:
        network = networks.get(item.network)
        if flags[where] and network and (network.internal or not network.gateways):
            r.error(f"network {network.name} has no gateway to lead a default route to",
                    *where, "default_route")  # fmt: skip
    return result
