"""The policy as the nftables table `inet runcnet`. Pure: no kernel, no library.

It decides every packet as chains.py does. The rules are always the same few, whatever is declared:
networks and ports are elements of sets and maps, so that a packet's cost does not grow with them
and a change is a change of elements. A rule stands where the sets that it looks up hold something.
Bridges are told by their names, routed networks by the device group of their host ends; hence two
sets of most kinds, the latter with `_group` in its name. Each IP version has sets and chains of
its own: a network without IPv6 asks for nothing there.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import lru_cache

import msgspec

from reconciler.core import nftrules
from reconciler.core.model import Address, HostPort, Subnet
from reconciler.core.nftrules import PAIRS, SIDES, SWITCHED, Words
from reconciler.core.nftset import (
    ADDRESS,
    USER,
    Chain,
    Element,
    Key,
    Part,
    Shape,
    Table,
    comment,
    owner,
)
from reconciler.core.policy import LOOPBACK, Lead, NetworkPolicy, Policy, Publication


def _shapes() -> dict[str, Shape]:
    found = {SWITCHED: Shape(("iface_index", "iface_index"), timeout_s=60, size=65535)}
    for v, address in ADDRESS.items():
        for side, kind in SIDES.items():
            for name in ("sealed", "members", "published", "exit_any", "entrance_any", "homes"):
                found[f"{name}{side}{v}"] = Shape((kind,))
            for name in ("within", "within_sealed"):
                found[f"{name}{side}{v}"] = Shape((kind, kind), ("verdict",))
            for name in ("denied", "hairpin"):
                found[f"{name}{side}{v}"] = Shape((kind, address), interval=True)
            found[f"exits{side}{v}"] = Shape((kind, "ifname"))
            found[f"entrances{side}{v}"] = Shape(("ifname", kind))
            found[f"closed{side}{v}"] = Shape((kind,))
            found[f"open{side}{v}"] = Shape((kind, "inet_proto", "inet_service"), interval=True)
        for (one, other), pair in PAIRS.items():
            found[f"allowed{pair}{v}"] = Shape((SIDES[one], SIDES[other]))
        goal = (address, "inet_service")
        found[f"ports{v}"] = Shape(("inet_proto", "inet_service"), goal)
        found[f"ports_at{v}"] = Shape((address, "inet_proto", "inet_service"), goal)
        found[f"runs{v}"] = Shape(("inet_proto", "inet_service"), (address,), interval=True)
        found[f"runs_at{v}"] = Shape(
            (address, "inet_proto", "inet_service"), (address,), interval=True
        )
        found[f"selves{v}"] = Shape(("devgroup", address, address))
        found[f"subnets{v}"] = Shape((address,), interval=True)
        found[f"masquerade{v}"] = Shape((address, "ifname"), interval=True)
        found[f"masquerade_any{v}"] = Shape((address,), interval=True)
        found[f"astray{v}"] = Shape(("devgroup",))
    return found


PORT_MAPS = ("ports_at", "runs_at", "ports", "runs")
SHAPES = _shapes()
"""Every set and map that a table of ours may have."""


# -- the table ----------------------------------------------------------------------------------


def wanted(policy: Policy, *, have: Table, bridged: Collection[int]) -> Table:
    """The table as it should be; `have` gives the elements of the networks and ports that are kept.

    `bridged`: IP versions of which bridged packets are shown to the forward hook (br_netfilter), so
    that the guard must let those of foreign bridges pass: they are switched, not routed.
    """
    sets = _Sets(policy, have)
    for version in ADDRESS:
        _fill(sets, policy, version)
    chains: dict[str, Chain] = {}

    def put(name: str, rules: Iterator[Words], hook: tuple[str, str, int] | None = None) -> None:
        found = tuple(
            nftrules.rule(w) for w in rules if all(not x.set or x.set in sets.found for x in w)
        )
        chains[name] = Chain(found, (*hook, "accept") if hook is not None else None)

    def base(name: str, kind: str, hook: str, priority: int, *, lead: Sequence[Words] = ()) -> None:
        """A base chain that sends each version to the chain of its own, where there is one."""
        versions = [v for v in ADDRESS if f"{name}{v}" in chains]
        jumps = [(nftrules.version_is(v), nftrules.to("jump", f"{name}{v}")) for v in versions]
        if versions or lead:
            put(name, iter([*lead, *jumps]), (kind, hook, priority))

    shapes = {name: SHAPES[name] for name in sets.found}
    for v in ADDRESS:
        ends = [s for s in SIDES if f"members{s}{v}" in sets.found]
        if ends:
            put(f"leaving{v}", nftrules.leaving(v))
            put(f"entering{v}", nftrules.entering(v))
        guard: list[Words] = []
        if v in policy.guards:
            if v in bridged:
                shapes[SWITCHED] = SHAPES[SWITCHED]
                guard += nftrules.bridged()
            guard.append((nftrules.DROP,))
        sealed = any(f"sealed{s}{v}" in sets.found for s in SIDES)
        if ends or sealed or guard:
            put(f"forward{v}", iter([*nftrules.forward(v), *guard]))
        if any(f"closed{s}{v}" in sets.found for s in SIDES):
            put(f"input{v}", nftrules.input_(v))
        if sets.translates(v):
            put(f"postrouting{v}", nftrules.postrouting(v))
        if f"astray{v}" in sets.found:
            put(f"raw{v}", nftrules.raw(v))
    if any(f"forward{v}" in chains for v in ADDRESS):
        chains[USER] = Chain()
        base("forward", "filter", "forward", 0, lead=[(nftrules.to("jump", USER),)])
    base("input", "filter", "input", 0)
    if any(f"{name}{v}" in sets.found for name in PORT_MAPS for v in ADDRESS):
        put("ports", nftrules.ports())
        for name, hook in (("prerouting", "prerouting"), ("output", "output")):
            put(name, iter([(nftrules.LOCAL, nftrules.to("jump", "ports"))]), ("nat", hook, -100))
    base("postrouting", "nat", "postrouting", 100)
    base(
        "raw", "filter", "prerouting", -300, lead=[nftrules.LOOPBACK_GUARD][: _looped(policy, have)]
    )
    return Table(shapes, sets.found, chains)


def _looped(policy: Policy, have: Table) -> bool:
    """Whether 127.0.0.0/8 must be guarded."""
    if any(p.looped for p in policy.publications):
        return True
    return bool(policy.kept_ports or policy.kept) and is_loopback_guarded(have)


class _Sets:
    """The sets and maps as they fill: first with what is kept."""

    def __init__(self, policy: Policy, have: Table) -> None:
        self.found: dict[str, dict[Key, Element]] = defaultdict(dict)
        self._kept: dict[str, list[Key]] = defaultdict(list)
        ports = {comment(whose) for whose in policy.kept_ports}
        networks = policy.kept - {n.name for n in policy.networks}
        if not ports and not networks:
            return
        for name, elements in have.elements.items():
            if name not in SHAPES:
                continue
            for key, one in elements.items():
                if one.comment in ports or owner(one).partition("/")[0] in networks:
                    self.found[name][key] = one
                    self._kept[name].append(key)

    def put(self, name: str, key: Key, element: Element) -> None:
        """An element, unless one that is kept stands there."""
        kept = self._kept.get(name)
        if kept and any(_meet(key, other) for other in kept):
            return
        self.found[name][key] = element

    def kept_ends(self, version: int) -> dict[str, tuple[str, Part]]:
        """As `_ends`, of the networks that are kept."""
        return {
            owner(one): (side, key[0])
            for side in SIDES
            for key, one in self.found.get(f"members{side}{version}", {}).items()
        }

    def translates(self, version: int) -> bool:
        """Whether any source address is to be translated."""
        names = ("hairpin", "hairpin_group", "selves", "masquerade", "masquerade_any")
        return any(f"{name}{version}" in self.found for name in names)


def _meet(one: Key, other: Key) -> bool:
    return all(
        a[0] <= b[1] and b[0] <= a[1] if isinstance(a, tuple) and isinstance(b, tuple) else a == b
        for a, b in zip(one, other, strict=True)
    )


def _run(subnet: Subnet) -> tuple[int, int]:
    return subnet.value, subnet.last


def _ends(network: NetworkPolicy) -> tuple[str, Part]:
    """Which of two sets a network is in, and as what."""
    return ("_group", network.group) if network.group else ("", network.link)


def _fill(sets: _Sets, policy: Policy, v: int) -> None:
    networks = {n.name: n for n in policy.networks}
    ends = sets.kept_ends(v) | {n.name: _ends(n) for n in policy.networks}
    mine = [p for p in policy.publications if p.version == v]
    looped = {p.network for p in mine if p.looped}
    published = {p.network for p in policy.publications}
    kept = {one.partition("/")[0] for one in policy.kept_ports}
    for network in policy.networks:
        subnet = next((s for s in network.subnets if s.version == v), None)
        if subnet is None:
            continue
        has_ports = network.name in published | kept
        _fill_filter(sets, network, v, ends, published=has_ports)
        _fill_nat(sets, network, subnet, published=has_ports,
                  looped=network.name in looped | (kept if v == 4 else set()))  # fmt: skip
    for publication in mine:
        _fill_ports(sets, publication, networks)
    if not sets.translates(v):
        for name in ("subnets", "homes", "homes_group"):
            sets.found.pop(f"{name}{v}", None)


def _fill_filter(
    sets: _Sets,
    network: NetworkPolicy,
    v: int,
    ends: Mapping[str, tuple[str, Part]],
    *,
    published: bool,
) -> None:
    mark = comment(network.name)
    own = Element(mark)
    side, link = _ends(network)
    within = Element(mark, "drop" if network.isolate_members else "accept")
    if network.internal:
        sets.put(f"within_sealed{side}{v}", (link, link), within)
        sets.put(f"sealed{side}{v}", (link,), own)
    else:
        sets.put(f"within{side}{v}", (link, link), within)
        sets.put(f"members{side}{v}", (link,), own)
        if published:
            sets.put(f"published{side}{v}", (link,), own)
        for subnet in _widest(s for s in network.denied if s.version == v):
            sets.put(f"denied{side}{v}", (link, _run(subnet)), own)
        for name in network.allow:
            if name in ends:
                there, other = ends[name]
                sets.put(f"allowed{PAIRS[there, side]}{v}", (other, link), own)
        for uplink in network.uplinks:
            sets.put(f"exits{side}{v}", (link, uplink), own)
            if network.inbound == "open":
                sets.put(f"entrances{side}{v}", (uplink, link), own)
        if not network.uplinks:
            sets.put(f"exit_any{side}{v}", (link,), own)
            if network.inbound == "open":
                sets.put(f"entrance_any{side}{v}", (link,), own)
    if network.host_access is not True:
        sets.put(f"closed{side}{v}", (link,), own)
        for protocol, run in _runs(network.host_access or ()):
            sets.put(f"open{side}{v}", (link, protocol, run), own)
    if network.group and network.antispoof:
        sets.put(f"astray{v}", (link,), own)


def _fill_nat(
    sets: _Sets, network: NetworkPolicy, subnet: Subnet, *, published: bool, looped: bool
) -> None:
    own = Element(comment(network.name))
    side, link = _ends(network)
    v, run = subnet.version, _run(subnet)
    if published and looped and v == 4:
        sets.put(f"hairpin{side}{v}", (link, _run(LOOPBACK)), own)
    if published and not network.group:
        sets.put(f"hairpin{side}{v}", (link, run), own)
    sets.put(f"subnets{v}", (run,), own)
    sets.put(f"homes{side}{v}", (link,), own)
    if v in network.masquerade and not network.internal:
        for uplink in network.uplinks:
            sets.put(f"masquerade{v}", (run, uplink), own)
        if not network.uplinks:
            sets.put(f"masquerade_any{v}", (run,), own)


def _fill_ports(sets: _Sets, p: Publication, networks: dict[str, NetworkPolicy]) -> None:
    v, target = p.version, p.target.value
    if p.network in networks and networks[p.network].group:
        group = networks[p.network].group
        sets.put(f"selves{v}", (group, target, target), Element(comment(p.object)))
    name, elements = _led_to(p)
    for key, one in elements:
        sets.put(name, key, one)


@lru_cache(maxsize=8192)
def _led_to(p: Publication) -> tuple[str, tuple[tuple[Key, Element], ...]]:
    """The map that a publication stands in, and its elements there. A pass asks several times."""
    mark, target = comment(p.object), p.target.value
    ending = f"{p.version}" if p.host_ip is None else f"_at{p.version}"
    if p.count > 1 and p.host_port == p.target_port:
        run = p.host_port, p.host_port + p.count - 1
        host = () if p.host_ip is None else ((p.host_ip.value, p.host_ip.value),)
        return f"runs{ending}", (((*host, p.protocol, run), Element(mark, (target,))),)
    # nft cannot shift a run.
    lead: Key = (p.protocol,) if p.host_ip is None else (p.host_ip.value, p.protocol)
    return f"ports{ending}", tuple(
        ((*lead, p.host_port + step), Element(mark, (target, p.target_port + step)))
        for step in range(p.count)
    )


def _widest(subnets: Iterator[Subnet]) -> list[Subnet]:
    """Those that lie in none of the others: a set takes no element inside another one."""
    found: list[Subnet] = []
    for subnet in sorted(set(subnets), key=lambda s: s.prefix):
        if not any(one.overlaps(subnet) for one in found):
            found.append(subnet)
    return found


def _runs(ports: tuple[HostPort, ...]) -> Iterator[tuple[str, tuple[int, int]]]:
    """The same ports as runs that do not meet."""
    for protocol in sorted({port.protocol for port in ports}):
        end = -1
        for port in sorted(p for p in ports if p.protocol == protocol):
            first = max(port.first, end + 1)
            if first <= port.last:
                yield protocol, (first, port.last)
                end = port.last


# -- what stands --------------------------------------------------------------------------------


def networks_in(have: Table) -> frozenset[str]:
    """The networks that own elements."""
    owners = (
        owner(one) for name, e in have.elements.items() if name in SHAPES for one in e.values()
    )
    return frozenset(whose.partition("/")[0] for whose in owners) - {""}


def guards_in(have: Table) -> frozenset[int]:
    """The IP versions whose router guard stands, wherever somebody has put other rules."""
    return frozenset(
        v for v in ADDRESS if nftrules.GUARD.code in have.chains.get(f"forward{v}", Chain()).codes
    )


def is_loopback_guarded(have: Table) -> bool:
    """Whether what comes to 127.0.0.0/8 from outside is dropped."""
    return nftrules.rule(nftrules.LOOPBACK_GUARD).code in have.chains.get("raw", Chain()).codes


def ports_in(have: Table, publications: Sequence[Publication]) -> dict[str, tuple[Lead, ...]]:
    """`NETWORK/CONTAINER` → where its published ports lead.

    The table holds a port an element. Those of `publications` that stand whole are told as they are
    there, the others in the longest runs.
    """
    found: dict[str, list[Lead]] = defaultdict(list)
    elements = {
        name: dict(have.elements.get(name, {}))
        for name in (f"{kind}{v}" for v in ADDRESS for kind in PORT_MAPS)
    }
    for p in publications:
        name, elements_of = _led_to(p)
        stand = elements[name]
        if all(stand.get(key) == one for key, one in elements_of):
            found[p.object].append(p.lead)
            for key, _ in elements_of:
                del stand[key]
    for name, stand in elements.items():
        for key in sorted(stand):
            one = stand[key]
            whose = owner(one)
            if "/" in whose and isinstance(one.data, tuple):
                _lengthen(found[whose], _lead(int(name[-1]), key, one.data))
    return {whose: tuple(leads) for whose, leads in found.items() if leads}


def _lead(version: int, key: Key, goal: tuple[int, ...]) -> Lead:
    *at, protocol, port = key
    first, last = port if isinstance(port, tuple) else (port, port)
    host = (at[0][0] if isinstance(at[0], tuple) else at[0]) if at else None
    host_ip = Address(version, host) if host is not None else None
    target, *target_port = goal
    goes_to = Address(version, target), target_port[0] if target_port else first
    return Lead(version, protocol, host_ip, first, last, *goes_to)


def _lengthen(leads: list[Lead], lead: Lead) -> None:
    """Add a port to the last run, or as a new one."""
    if leads and _continues(leads[-1], lead):
        leads[-1] = msgspec.structs.replace(leads[-1], last=lead.last)
    else:
        leads.append(lead)


def _continues(run: Lead, lead: Lead) -> bool:
    same = (run.version, run.protocol, run.host_ip, run.target)
    return (
        same == (lead.version, lead.protocol, lead.host_ip, lead.target)
        and lead.first == run.last + 1
        and lead.target_port == run.target_port + lead.first - run.first
    )
