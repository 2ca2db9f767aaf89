"""The policy as iptables chains. Pure: no kernel, no library.

Each IP version has three tables of ours. `raw` drops what a member of a routed network sends from
an address that is not its own, and what others send to the host's loopback; `nat` leads published
ports to their containers and translates on the way out. A packet in `filter` passes the rules of
all networks in phases: internal networks, which nothing leaves or enters, then what is settled first
(replies, members of one network, what is denied), then what must never cross from one network into
another, then what may enter and leave. Within a phase networks do not concern each other, so rules
grow with the number of networks and ports, not of pairs.
"""

from collections.abc import Iterable, Iterator, Mapping

from reconciler.core.model import BITS, Address, Subnet
from reconciler.core.policy import LOOPBACK, Lead, NetworkPolicy, Policy, Publication
from reconciler.core.xtables import (
    ASK_USER,
    CROSS,
    FORWARD,
    HOST,
    INPUT,
    MARK,
    PORTS,
    POSTROUTING,
    PREROUTING,
    USER,
    Chains,
    Rule,
    is_ours,
)

BRIDGED = Rule("RETURN", HOST, bridged=True)
GUARD = Rule("DROP", HOST)
LOOPBACK_GUARD = Rule("DROP", HOST, not_in_link="lo", destination=LOOPBACK)
"""What is routed to 127.0.0.0/8 from outside: nothing honest (CVE-2020-8558)."""
REPLIES = Rule("RETURN", HOST, replies=True)
SOLICITATIONS = tuple(Rule("RETURN", HOST, protocol="ipv6-icmp", icmp=kind) for kind in (135, 136))
"""Neighbour solicitation and advertisement (RFC 4861): without them nobody finds the gateway."""
HOSTS = (ASK_USER, BRIDGED, GUARD, LOOPBACK_GUARD, REPLIES, *SOLICITATIONS)


def wanted(policy: Policy, *, version: int, table: str, have: Chains, bridged: bool) -> Chains:
    """Our chains as they should be; `have` gives the rules of the networks and ports that are kept.

    `bridged`: the kernel shows bridged packets to this table (br_netfilter), so the guard must let
    those of foreign bridges pass: they are switched, not routed.
    """
    if table == "nat":
        chains = _nat_chains(policy, version, have)
    elif table == "raw":
        chains = _raw_chains(policy, version, have)
    else:
        tail = (BRIDGED, GUARD)[not bridged :] if version in policy.guards else ()
        chains = _filter_chains(policy, version, have, tail)
    return _with_led_to({c: rules for c, rules in chains.items() if rules or c == USER}, have)


def beside(policy: Policy, *, version: int, have: Chains) -> Chains:
    """What a filter table of others holds whose FORWARD drops what no rule there accepts.

    The same as ours, but for what the host itself is asked, which that policy does not concern, and
    the router guard: what is none of our networks' is left to the rules of others.
    """
    found = _filter_chains(policy, version, have, ())
    found.pop(INPUT, None)
    return _with_led_to({c: rules for c, rules in found.items() if rules or c == USER}, have)


def _networks(policy: Policy, version: int) -> Iterator[tuple[NetworkPolicy, Subnet]]:
    """The networks of an IP version, with their subnet."""
    for network in policy.networks:
        subnet = next((s for s in network.subnets if s.version == version), None)
        if subnet is not None:
            yield network, subnet


def _published(policy: Policy) -> frozenset[str]:
    """The networks with a published port."""
    kept = (one.partition("/")[0] for one in policy.kept_ports)
    return frozenset(p.network for p in policy.publications) | frozenset(kept)


# -- filter -------------------------------------------------------------------------------------


def _filter_chains(
    policy: Policy, version: int, have: Chains, tail: tuple[Rule, ...]
) -> dict[str, tuple[Rule, ...]]:
    sections = _standing(have.get(FORWARD, ()), policy.kept)
    fences = _standing(have.get(CROSS, ()), policy.kept)
    inputs = _standing(have.get(INPUT, ()), policy.kept)
    published = _published(policy)
    ends = _kept_ends(sections) | {n.name: (n.link, n.group) for n in policy.networks}
    for network, _ in _networks(policy, version):
        name = network.name
        sections[name] = tuple(_forward(network, version, name in published))
        fences[name] = tuple(_fence(network, ends, name in published))
        inputs[name] = tuple(_input(network))
    phased = [
        (_phase(rule, sealed), rule)
        for name in sorted(sections)
        for sealed in [_is_sealed(sections[name])]
        for rule in sections[name]
    ]
    phased.sort(key=lambda pair: pair[0])
    rules = tuple(rule for _, rule in phased)
    chains: dict[str, tuple[Rule, ...]] = {}
    if rules or tail:
        chains |= {USER: have.get(USER, ()), FORWARD: (ASK_USER, *rules, *tail)}
    chains[CROSS] = tuple(rule for name in sorted(fences) for rule in fences[name])
    restricted = tuple(rule for name in sorted(inputs) for rule in inputs[name])
    if restricted:
        lead = (REPLIES, *(SOLICITATIONS if version == 6 else ()))
        chains[INPUT] = (*lead, *restricted)
    return chains


def to_network(rule: Rule, network: NetworkPolicy) -> Rule:
    """The rule for what goes to the network: through its bridge, or to a host end of its group."""
    return rule._replace(out_link=network.link, out_group=network.group)


def from_network(rule: Rule, network: NetworkPolicy) -> Rule:
    """The rule for what comes from the network."""
    return rule._replace(in_link=network.link, in_group=network.group)


def _forward(network: NetworkPolicy, version: int, published: bool) -> Iterator[Rule]:
    mark = MARK + network.name
    accept, drop = Rule("ACCEPT", mark), Rule("DROP", mark)
    if not network.internal:
        yield to_network(accept._replace(replies=True), network)
    if published and not network.internal:
        # The answer leaves where the question came in, which need not be an uplink.
        yield from_network(accept._replace(replies=True), network)
    yield from_network(to_network(drop if network.isolate_members else accept, network), network)
    if network.internal:
        yield from_network(drop, network)
        yield to_network(drop, network)
        return
    for subnet in network.denied:
        if subnet.version == version:
            yield from_network(drop._replace(destination=subnet), network)
    yield from_network(Rule(CROSS, mark), network)
    entrances = network.uplinks or ("",) if network.inbound == "open" else ()
    for uplink in entrances:
        yield to_network(accept._replace(in_link=uplink), network)
    if "" not in entrances:
        if published:
            yield to_network(accept._replace(translated=True), network)
        yield to_network(drop, network)
    for uplink in network.uplinks or ("",):
        yield from_network(accept._replace(out_link=uplink), network)
    if network.uplinks:
        yield from_network(drop, network)


def _kept_ends(sections: Mapping[str, Iterable[Rule]]) -> dict[str, tuple[str, int]]:
    """By which link or group what comes from a network is told, of those whose rules are kept."""
    return {
        name: (rule.in_link, rule.in_group)
        for name, rules in sections.items()
        for rule in rules
        if rule.target == CROSS and not rule.other
    }


def _fence(
    network: NetworkPolicy, ends: Mapping[str, tuple[str, int]], published: bool
) -> Iterator[Rule]:
    """What may come into the network from another one."""
    mark = MARK + network.name
    for name in network.allow:
        if name in ends:
            link, group = ends[name]
            yield to_network(Rule("ACCEPT", mark, in_link=link, in_group=group), network)
    if published and not network.internal:
        yield to_network(Rule("ACCEPT", mark, translated=True), network)
    yield to_network(Rule("DROP", mark), network)


def _input(network: NetworkPolicy) -> Iterator[Rule]:
    """What members may open on the host: whether it answers is up to its own rules."""
    if network.host_access is True:
        return
    mark = MARK + network.name
    for port in network.host_access or ():
        yield from_network(
            Rule("RETURN", mark, protocol=port.protocol, ports=(port.first, port.last)), network
        )
    yield from_network(Rule("DROP", mark), network)


def _among(rule: Rule) -> bool:
    same = (rule.in_link, rule.in_group) == (rule.out_link, rule.out_group)
    return same and bool(rule.in_link or rule.in_group)


def _is_sealed(rules: Iterable[Rule]) -> bool:
    """Whether these are the rules of an internal network."""
    return all(rule.target == "DROP" or _among(rule) for rule in rules)


def _phase(rule: Rule, sealed: bool) -> int:
    """Where in RUNCNET-FORWARD a network's rule belongs."""
    if sealed:
        return 0
    if rule.replies:
        return 1
    if _among(rule) or (rule.destination is not None and rule.target == "DROP"):
        return 2
    return 3 if rule.target == CROSS else 4


# -- nat and raw --------------------------------------------------------------------------------


def _nat_chains(policy: Policy, version: int, have: Chains) -> dict[str, tuple[Rule, ...]]:
    sections = _standing(have.get(POSTROUTING, ()), policy.kept)
    ports = list(_kept_ports(have.get(PORTS, ()), policy))
    hairpins = [
        rule
        for rule in _kept_ports(have.get(POSTROUTING, ()), policy)
        if network_of(rule) not in policy.kept
    ]
    mine = [p for p in policy.publications if p.version == version]
    ports += [_port(p) for p in mine]
    looped = {p.network for p in mine if p.looped}
    if version == 4:
        looped |= {one.partition("/")[0] for one in policy.kept_ports}
    published = _published(policy)
    for network, subnet in _networks(policy, version):
        name = network.name
        rules = list(_hairpins(network, subnet, name in looped)) if name in published else []
        rules += _translated(network, subnet)
        sections[name] = tuple(rules)
    routed = {n.name: n for n in policy.networks if n.group}
    whole = BITS[version]
    for target in sorted({(p.network, p.container, p.target) for p in mine}):
        if target[0] in routed:
            own = Subnet(version, target[2].value, whole)
            rule = Rule("MASQUERADE", f"{MARK}{target[0]}/{target[1]}", source=own, destination=own)
            hairpins.append(to_network(rule._replace(translated=True), routed[target[0]]))
    every = hairpins + [rule for name in sorted(sections) for rule in sections[name]]
    every.sort(key=_nat_phase)
    if not any(rule.target == "MASQUERADE" or rule.other for rule in every):
        every = []
    return {PORTS: tuple(ports), POSTROUTING: tuple(every)}


def _port(p: Publication) -> Rule:
    """What leads to a published port; for what goes to the host itself, which the jumps see to."""
    host = Subnet(p.version, p.host_ip.value, BITS[p.version]) if p.host_ip is not None else None
    base = p.host_port if p.count > 1 else p.target_port
    return Rule(
        "DNAT",
        MARK + p.object,
        protocol=p.protocol,
        destination=host,
        ports=(p.host_port, p.host_port + p.count - 1),
        to=(p.target, p.target_port, p.target_port + p.count - 1, base),
    )


def _hairpins(network: NetworkPolicy, subnet: Subnet, looped: bool) -> Iterator[Rule]:
    """Published ports reached from where the answer would not find back: the host's loopback, and
    a fellow on the same bridge, to whom the container would answer without the host."""
    back = to_network(Rule("MASQUERADE", MARK + network.name, translated=True), network)
    if looped and subnet.version == 4:
        yield back._replace(source=LOOPBACK)
    if not network.group:
        yield back._replace(source=subnet)


def _translated(network: NetworkPolicy, subnet: Subnet) -> Iterator[Rule]:
    mark = MARK + network.name
    # What goes to a network of ours keeps its source address, wherever it comes from.
    yield Rule("RETURN", mark, destination=subnet)
    yield to_network(Rule("RETURN", mark), network)
    if subnet.version in network.masquerade and not network.internal:
        for uplink in network.uplinks or ("",):
            yield Rule("MASQUERADE", mark, out_link=uplink, source=subnet)


def _nat_phase(rule: Rule) -> int:
    return 0 if rule.translated else 1 if rule.target == "RETURN" else 2


def _raw_chains(policy: Policy, version: int, have: Chains) -> dict[str, tuple[Rule, ...]]:
    sections = _standing(have.get(PREROUTING, ()), policy.kept)
    for network, _ in _networks(policy, version):
        if network.group and network.antispoof:
            astray = Rule("DROP", MARK + network.name, astray=True)
            sections[network.name] = (from_network(astray, network),)
    rules = tuple(rule for name in sorted(sections) for rule in sections[name])
    looped = any(p.looped for p in policy.publications) or policy.kept_ports or policy.kept
    stands = LOOPBACK_GUARD in have.get(PREROUTING, ())
    needed = any(p.looped for p in policy.publications) or (looped and stands)
    if version == 4 and needed:
        rules = (LOOPBACK_GUARD, *rules)
    return {PREROUTING: rules}


# -- what is kept -------------------------------------------------------------------------------


def _with_led_to(chains: dict[str, tuple[Rule, ...]], have: Chains) -> Chains:
    """A rule that is kept, or the administrator's, may lead to more chains: they stay."""
    names = list(chains)
    for name in names:
        for rule in chains[name]:
            if is_ours(rule.target) and rule.target not in chains:
                chains[rule.target] = have.get(rule.target, ())
                names.append(rule.target)
    return chains


def network_of(rule: Rule) -> str:
    """The network that a rule in a chain of ours belongs to, or nothing."""
    # A network may be called `host`: the host's own rules are told by their content.
    if not rule.comment.startswith(MARK) or rule in HOSTS:
        return ""
    return rule.comment.removeprefix(MARK).partition("/")[0]


def _standing(rules: Iterable[Rule], names: frozenset[str]) -> dict[str, tuple[Rule, ...]]:
    """The rules that these networks have in a chain now."""
    found: dict[str, list[Rule]] = {}
    for rule in rules:
        if network_of(rule) in names:
            found.setdefault(network_of(rule), []).append(rule)
    return {name: tuple(rules) for name, rules in found.items()}


def _kept_ports(rules: Iterable[Rule], policy: Policy) -> Iterator[Rule]:
    """The rules of published ports that stay as they are."""
    if not policy.kept_ports and not policy.kept:
        return  # the usual case, and there may be thousands
    for rule in rules:
        whose = rule.comment.removeprefix(MARK)
        if "/" in whose and (whose in policy.kept_ports or network_of(rule) in policy.kept):
            yield rule


def _own_chains(have: Chains) -> Iterator[Rule]:
    for chain, rules in have.items():
        if is_ours(chain) and chain != USER:
            yield from rules


def networks_in(have: Chains) -> frozenset[str]:
    """The networks that own rules in our chains of a table."""
    return frozenset(network_of(rule) for rule in _own_chains(have)) - {""}


def ports_in(have: Chains, version: int) -> dict[str, tuple[Lead, ...]]:
    """`NETWORK/CONTAINER` → where its published ports lead, from a nat table."""
    found: dict[str, list[Lead]] = {}
    for rule in have.get(PORTS, ()):
        if not rule.comment.startswith(MARK) or "/" not in rule.comment or rule.to is None:
            continue
        host, (target, port, _, _) = rule.destination, rule.to
        address = Address(version, host.value) if host is not None else None
        lead = Lead(version, rule.protocol, address, *rule.ports, target, port)
        found.setdefault(rule.comment.removeprefix(MARK), []).append(lead)
    return {whose: tuple(leads) for whose, leads in found.items()}


def guarded(have: Chains) -> bool:
    """Whether the router guard stands in a filter table."""
    return GUARD in have.get(FORWARD, ())
