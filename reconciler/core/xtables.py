"""The policy as iptables chains, and what must be edited to get there. Pure: no kernel, no library.

Each IP version has three tables of ours. `raw` drops what a member of a routed network sends from
an address that is not its own, `nat` translates on the way out. A packet in `filter` passes the
rules of all networks in three phases: what is settled first (replies, members of one network), then
what must never cross from one network into another, then what may enter and leave. Within a phase
networks do not concern each other, so rules grow with the number of networks, not of pairs.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from reconciler.core.model import Subnet
from reconciler.core.policy import NetworkPolicy, Policy

BASE = {"filter": "FORWARD", "nat": "POSTROUTING", "raw": "PREROUTING"}
"""The tables that are used, each with the built-in chain that jumps to ours."""
PREFIX = "RUNCNET-"
FORWARD = "RUNCNET-FORWARD"
CROSS = "RUNCNET-CROSS"
USER = "RUNCNET-USER"
POSTROUTING = "RUNCNET-POSTROUTING"
PREROUTING = "RUNCNET-PREROUTING"
TOP = {"filter": FORWARD, "nat": POSTROUTING, "raw": PREROUTING}
MARK = "runcnet:"
PROGRAM = {4: "iptables-legacy", 6: "ip6tables-legacy"}


class Rule(NamedTuple):
    """One rule, in the few words that ours need. An empty word asks for nothing."""

    target: str
    comment: str = ""
    in_link: str = ""
    out_link: str = ""
    in_group: int = 0
    """`-m devgroup --src-group`: any link of that device group."""
    out_group: int = 0
    source: Subnet | None = None
    destination: Subnet | None = None
    replies: bool = False
    """`-m conntrack --ctstate RELATED,ESTABLISHED`."""
    bridged: bool = False
    """`-m physdev --physdev-is-bridged`."""
    astray: bool = False
    """`-m rpfilter --invert`: the way back does not lead through the link it came from."""
    other: bytes = b""
    """The kernel's bytes of a rule that these words cannot say: nobody's mistake is ever mistaken
    for ours, and a rule that must stay can be written back as it was."""

    def words(self) -> list[str]:
        """The rule as iptables takes it, from `-s` to the target."""
        words: list[str] = []
        for flag, value in (
            ("-s", self.source),
            ("-d", self.destination),
            ("-i", self.in_link),
            ("-o", self.out_link),
        ):
            if value:
                words += [flag, str(value)]
        if self.in_group or self.out_group:
            words += ["-m", "devgroup"]
        if self.in_group:
            words += ["--src-group", f"{self.in_group:#x}"]
        if self.out_group:
            words += ["--dst-group", f"{self.out_group:#x}"]
        if self.astray:
            words += ["-m", "rpfilter", "--invert"]
        if self.bridged:
            words += ["-m", "physdev", "--physdev-is-bridged"]
        if self.replies:
            words += ["-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED"]
        if self.comment:
            words += ["-m", "comment", "--comment", self.comment]
        return [*words, "-j", self.target] if self.target else words


Chains = Mapping[str, tuple[Rule, ...]]

HOST = MARK + "host"
JUMPS = {table: Rule(top, HOST) for table, top in TOP.items()}
ASK_USER = Rule(USER, HOST)
BRIDGED = Rule("RETURN", HOST, bridged=True)
GUARD = Rule("DROP", HOST)


def _ours(chain: str) -> bool:
    return chain.startswith(PREFIX)


class Edit(NamedTuple):
    """One step of a commit; rules are counted from 1, in the chain as the steps before left it."""

    verb: str
    """`new`, `flush`, `append`, `insert`, `delete` (a rule by its number), `remove` (a chain)."""
    chain: str
    rule: Rule | None = None
    number: int = 0


# -- what is wanted -----------------------------------------------------------------------------


def wanted(policy: Policy, *, version: int, table: str, have: Chains, bridged: bool) -> Chains:
    """Our chains as they should be; `have` gives the rules of the networks that are kept.

    `bridged`: the kernel shows bridged packets to this table (br_netfilter), so the guard must let
    those of foreign bridges pass: they are switched, not routed.
    """
    build = {"filter": _filter, "nat": _nat, "raw": _raw}[table]
    sections = _standing(have.get(TOP[table], ()), policy.kept)
    for network in policy.networks:
        subnet = next((s for s in network.subnets if s.version == version), None)
        if subnet is not None:
            sections[network.name] = tuple(build(network, subnet))
    rules = [rule for name in sorted(sections) for rule in sections[name]]
    if table == "nat":
        rules.sort(key=lambda rule: rule.target != "RETURN")
        translated = any(rule.target == "MASQUERADE" or rule.other for rule in rules)
        return _with_led_to({POSTROUTING: tuple(rules)}, have) if translated else {}
    if table == "filter":
        rules.sort(key=_phase)
    if table == "raw":
        return _with_led_to({PREROUTING: tuple(rules)}, have) if rules else {}
    tail = (BRIDGED, GUARD)[not bridged :] if version in policy.guards else ()
    if not rules and not tail:
        return {}
    chains = {USER: have.get(USER, ()), FORWARD: (ASK_USER, *rules, *tail)}
    if rules:
        fences = _standing(have.get(CROSS, ()), policy.kept)
        for network in policy.networks:
            if network.name in sections:
                drop = Rule("DROP", MARK + network.name)
                fences[network.name] = (_to(drop, network),)
        chains[CROSS] = tuple(rule for name in sorted(fences) for rule in fences[name])
    return _with_led_to(chains, have)


def _to(rule: Rule, network: NetworkPolicy) -> Rule:
    """The rule for what goes to the network: through its bridge, or to a host end of its group."""
    return rule._replace(out_link=network.link, out_group=network.group)


def _from(rule: Rule, network: NetworkPolicy) -> Rule:
    """The rule for what comes from the network."""
    return rule._replace(in_link=network.link, in_group=network.group)


def _raw(network: NetworkPolicy, subnet: Subnet) -> Iterator[Rule]:
    if network.group:
        yield _from(Rule("DROP", MARK + network.name, astray=True), network)


def _filter(network: NetworkPolicy, subnet: Subnet) -> Iterator[Rule]:
    mark = MARK + network.name
    accept, drop = Rule("ACCEPT", mark), Rule("DROP", mark)
    if not network.internal:
        yield _to(accept._replace(replies=True), network)
    yield _from(_to(drop if network.isolate_members else accept, network), network)
    yield _from(Rule(CROSS, mark), network)
    if network.internal:
        yield _from(drop, network)
        yield _to(drop, network)
        return
    entrances = network.uplinks or ("",) if network.inbound == "open" else ()
    for uplink in entrances:
        yield _to(accept._replace(in_link=uplink), network)
    if "" not in entrances:
        yield _to(drop, network)
    for uplink in network.uplinks or ("",):
        yield _from(accept._replace(out_link=uplink), network)
    if network.uplinks:
        yield _from(drop, network)


def _nat(network: NetworkPolicy, subnet: Subnet) -> Iterator[Rule]:
    mark = MARK + network.name
    # What goes to a network of ours keeps its source address, wherever it comes from.
    yield Rule("RETURN", mark, destination=subnet)
    yield _to(Rule("RETURN", mark), network)
    if subnet.version in network.masquerade and not network.internal:
        for uplink in network.uplinks or ("",):
            yield Rule("MASQUERADE", mark, out_link=uplink, source=subnet)


def _with_led_to(chains: dict[str, tuple[Rule, ...]], have: Chains) -> Chains:
    """A rule that is kept, or the administrator's, may lead to more chains: they stay."""
    names = list(chains)
    for name in names:
        for rule in chains[name]:
            if _ours(rule.target) and rule.target not in chains:
                chains[rule.target] = have.get(rule.target, ())
                names.append(rule.target)
    return chains


def _phase(rule: Rule) -> int:
    """Where in RUNCNET-FORWARD a network's rule belongs."""
    among = (rule.in_link, rule.in_group) == (rule.out_link, rule.out_group)
    if rule.replies or (among and (rule.in_link or rule.in_group)):
        return 0
    return 1 if rule.target == CROSS else 2


def _owner(rule: Rule) -> str:
    """The network that a rule in a chain of ours belongs to, or nothing."""
    # A network may be called `host`: the host's own rules are told by their content.
    if not rule.comment.startswith(MARK) or rule in (ASK_USER, BRIDGED, GUARD):
        return ""
    return rule.comment.removeprefix(MARK)


def _standing(rules: Iterable[Rule], names: frozenset[str]) -> dict[str, tuple[Rule, ...]]:
    """The rules that these networks have in a chain now."""
    found: dict[str, list[Rule]] = {}
    for rule in rules:
        if _owner(rule) in names:
            found.setdefault(_owner(rule), []).append(rule)
    return {name: tuple(rules) for name, rules in found.items()}


def networks_in(have: Chains) -> frozenset[str]:
    """The networks that own rules in our chains of a table."""
    ours = (rules for chain, rules in have.items() if _ours(chain) and chain != USER)
    return frozenset(_owner(rule) for rules in ours for rule in rules) - {""}


def guarded(have: Chains) -> bool:
    """Whether the router guard stands in a filter table."""
    return GUARD in have.get(FORWARD, ())


# -- how to get there ---------------------------------------------------------------------------


def edits(want: Chains, have: Chains, *, table: str) -> list[Edit]:
    """The steps of one commit that turn `have` into `want`; none where nothing differs."""
    steps = [Edit("new", chain) for chain in want if chain not in have]
    for chain, rules in want.items():
        if have.get(chain, ()) != rules:
            if have.get(chain):
                steps.append(Edit("flush", chain))
            steps += [Edit("append", chain, rule) for rule in rules]
    steps += _jump_edits(want, have, table)
    return steps + _removals(want, have, table)


def _jump_edits(want: Chains, have: Chains, table: str) -> list[Edit]:
    """The jump stands once, and before everything but plain jumps to chains of other tools.

    Such tools (Docker, for one) put their own jumps at the top each time they start; to insist on
    the first place would be a race without end.
    """
    base, top = BASE[table], TOP[table]
    rules = have.get(base, ())
    places = [place for place, rule in enumerate(rules) if _ours(rule.target)]
    if top in want and len(places) == 1 and rules[places[0]] == JUMPS[table]:
        before = rules[: places[0]]
        if all(r == Rule(r.target, r.comment) and r.target in have for r in before):
            return []
    # From the bottom up, so that the numbers above stay true.
    steps = [Edit("delete", base, rules[place], place + 1) for place in reversed(places)]
    return [*steps, Edit("insert", base, JUMPS[table], 1)] if top in want else steps


def _removals(want: Chains, have: Chains, table: str) -> list[Edit]:
    """Chains of ours that are no longer wanted; the administrator's only where it is empty."""
    gone = [c for c in have if _ours(c) and c not in want and not (c == USER and have[c])]
    staying = [chain for chain in have if chain not in gone and (chain == USER or not _ours(chain))]
    held = {
        rule.target
        for chain in staying
        for rule in have[chain]
        if not (chain == BASE[table] and _ours(rule.target))
    }
    # Emptied first: they may jump to one another. One that a foreign rule jumps to cannot go.
    steps = [Edit("flush", chain) for chain in gone if have[chain]]
    return steps + [Edit("remove", chain) for chain in gone if chain not in held]


# -- for people ---------------------------------------------------------------------------------


def differences(want: Chains, have: Chains, *, version: int, table: str) -> list[str]:
    """What `edits` would mend, a line a chain."""
    where = f"(IPv{version} {table})"
    steps = edits(want, have, table=table)
    touched = {step.chain for step in steps}
    lines = []
    for chain, rules in want.items():
        if chain in touched:
            text = _difference(rules, have[chain]) if chain in have else "missing"
            lines.append(f"chain {chain} {where}: {text}")
    base = BASE[table]
    if base in touched:
        stands = sum(_ours(rule.target) for rule in have.get(base, ()))
        verdict = "missing" if not stands else "out of place" if stands == 1 else "repeated"
        text = verdict if TOP[table] in want else "no longer wanted"
        lines.append(f"jump from {base} {where}: {text}")
    gone = [chain for chain in have if chain in touched and chain not in want and chain != base]
    return lines + [f"chain {chain} {where}: no longer wanted" for chain in gone]


def _difference(want: tuple[Rule, ...], have: tuple[Rule, ...]) -> str:
    missing, extra = Counter(want) - Counter(have), Counter(have) - Counter(want)
    parts = [
        f"{count} {'rule' if count == 1 else 'rules'} {what}"
        for count, what in ((missing.total(), "missing"), (extra.total(), "not wanted"))
        if count
    ]
    return ", ".join(parts) or "rules out of order"


def commands(steps: Iterable[Edit], *, version: int, table: str) -> list[str]:
    """The same steps as command lines."""
    verbs = {"new": "-N", "flush": "-F", "append": "-A", "insert": "-I", "delete": "-D"}
    lines = []
    for step in steps:
        words = [PROGRAM[version], "-w", "-t", table, verbs.get(step.verb, "-X"), step.chain]
        words += [str(step.number)] if step.number else []
        if step.rule is not None and step.verb != "delete":
            if step.rule.other:
                lines.append(f"# a rule of {step.rule.comment} in {step.chain} stays as it is")
                continue
            words += step.rule.words()
        lines.append(" ".join(words))
    return lines
