"""Spec → YAML text that loads again, with every default and every handed-out address filled in."""

from collections.abc import Collection, Iterable, Mapping

from reconciler.core.leases import Key
from reconciler.core.model import (
    Address,
    Container,
    Dns,
    Interface,
    Network,
    PortForward,
    Route,
    Spec,
)
from reconciler.core.names import mac_text

Lines = list[str]


def _text(value: object) -> str:
    """A double-quoted scalar: right whatever stands in it."""
    raw = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{raw}"'


def _list(values: Iterable[object]) -> str:
    return f"[{', '.join(_text(v) for v in values)}]"


def _port(port: PortForward) -> str:
    if not port.network:
        return _text(port)

    def run(first: int) -> str:
        return str(first) if port.count == 1 else f"{first}-{first + port.count - 1}"

    ip = f", host_ip: {_text(port.host_ip)}" if port.host_ip is not None else ""
    return (
        f"{{published: {_text(run(port.host_port))}, target: {_text(run(port.container_port))}, "
        f"protocol: {port.protocol}{ip}, network: {_text(port.network)}}}"
    )


def _flag(value: bool) -> str:
    return "true" if value else "false"


def _routes(routes: Iterable[Route]) -> str:
    return f"[{', '.join(f'{{to: {_text(r.to)}, via: {_text(r.via)}}}' for r in routes)}]"


def _dns(dns: Dns | None) -> str:
    if dns is None:
        return "none"
    if dns.host:
        return "host"
    hosts = ", ".join(f"{_text(name)}: {_text(address)}" for name, address in dns.hosts)
    return (
        f"{{servers: {_list(dns.servers)}, search: {_list(dns.search)}, "
        f"options: {_list(dns.options)}, hosts: {{{hosts}}}}}"
    )


def _host_access(n: Network) -> str:
    return _flag(n.host_access) if isinstance(n.host_access, bool) else _list(n.host_access)


def _network(n: Network) -> Lines:
    masquerade = {(): "false", (4,): "ipv4", (6,): "ipv6", (4, 6): "true"}[n.masquerade]
    lines = [
        f"  {_text(n.name)}:",
        f"    type: {n.type}",
        *([f"    bridge: {_text(n.bridge)}"] if n.bridge else []),
        f"    external: {_flag(n.external)}",
        f"    subnets: {_list(n.subnets)}",
        f"    gateways: {_list(n.gateways) if n.gateways else 'none'}",
        f"    ranges: {_list(n.ranges)}",
        f"    uplink: {_list(n.uplinks) if n.uplinks else 'any'}",
        f"    masquerade: {masquerade}",
        f"    inbound: {n.inbound}",
        f"    internal: {_flag(n.internal)}",
        f"    isolate_members: {_flag(n.isolate_members)}",
        *([] if n.external else [f"    antispoof: {_flag(n.antispoof)}"]),
        f"    host_access: {_host_access(n)}",
        f"    mtu: {n.mtu or 'auto'}",
    ]
    if n.allow:
        lines.append(f"    allow: {_list(n.allow)}")
    if n.denied:
        lines.append(f"    egress: {{deny: {_list(n.denied)}}}")
    if n.routes:
        lines.append(f"    routes: {_routes(n.routes)}")
    if n.dns is not None:
        lines.append(f"    dns: {_dns(None if n.dns == Dns() else n.dns)}")
    return lines


def _interface(
    c: Container, i: Interface, addresses: Mapping[Key, Address], networks: Mapping[str, Network]
) -> Lines:
    given: list[object] = list(i.addresses)
    for version in i.automatic:
        leased = addresses.get(Key(c.name, i.network, i.name, version))
        given.append(leased or "auto")
    lines = [
        f"      - network: {_text(i.network)}",
        f"        name: {_text(i.name)}",
        f"        addresses: {_list(dict.fromkeys(given)) if given else 'none'}",
    ]
    if i.mac is not None:
        lines.append(f"        mac: {_text(mac_text(i.mac))}")
    if i.mtu is not None:
        lines.append(f"        mtu: {i.mtu}")
    if i.host_interface is not None:
        lines.append(f"        host_interface: {_text(i.host_interface)}")
    if not i.default_versions:
        lines.append("        default_route: false")
    if not i.antispoof and not networks[i.network].external:
        lines.append("        antispoof: false")
    return lines


def _container(
    c: Container, addresses: Mapping[Key, Address], networks: Mapping[str, Network]
) -> Lines:
    lines = [f"  {_text(c.name)}:"]
    if c.join is not None:
        lines.append(f"    join: {_text(c.join)}")
    else:
        lines.append(f"    mode: {c.mode}")
        if c.mode != "host":
            lines.append(f"    netns: {_text(c.netns)}")
    if c.interfaces:
        lines.append("    interfaces:")
        for interface in c.interfaces:
            lines += _interface(c, interface, addresses, networks)
    if c.routes:
        lines.append(f"    routes: {_routes(c.routes)}")
    if c.ports:
        lines.append(f"    ports: [{', '.join(_port(p) for p in c.ports)}]")
    if c.sysctls:
        shown = ", ".join(f"{_text(name)}: {_text(value)}" for name, value in c.sysctls)
        lines.append(f"    sysctls: {{{shown}}}")
    if c.join is None:
        lines.append(f"    dns: {_dns(c.dns)}")
    if c.bundle is not None:
        lines.append(f"    bundle: {_text(c.bundle)}")
    return lines


def render(
    spec: Spec, addresses: Mapping[Key, Address], names: Collection[str] | None = None
) -> str:
    """YAML of all objects, or of those of `names`; what a hook attached is shown by name alone, for all
    together are what files might say."""
    networks = [n for n in spec.networks.values() if names is None or n.name in names]
    every = spec.containers.values()
    containers = [c for c in every if (c.name in names if names is not None else not c.hooked)]
    lines = ["version: 1"]
    if networks:
        lines += ["networks:", *(line for n in networks for line in _network(n))]
    if containers:
        lines += [
            "containers:",
            *(line for c in containers for line in _container(c, addresses, spec.networks)),
        ]
    return "\n".join(lines) + "\n"
