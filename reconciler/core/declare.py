"""One network of a file → Network: every field read by its type, every default filled in.

Containers are read in `members.py`; what concerns several objects is looked at in `rules.py`.
"""

from reconciler.core import fields, names
from reconciler.core.leases import is_usable, whole_range
from reconciler.core.model import Address, HostPort, Network, Range, Subnet
from reconciler.core.reader import Reader, read_dns, read_routes, subnet_list
from reconciler.core.rules import routed_via
from reconciler.core.schema import RawNetwork
from reconciler.core.tree import Path, Tree

PRIVATE6 = Subnet(6, 0xFC << 120, 7)
RESERVED_TYPES = ("macvlan", "ipvlan", "vxlan")


def network(tree: Tree, path: Path, name: str, raw: RawNetwork) -> Network:
    """Read one network. Raises Trouble."""
    r = Reader(tree, path)
    r.read(lambda text: fields.name(text, 64, "network"), name)
    if raw.type in RESERVED_TYPES:
        r.error("reserved, not built yet (bridge or routed)", "type")
    else:
        r.read(lambda text: fields.word(text, "bridge", "routed"), raw.type, "type")
    routed = raw.type == "routed"
    external = r.flag(raw.external, "external")
    internal = r.flag(raw.internal, "internal")
    bridge = r.maybe(fields.interface, raw.bridge, "bridge") or names.bridge_name(name)
    if routed:
        bridge = ""
        if raw.bridge is not None:
            r.error("a routed network has no bridge (drop the key)", "bridge")
        if external:
            r.error("a routed network has no bridge that could be external (drop it)", "external")
        if raw.gateways == "none":
            text = "members of a routed network reach everything through its gateway (drop the key)"
            r.error(text, "gateways")
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
    for subnet in subnets if routed and raw.gateways not in (None, "none") else ():
        if not any(g.version == subnet.version for g in gateways):
            r.error(f"a routed network needs a gateway in {subnet} too (name one)", "gateways")
    uplinks = (
        []
        if raw.uplink == "any"
        else [v for v, _ in r.many(fields.interface, raw.uplink, "uplink")]
    )
    found = Network(
        name=name,
        type="routed" if routed else "bridge",
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
        antispoof=_antispoof(r, raw, external=external),
        allow=_allowed(r, raw, name, internal=internal),
        host_access=_host_access(r, raw),
        denied=_denied(r, raw),
        mtu=None if raw.mtu == "auto" else _mtu(r, raw.mtu, any(s.version == 6 for s in subnets)),
        routes=tuple(read_routes(r, raw.routes, "routes")),
        dns=read_dns(r, raw.dns),
        place=tree.place(path, key=True),
    )
    for number, route in enumerate(found.routes):
        if not any(s.holds(route.via) for s in subnets):
            r.error(f"via {route.via} is in no subnet of network {name}", "routes", number, "via")
        elif routed and route.via not in gateways:
            r.error(routed_via(route.via, name), "routes", number, "via")
    r.done()
    return found


def _allowed(r: Reader, raw: RawNetwork, name: str, *, internal: bool) -> tuple[str, ...]:
    found: list[str] = []
    for other, where in r.many(lambda text: fields.name(text, 64, "network"), raw.allow, "allow"):
        if other == name:
            text = "members reach their own network anyway (isolate_members: true forbids it)"
            r.error(text, *where)
        elif internal:
            r.error("nobody comes into an internal network (drop `allow`, or `internal`)", *where)
        elif other not in found:
            found.append(other)
    return tuple(sorted(found))


def _antispoof(r: Reader, raw: RawNetwork, *, external: bool) -> bool:
    given = r.maybe(fields.boolean, raw.antispoof, "antispoof")
    if given and external:
        r.error("nothing is checked on somebody else's bridge (drop the key)", "antispoof")
    return not external and given is not False


def _host_access(r: Reader, raw: RawNetwork) -> bool | tuple[HostPort, ...]:
    if raw.host_access in ("true", "false"):
        return raw.host_access == "true"
    if isinstance(raw.host_access, str) and "/" not in raw.host_access:
        r.read(fields.boolean, raw.host_access, "host_access")
        return True
    found = {port for port, _ in r.many(fields.host_port, raw.host_access, "host_access")}
    return tuple(sorted(found))


def _denied(r: Reader, raw: RawNetwork) -> tuple[Subnet, ...]:
    deny = raw.egress.deny if raw.egress is not None else []
    return tuple(sorted({s for s, _ in r.many(fields.destination, deny, "egress", "deny")}))


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
            r.error(f"{gateway} is outside {subnet_list(subnets)}", *where)
        elif not is_usable(subnet, gateway.value):
            r.error(f"{gateway} is the network or broadcast address of {subnet}", *where)
        elif any(g.version == gateway.version for g in gateways):
            r.error(f"{gateway} is a second IPv{gateway.version} gateway (one is possible)", *where)
        else:
            gateways.append(gateway)
    return sorted(gateways)


def _ranges(r: Reader, raw: RawNetwork, subnets: list[Subnet]) -> list[Range]:
    ranges: list[Range] = []
    for found, where in r.many(fields.address_range, raw.ranges, "ranges"):
        subnet = next((s for s in subnets if s.version == found.version), None)
        if subnet is None or found.first < subnet.value or found.last > subnet.last:
            r.error(f"{found} is outside {subnet_list(subnets)}", *where)
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
