"""iptables rules as values, and what must be edited to get from one state of a table to another.

Pure: no kernel, no library. Which chains are wanted is said by `chains.py`.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from reconciler.core.model import Address, Subnet

PREFIX = "RUNCNET-"
FORWARD = "RUNCNET-FORWARD"
CROSS = "RUNCNET-CROSS"
USER = "RUNCNET-USER"
INPUT = "RUNCNET-INPUT"
PORTS = "RUNCNET-PORTS"
POSTROUTING = "RUNCNET-POSTROUTING"
PREROUTING = "RUNCNET-PREROUTING"
MARK = "runcnet:"
HOST = MARK + "host"
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
    translated: bool = False
    """`-m conntrack --ctstate DNAT`: it was sent to another address than the one it goes to."""
    local: bool = False
    """`-m addrtype --dst-type LOCAL`."""
    not_in_link: str = ""
    """`! -i`."""
    protocol: str = ""
    ports: tuple[int, int] = (0, 0)
    """The first and the last destination port."""
    icmp: int = 0
    """The type of an ICMPv6 message."""
    to: tuple[Address, int, int, int] | None = None
    """Of DNAT: the address, its first and last port, and which port of the packet meets the first."""
    other: bytes = b""
    """The kernel's bytes of a rule that these words cannot say: nobody's mistake is ever mistaken
    for ours, and a rule that must stay can be written back as it was."""
    ends: tuple[str, str] = ("", "")
    """Of such a rule: the only link that it meets packets from, and to; empty: not known."""

    def words(self) -> list[str]:
        """The rule as iptables takes it, from `-s` to the target."""
        words: list[str] = []
        for flag, value in (
            ("-s", self.source),
            ("-d", self.destination),
            ("-i", self.in_link),
            ("-o", self.out_link),
            ("-p", self.protocol),
        ):
            if value:
                words += [flag, str(value)]
        if self.not_in_link:
            words += ["!", "-i", self.not_in_link]
        if self.ports != (0, 0):
            words += ["-m", self.protocol, "--dport", port_run(*self.ports, ":")]
        if self.icmp:
            words += ["-m", "icmp6", "--icmpv6-type", str(self.icmp)]
        if self.local:
            words += ["-m", "addrtype", "--dst-type", "LOCAL"]
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
        if self.translated:
            words += ["-m", "conntrack", "--ctstate", "DNAT"]
        if self.comment:
            words += ["-m", "comment", "--comment", self.comment]
        words += ["-j", self.target] if self.target else []
        return [*words, "--to-destination", self.goal] if self.to is not None else words

    @property
    def goal(self) -> str:
        """DNAT's destination as iptables takes it."""
        assert self.to is not None
        address, first, last, base = self.to
        host = f"[{address}]" if address.version == 6 else str(address)
        shift = f"/{base}" if first != last and base != first else ""
        return f"{host}:{port_run(first, last, '-')}{shift}"


def port_run(first: int, last: int, between: str) -> str:
    """A run of ports, or one."""
    return str(first) if first == last else f"{first}{between}{last}"


Chains = Mapping[str, tuple[Rule, ...]]

JUMPS = {
    "filter": {"FORWARD": Rule(FORWARD, HOST), "INPUT": Rule(INPUT, HOST)},
    "nat": {
        "PREROUTING": Rule(PORTS, HOST, local=True),
        "OUTPUT": Rule(PORTS, HOST, local=True),
        "POSTROUTING": Rule(POSTROUTING, HOST),
    },
    "raw": {"PREROUTING": Rule(PREROUTING, HOST)},
}
"""The tables that are used, with the jumps from their built-in chains to ours."""
BESIDE = MARK + "beside"
BESIDE_JUMPS = {"FORWARD": Rule(FORWARD, BESIDE), "INPUT": Rule(INPUT, HOST)}
"""The same for a filter table that holds our rules beside another firewall, which is where they live."""
ASK_USER = Rule(USER, HOST)
PASSING = frozenset(
    {"", "LOG", "NFLOG", "ULOG", "TRACE", "AUDIT", "MARK", "CONNMARK", "SECMARK", "CONNSECMARK", "SET",
     "CLASSIFY", "DSCP", "TOS", "TTL", "HL", "TCPMSS", "TCPOPTSTRIP", "CHECKSUM", "CT", "NOTRACK", "TEE",
     "RATEEST", "IDLETIMER", "LED"}
)  # fmt: skip
"""Targets behind which a packet meets the next rule. RETURN is none: in a built-in chain it is the
policy's word, and that is the last."""
ADMINISTRATORS = ("-USER", "-ADMIN")
"""How chains of other tools end in which an administrator writes (DOCKER-USER): they come before ours."""
OUT_OF_PLACE = "out of place"


def jumps_of(table: str, *, beside: bool) -> Mapping[str, Rule]:
    """The jumps from the built-in chains of a table."""
    return BESIDE_JUMPS if beside and table == "filter" else JUMPS[table]


def is_ours(chain: str) -> bool:
    """Whether a chain is runcnet's by its name."""
    return chain.startswith(PREFIX)


class Edit(NamedTuple):
    """One step of a commit; rules are counted from 1, in the chain as the steps before left it."""

    verb: str
    """`new`, `flush`, `append`, `insert`, `delete` (a rule by its number), `remove` (a chain)."""
    chain: str
    rule: Rule | None = None
    number: int = 0


# -- how to get there ---------------------------------------------------------------------------


def edits(
    want: Chains, have: Chains, *, table: str, beside: bool = False, yielding: bool = False
) -> list[Edit]:
    """The steps of one commit that turn `have` into `want`; none where nothing differs.

    `beside`: the table only helps another firewall out (`BESIDE_JUMPS`). `yielding`: a jump that
    stands is left where it is, whatever stands before it.
    """
    jumps = jumps_of(table, beside=beside)
    steps = [Edit("new", chain) for chain in want if chain not in have]
    for chain, rules in want.items():
        steps += _rule_edits(chain, rules, have.get(chain, ()))
    for base, jump in jumps.items():
        steps += _jump_edits(base, jump, want, have, yielding)
    return steps + _removals(want, have, jumps)


def _rule_edits(chain: str, want: tuple[Rule, ...], have: tuple[Rule, ...]) -> list[Edit]:
    """What lies between the first and the last difference is written anew."""
    if want == have:
        return []
    if not have:
        return [Edit("append", chain, rule) for rule in want]
    head = _shared(want, have)
    # What is both at the head and at the tail counts as head.
    tail = _shared(want[: head - 1 if head else None : -1], have[: head - 1 if head else None : -1])
    if head + tail == 0:
        return [Edit("flush", chain), *(Edit("append", chain, rule) for rule in want)]
    # From the bottom up, so that the numbers above stay true.
    going = range(len(have) - tail, head, -1)
    steps = [Edit("delete", chain, have[number - 1], number) for number in going]
    coming = enumerate(want[head : len(want) - tail], head + 1)
    if not tail:
        return steps + [Edit("append", chain, rule) for _, rule in coming]
    return steps + [Edit("insert", chain, rule, number) for number, rule in coming]


def _shared(one: tuple[Rule, ...], other: tuple[Rule, ...]) -> int:
    """How many rules both begin with; by halves, for whole runs are compared in no time."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _jump_edits(base: str, jump: Rule, want: Chains, have: Chains, yielding: bool) -> list[Edit]:
    """The jump stands once, and before everything that could have the last word on packets of ours.

    Jumps to chains of other tools may stand before it: such tools (Docker, for one) put them at the
    top each time they start, and to insist on the first place would be a race without end.
    """
    rules = have.get(base, ())
    places = [place for place, rule in enumerate(rules) if is_ours(rule.target)]
    if jump.target in want and len(places) == 1 and rules[places[0]] == jump:
        before = rules[: places[0]]
        if yielding or not any(decides(rule, base, want, have) for rule in before):
            return []
    # From the bottom up, so that the numbers above stay true.
    steps = [Edit("delete", base, rules[place], place + 1) for place in reversed(places)]
    if jump.target not in want:
        return steps
    theirs = [rule for rule in rules if not is_ours(rule.target)]
    lead = 0
    while lead < len(theirs) and _asks_administrator(theirs[lead], have):
        lead += 1
    return [*steps, Edit("insert", base, jump, lead + 1)]


def _asks_administrator(rule: Rule, have: Chains) -> bool:
    return not rule.other and rule.target in have and rule.target.endswith(ADMINISTRATORS)


def decides(rule: Rule, base: str, want: Chains, have: Chains) -> bool:
    """Whether a rule of a built-in chain could have the last word on a packet of ours."""
    if rule.target in PASSING or (rule.target in have and not rule.other):
        return False
    source = rule.in_link or rule.in_group or rule.ends[0]
    target = rule.out_link or rule.out_group or rule.ends[1]
    if base == "FORWARD":
        # A packet is ours where it comes from a network of ours, or goes to one.
        own = {r.in_link or r.in_group for r in want.get(FORWARD, ()) if _is_among(r)}
        return not source or not target or source in own or target in own
    if base == "INPUT":
        own = {r.in_link or r.in_group or r.ends[0] for r in want.get(INPUT, ())} - {""}
        return not source or source in own
    if base in ("PREROUTING", "OUTPUT") and PORTS in want:
        return any(_meet(rule, port) for port in want[PORTS])
    return True


def _is_among(rule: Rule) -> bool:
    return (rule.in_link, rule.in_group) == (rule.out_link, rule.out_group) != ("", 0)


def _meet(rule: Rule, port: Rule) -> bool:
    """Whether a packet to a published port could meet the rule."""
    if rule.other or port.other or not rule.protocol:
        return True
    apart = rule.ports[0] > port.ports[1] or port.ports[0] > rule.ports[1]
    return rule.protocol == port.protocol and (rule.ports == (0, 0) or not apart)


def _removals(want: Chains, have: Chains, jumps: Mapping[str, Rule]) -> list[Edit]:
    """Chains of ours that are no longer wanted; the administrator's only where it is empty."""
    gone = [c for c in have if is_ours(c) and c not in want and not (c == USER and have[c])]
    staying = [c for c in have if c not in gone and (c == USER or not is_ours(c))]
    held = {
        rule.target
        for chain in staying
        for rule in have[chain]
        if not (chain in jumps and is_ours(rule.target))
    }
    # Emptied first: they may jump to one another. One that a foreign rule jumps to cannot go.
    steps = [Edit("flush", chain) for chain in gone if have[chain]]
    return steps + [Edit("remove", chain) for chain in gone if chain not in held]


# -- for people ---------------------------------------------------------------------------------


def differences(
    want: Chains,
    have: Chains,
    *,
    version: int,
    table: str,
    beside: bool = False,
    yielding: bool = False,
    program: str = "",
) -> list[str]:
    """What `edits` would mend, a line a chain. `program`: whose table it is, if that is not plain."""
    where = f"(IPv{version} {table}{' of ' if program else ''}{program})"
    jumps = jumps_of(table, beside=beside)
    steps = edits(want, have, table=table, beside=beside, yielding=yielding)
    touched = {step.chain for step in steps}
    lines = []
    for chain, rules in want.items():
        if chain in touched:
            text = _difference(rules, have[chain]) if chain in have else "missing"
            lines.append(f"chain {chain} {where}: {text}")
    for base, jump in jumps.items():
        if base not in touched:
            continue
        stands = sum(is_ours(rule.target) for rule in have.get(base, ()))
        verdict = "missing" if not stands else OUT_OF_PLACE if stands == 1 else "repeated"
        text = verdict if jump.target in want else "no longer wanted"
        lines.append(f"jump from {base} {where}: {text}")
    gone = [
        chain for chain in have if chain in touched and chain not in want and chain not in jumps
    ]
    return lines + [f"chain {chain} {where}: no longer wanted" for chain in gone]


def moves(lines: Iterable[str]) -> bool:
    """Whether a jump is out of place among differences that were said."""
    return any(line.endswith(OUT_OF_PLACE) for line in lines)


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
