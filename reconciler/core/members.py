"""One container of a file → Container, or all replicas that it stands for."""

from collections.abc import Callable, Mapping
from functools import partial

import msgspec

from reconciler.core import fields
from reconciler.core.leases import is_usable
from reconciler.core.model import Address, Container, Dns, Interface, Network, PortForward
from reconciler.core.reader import Reader, items, read_dns, read_routes, subnet_list, words
from reconciler.core.schema import RawContainer, RawInterface, RawPort
from reconciler.core.tree import Path, Tree

MODES = ("network", "none", "host")
REPLICAS = range(1, 100_001)


Templates = dict[bytes, Container]
"""What was read from a body that says nothing of its own: thousands of containers share one."""


def containers(
    tree: Tree,
    path: Path,
    name: str,
    raw: RawContainer,
    networks: Mapping[str, Network],
    templates: Templates,
) -> list[Container]:
    """Read one container, or all replicas that it stands for. Raises Trouble.

    Interfaces in networks that are not in `networks` are passed over: their container is judged by
    `rules.py` first.
    """
    found = _containers(tree, path, name, raw, networks, templates)
    if tree.hook:
        return [msgspec.structs.replace(one, netns="", hooked=True) for one in found]
    return found


def _containers(
    tree: Tree,
    path: Path,
    name: str,
    raw: RawContainer,
    networks: Mapping[str, Network],
    templates: Templates,
) -> list[Container]:
    shape = msgspec.json.encode(raw)
    known = templates.get(shape)
    if known is not None and fields.is_name(name, 128):
        place = tree.place(path, key=True)
        return [msgspec.structs.replace(known, name=name, netns=name, place=place)]
    found = _read(tree, path, name, raw, networks, shape)
    own = (raw.netns, raw.bundle, raw.join, raw.replicas)
    if own == (None, None, None, None) and not any(i.addresses for i in found[0].interfaces):
        templates[shape] = found[0]
    return found


def _read(
    tree: Tree,
    path: Path,
    name: str,
    raw: RawContainer,
    networks: Mapping[str, Network],
    shape: bytes,
) -> list[Container]:
    r = Reader(tree, path)
    r.read(lambda text: fields.name(text, 128, "container"), name)
    mode = "join" if raw.join is not None else raw.mode or "network"
    if mode != "join":
        r.read(lambda text: fields.word(text, *MODES), mode, "mode")
    _sensible(r, raw, mode)
    count = r.maybe(
        lambda t: fields.number(t, REPLICAS, "number of replicas"), raw.replicas, "replicas"
    )
    netns, folder = name, None
    if raw.replicas is None:
        netns = r.read(fields.file_name, raw.netns or name, "netns") or name
        folder = r.maybe(fields.folder, raw.bundle, "bundle")
    routes = tuple(read_routes(r, raw.routes, "routes"))
    ports = _ports(r, raw)
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
        netns=netns,
        mode=mode,
        join=raw.join,
        interfaces=tuple(interfaces),
        routes=routes,
        ports=tuple(ports),
        sysctls=tuple(sorted(sysctls.items())),
        dns=_container_dns(r, raw, networks, interfaces),
        bundle=folder,
        place=tree.place(path, key=True),
        shape=shape,
    )
    if count is None:
        return [base]
    result = [_replica(r, raw, base, number, count) for number in range(count)]
    r.done()
    return result


def _ports(r: Reader, raw: RawContainer) -> list[PortForward]:
    """`8080:80`, or the long form."""
    found = []
    for item, where in items(raw.ports, ("ports",)):
        if isinstance(item, str):
            port = r.read(fields.port_forward, item, *where)
        else:
            port = _long_port(r, item, where)
        if port is not None:
            found.append(port)
    inside = {i if isinstance(i, str) else i.network for i, _ in items(raw.interfaces, ())}
    for port in found:
        if port.network and port.network not in inside:
            r.error(f"{port}: the container has no interface in network {port.network}", "ports")
    return found


def _long_port(r: Reader, raw: RawPort, where: tuple[str | int, ...]) -> PortForward | None:
    protocol = r.read(
        lambda text: fields.word(text, "tcp", "udp", "sctp"), raw.protocol, *where, "protocol"
    )
    host_ip = r.maybe(fields.address_or_loopback, raw.host_ip, *where, "host_ip")

    def whole(text: str) -> PortForward:
        port = fields.published(
            text, raw.target, host_ip=host_ip, protocol=protocol or "tcp", text=text
        )
        return msgspec.structs.replace(port, network=raw.network or "")

    return r.read(whole, raw.published, *where, "published")


def _container_dns(
    r: Reader, raw: RawContainer, networks: Mapping[str, Network], interfaces: list[Interface]
) -> Dns | None:
    own = read_dns(r, raw.dns)
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
        if (port.count == 1 and count > 1) or runs % count or (port.count < 0 and runs != count):
            if last:
                r.error(f"{runs} host ports cannot be shared by {count} replicas", "ports")
            continue
        share = runs // count
        ports.append(
            PortForward(
                host_ip=port.host_ip,
                host_port=port.host_port + number * share,
                container_port=port.container_port + (number * share if port.count > 0 else 0),
                count=share,
                protocol=port.protocol,
                network=port.network,
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
    for item, where in items(raw.interfaces, ("interfaces",)):
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
            allowed = range(fields.MTU_IPV6 if network.subnet(6) is not None else 68,
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
                antispoof=_antispoof(r, item, where, network),
            )
        )
    return result


def _antispoof(
    r: Reader, item: RawInterface, where: tuple[str | int, ...], network: Network
) -> bool:
    given = r.maybe(fields.boolean, item.antispoof, *where, "antispoof")
    if given is None or given == network.antispoof:
        return network.antispoof
    if network.external:
        r.error("nothing is checked on somebody else's bridge (drop the key)", *where, "antispoof")
    elif network.type == "routed":
        r.error(
            f"one rule checks all members of the routed network {network.name} alike "
            f"(say antispoof: {'true' if given else 'false'} there, or give this one a network of its own)",
            *where,
            "antispoof",
        )
    return given


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
                where_to = subnet_list([subnet] if subnet else list(network.subnets))
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
