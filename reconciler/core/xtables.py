"""Policy → the chains of the legacy xtables, as plain values; no library, no kernel.

One jump from each built-in chain leads to a chain of ours. Every rule carries `runcnet:OBJECT`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from reconciler.core.policy import NetworkPolicy, Policy

FORWARD = "RUNCNET-FORWARD"
POSTROUTING = "RUNCNET-POSTROUTING"
USER = "RUNCNET-USER"
PREFIX = "RUNCNET-"
JUMPS = {("filter", "FORWARD"): FORWARD, ("nat", "POSTROUTING"): POSTROUTING}
PROGRAM = {4: "iptables-legacy", 6: "ip6tables-legacy"}


class Rule(NamedTuple):
    """One rule. Empty fields say nothing; `states` is what conntrack is asked for."""

    target: str
    comment: str
    link_in: str = ""
    link_out: str = ""
    source: str = ""
    destination: str = ""
    states: str = ""
    other: str = ""
    """What a rule in the kernel says beyond this; no rule of ours has it."""

    def words(self) -> list[str]:
        """As the words of `iptables -A CHAIN`."""
        words = ["-i", self.link_in] if self.link_in else []
        words += ["-o", self.link_out] if self.link_out else []
        words += ["-s", self.source] if self.source else []
        words += ["-d", self.destination] if self.destination else []
        words += ["-m", "conntrack", "--ctstate", self.states] if self.states else []
        return [*words, "-m", "comment", "--comment", self.comment, "-j", self.target]


Chains = dict[str, tuple[Rule, ...]]
Tables = dict[tuple[int, str], Chains]
"""(IP version, table) → the chains of ours in it."""


def owner(rule: Rule) -> str:
    """The object that a rule serves, or the empty string."""
    return rule.comment.removeprefix("runcnet:") if rule.comment.startswith("runcnet:") else ""


def tables(policy: Policy, standing: Mapping[tuple[int, str], Chains]) -> Tables:
    """The chains that `policy` asks for; rules of kept networks are taken over from `standing`."""
    result: Tables = {}
    for version in (4, 6):
        networks = [n for n in policy.networks if any(s.version == version for s in n.subnets)]
        kept_forward = _kept(policy, standing.get((version, "filter"), {}).get(FORWARD, ()))
        kept_nat = _kept(policy, standing.get((version, "nat"), {}).get(POSTROUTING, ()))
        guard = version in policy.guards
        if networks or guard or kept_forward:
            rules = [Rule(USER, "runcnet:host")]
            rules += _forward(networks, kept_forward)
            if guard:
                rules.append(Rule("DROP", "runcnet:host"))
            result[version, "filter"] = {FORWARD: tuple(rules)}
        nat = _masquerade(networks, version) + kept_nat
        if nat:
            result[version, "nat"] = {POSTROUTING: tuple(nat)}
    return result


def _kept(policy: Policy, rules: Sequence[Rule]) -> list[Rule]:
    fresh = {n.name for n in policy.networks}
    return [rule for rule in rules if owner(rule) in policy.kept - fresh]


def _forward(networks: Sequence[NetworkPolicy], kept: Sequence[Rule]) -> list[Rule]:
    """Filter rules, in three parts: within and between networks, then in, then out.

    Kept rules stand where rules of their kind stand: those that let packets out of a network come
    last, all others before what drops.
    """
    between: list[Rule] = []
    inward: list[Rule] = []
    outward: list[Rule] = []
    for n in networks:
        mark, link = f"runcnet:{n.name}", n.link
        # Bridged packets come by here too where br_netfilter is on.
        within = "DROP" if n.isolate_members else "ACCEPT"
        between.append(Rule(within, mark, link_in=link, link_out=link))
        if n.internal:
            between.append(Rule("DROP", mark, link_in=link))
            between.append(Rule("DROP", mark, link_out=link))
            continue
        between += [
            Rule("DROP", mark, link_in=link, link_out=other.link)
            for other in networks
            if other.link != link
        ]
        inward.append(Rule("ACCEPT", mark, link_out=link, states="RELATED,ESTABLISHED"))
        if n.inbound == "open":
            inward += [Rule("ACCEPT", mark, link_in=u, link_out=link) for u in n.uplinks or ("",)]
        inward.append(Rule("DROP", mark, link_out=link))
        outward += [Rule("ACCEPT", mark, link_in=link, link_out=u) for u in n.uplinks or ("",)]
        outward.append(Rule("DROP", mark, link_in=link))
    parts: list[list[Rule]] = [between, inward, outward]
    for rule in kept:
        both = bool(rule.link_in and rule.link_out)
        late = rule.link_in and not rule.states and not (rule.target == "DROP" and both)
        parts[2 if late else 1].append(rule)
    return between + inward + outward


def _masquerade(networks: Sequence[NetworkPolicy], version: int) -> list[Rule]:
    """Translate what leaves; what goes to a network of ours keeps its address."""
    ours = [(n, s) for n in networks for s in n.subnets if s.version == version]
    rules: list[Rule] = []
    for n, subnet in ours:
        if version not in n.masquerade:
            continue
        mark = f"runcnet:{n.name}"
        rules += [
            Rule("RETURN", mark, source=str(subnet), destination=str(other)) for _, other in ours
        ]
        rules += [
            Rule("MASQUERADE", mark, source=str(subnet), link_out=u) for u in n.uplinks or ("",)
        ]
    return rules


def describe(version: int, table: str, seen: Chains, wanted: Chains) -> list[str]:
    """One line for each chain that differs."""
    lines = []
    for chain in sorted(seen.keys() | wanted.keys()):
        before, after = seen.get(chain), wanted.get(chain)
        if before == after or (chain == USER and after is None):
            continue
        where = f"{chain} (IPv{version} {table})"
        if before is None:
            lines.append(f"make {where}: {_count(after or ())}")
        elif after is None:
            lines.append(f"remove {where}")
        elif sorted(before) == sorted(after):
            lines.append(f"put the rules of {where} in order")
        else:
            gone, new = len(set(before) - set(after)), len(set(after) - set(before))
            lines.append(f"replace {where}: {gone} rules go, {new} come, of {len(after)}")
    return lines


def _count(rules: Sequence[Rule]) -> str:
    return "1 rule" if len(rules) == 1 else f"{len(rules)} rules"


def commands(version: int, table: str, wanted: Chains, *, jump_missing: Iterable[str]) -> list[str]:
    """The same as command lines."""
    import shlex

    lead = [PROGRAM[version], "-w", "-t", table]
    lines = []
    for chain, rules in wanted.items():
        if table == "filter":
            lines.append(f"{shlex.join([*lead, '-N', USER])} 2>/dev/null || true")
        lines.append(f"{shlex.join([*lead, '-N', chain])} 2>/dev/null || true")
        lines.append(shlex.join([*lead, "-F", chain]))
        lines += [shlex.join([*lead, "-A", chain, *rule.words()]) for rule in rules]
    for builtin in jump_missing:
        rule = Rule(JUMPS[table, builtin], "runcnet:host")
        lines.append(shlex.join([*lead, "-I", builtin, "1", *rule.words()]))
    return lines


