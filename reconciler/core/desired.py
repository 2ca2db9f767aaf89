"""What the kernel is to hold: the spec and its addresses, resolved into kernel objects."""

from collections.abc import Mapping

import msgspec

from reconciler.core import names
from reconciler.core.leases import Key
from reconciler.core.model import (
    BITS,
    Address,
    Container,
    Interface,
    InterfaceAddress,
    Network,
    Place,
    Spec,
    Subnet,
)
from reconciler.core.policy import NetworkPolicy
from reconciler.core.rows import Space

PING_GROUPS = ("net.ipv4.ping_group_range", "0 2147483647")
"""Lets every group open ICMP datagram sockets: ping without CAP_NET_RAW (icmp(7))."""
TABLE = 0x7200
"""Reply routing of a container's n-th interface uses table and priority TABLE + n and TABLE."""
MTU_DEFAULT = 1500


class DesiredRoute(msgspec.Struct, frozen=True, kw_only=True):
    """A route inside a container, through the interface named `link`; `via` None: on link."""

    to: Subnet
    via: Address | None
    link: str
    table: int = 254

    def __str__(self) -> str:
        to = "default" if self.to.prefix == 0 else str(self.to)
        via = f" via {self.via}" if self.via else ""
        table = f" table {self.table}" if self.table != 254 else ""
        return f"{to}{via} dev {self.link}{table}"


class DesiredRule(msgspec.Struct, frozen=True, kw_only=True):
    """`ip rule add from SOURCE lookup TABLE priority PRIORITY`."""

    source: Subnet
    table: int
    priority: int = TABLE

    def __str__(self) -> str:
        return f"from {self.source} lookup {self.table}"


class Bridge(msgspec.Struct, frozen=True, kw_only=True):
    """The bridge of a network; of an external one only `name` and `mtu` are looked at."""

    network: str
    name: str
    external: bool
    mac: bytes
    mtu: int
    addresses: tuple[InterfaceAddress, ...]
    subnets: tuple[Subnet, ...]
    place: Place

    @property
    def object(self) -> str:
        """Its name in reports."""
        return f"network/{self.network}"


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A veth pair: the host's end in a bridge, the inner end in the container."""

    network: str
    container: str
    name: str
    host_name: str
    bridge: str
    mac: bytes
    host_mac: bytes
    mtu: int
    addresses: tuple[InterfaceAddress, ...]
    isolated: bool

    @property
    def alias(self) -> str:
        """The mark on the host's end."""
        return names.endpoint_alias(self.network, self.container, self.name)


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """A container with a namespace of its own (mode network or none)."""

    name: str
    netns: str
    endpoints: tuple[Endpoint, ...]
    routes: tuple[DesiredRoute, ...]
    rules: tuple[DesiredRule, ...]
    sysctls: tuple[tuple[str, str], ...]
    place: Place

    @property
    def object(self) -> str:
        """Its name in reports."""
        return f"container/{self.name}"


class Desired(msgspec.Struct, frozen=True, kw_only=True):
    """All that the kernel is to hold, and what stands in the way of the rest."""

    bridges: dict[str, Bridge]
    members: dict[str, Member]
    policies: tuple[NetworkPolicy, ...]
    forwarding: tuple[int, ...]
    """IP versions that the host must forward."""
    problems: dict[str, str]
    """Object (`network/a`, `container/b`) → why it cannot be made as declared."""


def desired_state(
    spec: Spec, addresses: Mapping[Key, Address], *, machine: str, host: Space
) -> Desired:
    """Resolve `spec`; `machine` is the text of /etc/machine-id, `host` the host's own dump."""
    problems: dict[str, str] = {}
    bridges = {}
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
        bridges[name] = _bridge(network, machine, network.mtu or _uplink_mtu(network, host))
        policies.append(_policy(network))
        if not network.internal:
            forwarding.update(s.version for s in network.subnets)
    members = {}
    for container in spec.containers.values():
        if container.mode in ("network", "none"):
            try:
                members[container.name] = _member(container, spec, bridges, addresses, machine)
            except _NoAddressError as error:
                problems[f"container/{container.name}"] = str(error)
    return Desired(
        bridges=bridges,
        members=members,
        policies=tuple(policies),
        forwarding=tuple(sorted(forwarding)),
        problems=problems,
    )


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
    )


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
    bridges: Mapping[str, Bridge],
    addresses: Mapping[Key, Address],
    machine: str,
) -> Member:
    endpoints = []
    routes: list[DesiredRoute] = []
    rules: list[DesiredRule] = []
    for position, interface in enumerate(container.interfaces):
        network = spec.networks[interface.network]
        endpoint = _endpoint(container, interface, network, bridges, addresses, machine)
        endpoints.append(endpoint)
        for route in network.routes:
            routes.append(DesiredRoute(to=route.to, via=route.via, link=interface.name))
        for gateway in network.gateways:
            version = gateway.version
            own = [a for a in endpoint.addresses if a.version == version and not a.is_link_local]
            if network.internal or not own:
                continue
            default = Subnet(version, 0, 0)
            if version in interface.default_versions:
                routes.append(DesiredRoute(to=default, via=gateway, link=interface.name))
                continue
            table = TABLE + position
            routes.append(
                DesiredRoute(to=own[0].subnet, via=None, link=interface.name, table=table)
            )
            routes.append(DesiredRoute(to=default, via=gateway, link=interface.name, table=table))
            for address in own:
                source = Subnet(version, address.value, BITS[version])
                rules.append(DesiredRule(source=source, table=table))
    for route in container.routes:
        through = next(
            (e.name for e in endpoints for a in e.addresses if a.subnet.holds(route.via)), None
        )
        if through is not None:
            routes.append(DesiredRoute(to=route.to, via=route.via, link=through))
    sysctls = dict([PING_GROUPS])
    sysctls.update(container.sysctls)
    return Member(
        name=container.name,
        netns=container.netns,
        endpoints=tuple(endpoints),
        routes=tuple(dict.fromkeys(routes)),
        rules=tuple(rules),
        sysctls=tuple(sorted(sysctls.items())),
        place=container.place,
    )


def _endpoint(
    container: Container,
    interface: Interface,
    network: Network,
    bridges: Mapping[str, Bridge],
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
    carried = []
    for address in bare:
        subnet = network.subnet(address.version)
        prefix = subnet.prefix if subnet else BITS[address.version]
        carried.append(InterfaceAddress(address.version, address.value, prefix))
    if any(a.version == 6 for a in bare):
        carried.append(_link_local(mac))
    bridge = bridges[network.name]
    return Endpoint(
        network=network.name,
        container=container.name,
        name=interface.name,
        host_name=interface.host_interface
        or names.host_interface(network.name, container.name, interface.name),
        bridge=bridge.name,
        mac=mac,
        host_mac=host_mac,
        mtu=interface.mtu or bridge.mtu,
        addresses=tuple(carried),
        isolated=network.isolate_members,
    )
