"""What the kernel is to hold: the spec and its addresses, resolved into kernel objects."""

from collections.abc import Iterator, Mapping

import msgspec

from reconciler.core import names
from reconciler.core.digests import blake2b
from reconciler.core.leases import Key
from reconciler.core.model import (
    BITS,
    PING_GROUPS,
    PORT_HAIRPIN,
    PORT_ISOLATED,
    PORT_LOCKED,
    Address,
    Container,
    Interface,
    InterfaceAddress,
    Network,
    Spec,
    Subnet,
)
from reconciler.core.policy import NetworkPolicy, Publication
from reconciler.core.rows import Space
from reconciler.core.wanted import (
    DEAF,
    OFF,
    TABLE,
    Bridge,
    Desired,
    DesiredRoute,
    DesiredRule,
    Endpoint,
    Member,
    Routed,
)

EVERY_GROUP = "0 2147483647"
MTU_DEFAULT = 1500
VERSION = 4
"""Of what is made from a declaration, and of what counts as a difference: to be raised with either,
for what an older one found to be right is not looked at again."""


def desired_state(
    spec: Spec,
    addresses: Mapping[Key, Address],
    *,
    machine: str,
    host: Space,
    groups: str = EVERY_GROUP,
) -> Desired:
    """Resolve `spec`; `machine` is the text of /etc/machine-id, `host` the host's own dump, `groups`
    the first and the last group id that there are."""
    networks = resolved(spec, machine=machine, host=host)
    return with_members(networks, spec, addresses, machine=machine, groups=groups)


def resolved(spec: Spec, *, machine: str, host: Space) -> Desired:
    """The networks of `spec` alone; see `desired_state`."""
    problems: dict[str, str] = {}
    bridges: dict[str, Bridge] = {}
    routed: dict[str, Routed] = {}
    policies = []
    forwarding: set[int] = set()
    external = {link.name: link for link in host.links if link.kind == "bridge"}
    for name in sorted(spec.networks):
        network = spec.networks[name]
        if network.external:
            link = external.get(network.bridge)
            if link is None:
                problems[f"network/{name}"] = (
                    f"the bridge {network.bridge} is not there "
                    "(external: true waits for its owner to make it)"
                )
            bridges[name] = _bridge(network, machine, link.mtu if link else MTU_DEFAULT)
            continue
        mtu = network.mtu or _uplink_mtu(network, host)
        if network.type == "routed":
            routed[name] = _routed(network, mtu)
        else:
            bridges[name] = _bridge(network, machine, mtu)
        policies.append(_policy(network))
        # Members of a routed network reach one another through the host.
        among = network.type == "routed" and not network.isolate_members
        if among or not network.internal:
            forwarding.update(s.version for s in network.subnets)
    return Desired(
        bridges=bridges,
        routed=routed,
        members={},
        policies=tuple(policies),
        forwarding=tuple(sorted(forwarding)),
        problems=problems,
    )


def with_members(
    networks: Desired,
    spec: Spec,
    addresses: Mapping[Key, Address],
    *,
    machine: str,
    groups: str = EVERY_GROUP,
) -> Desired:
    """The containers of `spec` in networks that are resolved already."""
    links: dict[str, Bridge | Routed] = {**networks.bridges, **networks.routed}
    problems = {n: text for n, text in networks.problems.items() if n.startswith("network/")}
    members = {}
    keys = {
        name: repr((VERSION, machine, spec.networks[name], link)) for name, link in links.items()
    }
    for container in spec.containers.values():
        if container.mode in ("network", "none"):
            try:
                members[container.name] = _member(
                    container, spec, links, addresses, machine, groups, keys
                )
            except _NoAddressError as error:
                problems[f"container/{container.name}"] = str(error)
    return msgspec.structs.replace(networks, members=members, problems=problems)


def fingerprint(
    networks: Desired,
    spec: Spec,
    addresses: Mapping[Key, Address],
    *,
    machine: str,
    groups: str,
) -> bytes:
    """A digest of all that `with_members` goes by: where it is the same, so is what comes of it."""
    inputs = (VERSION, machine, groups, networks, spec, list(addresses.items()))
    return blake2b(msgspec.json.encode(inputs), digest_size=16).digest()


class _NoAddressError(Exception):
    """An automatic address was not to be had."""


def _uplink_mtu(network: Network, host: Space) -> int:
    """The smallest MTU of the named uplinks, else that of the default route's link, else 1500."""
    named = [link.mtu for link in host.links if link.name in network.uplinks]
    if named:
        return min(named)
    defaults = sorted(
        (route.to.version, route.metric, route.index)
        for route in host.routes
        if route.to.prefix == 0 and route.table == 254
    )
    by_index = {link.index: link.mtu for link in host.links}
    return next((by_index[i] for _, _, i in defaults if i in by_index), MTU_DEFAULT)


def _policy(network: Network) -> NetworkPolicy:
    return NetworkPolicy(
        name=network.name,
        link=network.bridge,
        subnets=network.subnets,
        uplinks=network.uplinks,
        masquerade=() if network.internal else network.masquerade,
        inbound=network.inbound,
        internal=network.internal,
        isolate_members=network.isolate_members,
        allow=network.allow,
        host_access=network.host_access,
        denied=network.denied,
        antispoof=network.antispoof,
        group=names.network_group(network.name) if network.type == "routed" else 0,
    )


def _routed(network: Network, mtu: int) -> Routed:
    return Routed(
        network=network.name,
        group=names.network_group(network.name),
        mtu=mtu,
        addresses=tuple(_whole(g) for g in network.gateways),
        subnets=network.subnets,
        place=network.place,
    )


def _whole(address: Address) -> InterfaceAddress:
    return InterfaceAddress(address.version, address.value, BITS[address.version])


def _bridge(network: Network, machine: str, mtu: int) -> Bridge:
    mac = names.bridge_mac(machine, network.name)
    addresses = []
    for gateway in network.gateways:
        subnet = network.subnet(gateway.version)
        if subnet is not None:
            addresses.append(InterfaceAddress(gateway.version, gateway.value, subnet.prefix))
    if network.subnet(6) is not None:
        # Without one a bridge never solicits neighbours for what it forwards.
        addresses.append(_link_local(mac))
    return Bridge(
        network=network.name,
        name=network.bridge,
        external=network.external,
        mac=mac,
        mtu=mtu,
        addresses=() if network.external else tuple(addresses),
        subnets=network.subnets,
        place=network.place,
    )


def _link_local(mac: bytes) -> InterfaceAddress:
    return InterfaceAddress(6, names.link_local(mac).value, 64)


def _member(
    container: Container,
    spec: Spec,
    networks: Mapping[str, Bridge | Routed],
    addresses: Mapping[Key, Address],
    machine: str,
    groups: str,
    keys: Mapping[str, str],
) -> Member:
    endpoints = []
    routes: list[DesiredRoute] = []
    rules: list[DesiredRule] = []
    for position, interface in enumerate(container.interfaces):
        network = spec.networks[interface.network]
        link = networks[interface.network]
        endpoint = _endpoint(container, interface, network, link, addresses, machine)
        endpoints.append(endpoint)
        if not endpoint.group:
            routes += _given_routes(network, interface.name)
        for gateway in network.gateways:
            version = gateway.version
            own = [a for a in endpoint.addresses if a.version == version and not a.is_link_local]
            if not own:
                continue
            through = Subnet(version, 0, 0)
            near = own[0].subnet
            if endpoint.group:
                # The way to the gateway comes first: the kernel asks for it when it is named.
                near = Subnet(version, gateway.value, BITS[version])
                routes.append(DesiredRoute(to=near, via=None, link=interface.name))
            if not network.internal and version in interface.default_versions:
                routes.append(DesiredRoute(to=through, via=gateway, link=interface.name))
                continue
            if endpoint.group:
                fellows = network.subnet(version)
                assert fellows is not None  # a gateway lies in a subnet of its version
                routes.append(DesiredRoute(to=fellows, via=gateway, link=interface.name))
            if network.internal:
                continue
            table = TABLE + position
            routes.append(DesiredRoute(to=near, via=None, link=interface.name, table=table))
            routes.append(DesiredRoute(to=through, via=gateway, link=interface.name, table=table))
            for address in own:
                source = Subnet(version, address.value, BITS[version])
                rules.append(DesiredRule(source=source, table=table))
        if endpoint.group:
            routes += _given_routes(network, interface.name)
    for route in container.routes:
        behind = next((e.name for e in endpoints if _reaches(e, route.via)), None)
        if behind is not None:
            routes.append(DesiredRoute(to=route.to, via=route.via, link=behind))
    sysctls = {PING_GROUPS: groups, **dict(container.sysctls)}
    return Member(
        name=container.name,
        netns=container.netns,
        endpoints=tuple(endpoints),
        routes=tuple(dict.fromkeys(routes)),
        rules=tuple(rules),
        sysctls=tuple(sorted(sysctls.items())),
        place=container.place,
        publications=tuple(_publications(container, endpoints)),
        key=_key(container, endpoints, groups, keys),
        hooked=container.hooked,
    )


def _publications(container: Container, endpoints: list[Endpoint]) -> Iterator[Publication]:
    """Where each published port leads: to the first address of either version, as far as asked for."""
    for port in container.ports:
        serving = container.serving(port)
        endpoint = next(e for e in endpoints if e.name == serving.name)
        for version in (4, 6):
            own = [a for a in endpoint.addresses if a.version == version and not a.is_link_local]
            if not own or (port.host_ip is not None and port.host_ip.version != version):
                continue
            yield Publication(
                network=endpoint.network,
                container=container.name,
                version=version,
                protocol=port.protocol,
                host_ip=port.host_ip,
                host_port=port.host_port,
                count=port.count,
                target=own[0].address,
                target_port=port.container_port,
            )


def _key(
    container: Container, endpoints: list[Endpoint], groups: str, keys: Mapping[str, str]
) -> bytes:
    """What a member is made from: its body, its names, its addresses, and its networks whole."""
    digest = blake2b(container.shape, digest_size=16)
    whose = (container.name, container.netns, str(container.hooked), groups)
    digest.update("\0".join(("", *whose)).encode())
    for endpoint in endpoints:
        digest.update(f"\0{endpoint.addresses}\0{endpoint.mac.hex()}".encode())
        digest.update(keys[endpoint.network].encode())
    return digest.digest()


def _given_routes(network: Network, link: str) -> list[DesiredRoute]:
    return [DesiredRoute(to=route.to, via=route.via, link=link) for route in network.routes]


def _reaches(endpoint: Endpoint, via: Address) -> bool:
    if endpoint.group:
        return via in endpoint.gateways
    return any(a.subnet.holds(via) for a in endpoint.addresses)


def _port(container: Container, interface: Interface, network: Network) -> int:
    """How the bridge is to treat a member's port."""
    port = PORT_ISOLATED if network.isolate_members else 0
    if any(container.serving(p) is interface for p in container.ports):
        # Where br_netfilter translates what a container sends to its own published port, the bridge
        # has to send it back to where it came from.
        port |= PORT_HAIRPIN
    return port | PORT_LOCKED if interface.antispoof else port


def _ipv6(network: Network) -> str:
    """How members treat IPv6: without a subnet of it they have none, and where all addresses are ours
    to give no router is believed. Where nothing is declared at all, nothing is said."""
    if network.subnets and network.subnet(6) is None:
        return OFF
    return "" if network.external else DEAF


def _endpoint(
    container: Container,
    interface: Interface,
    network: Network,
    link: Bridge | Routed,
    addresses: Mapping[Key, Address],
    machine: str,
) -> Endpoint:
    bare = list(interface.addresses)
    for version in interface.automatic:
        given = addresses.get(Key(container.name, network.name, interface.name, version))
        if given is None:
            raise _NoAddressError(f"{interface.name} has no IPv{version} address in {network.name}")
        bare.append(given)
    # The MAC follows the first IPv4 address, else the first of all.
    bare.sort(key=lambda a: a.version)
    if bare:
        mac = names.member_mac(machine, network.name, bare[0])
        host_mac = names.host_mac(machine, network.name, bare[0])
    else:
        where = (machine, network.name, container.name, interface.name)
        mac, host_mac = names.bare_mac(*where, host=False), names.bare_mac(*where, host=True)
    mac = interface.mac or mac
    host_name = interface.host_interface or names.host_interface(
        network.name, container.name, interface.name
    )
    neighbours = () if network.external else tuple(bare)
    if isinstance(link, Routed):
        gateways = tuple(g for g in network.gateways if any(g.version == a.version for a in bare))
        sources = {g.version: g for g in gateways}
        return Endpoint(
            network=network.name,
            container=container.name,
            name=interface.name,
            host_name=host_name,
            bridge="",
            mac=mac,
            host_mac=host_mac,
            mtu=interface.mtu or link.mtu,
            addresses=tuple(_whole(address) for address in bare),
            port=0,
            group=link.group,
            gateways=gateways,
            neighbours=neighbours,
            ipv6=_ipv6(network),
            hooked=container.hooked,
            routes=tuple(
                DesiredRoute(
                    to=_whole(address).subnet,
                    via=None,
                    link=host_name,
                    source=sources.get(address.version),
                )
                for address in bare
            ),
        )
    carried = []
    for address in bare:
        subnet = network.subnet(address.version)
        prefix = subnet.prefix if subnet else BITS[address.version]
        carried.append(InterfaceAddress(address.version, address.value, prefix))
    if any(a.version == 6 for a in bare):
        carried.append(_link_local(mac))
    return Endpoint(
        network=network.name,
        container=container.name,
        name=interface.name,
        host_name=host_name,
        bridge=link.name,
        mac=mac,
        host_mac=host_mac,
        mtu=interface.mtu or link.mtu,
        addresses=tuple(carried),
        port=_port(container, interface, network),
        neighbours=neighbours,
        ipv6=_ipv6(network),
        hooked=container.hooked,
    )
