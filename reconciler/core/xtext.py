"""A filter table as the text of iptables-save and iptables-restore. Pure: no kernel, no program.

So tables are read and written that are kept by iptables' nft variant, whose rules in the kernel are
a language of its own.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from reconciler.core.model import Subnet, parse_subnet
from reconciler.core.xtables import Chains, Edit, Rule, is_ours

WORD = re.compile(r'"((?:[^"\\]|\\.)*)"|(\S+)')


class Saved(NamedTuple):
    """One table: its chains with their rules, and the policies of the built-in ones."""

    chains: dict[str, tuple[Rule, ...]]
    policies: dict[str, str]


def parsed(text: str) -> Saved | None:
    """The table that iptables-save has printed; None: it printed none, or not all of it.

    A rule that our words cannot say is kept as text (`Rule.other`).
    """
    chains: dict[str, list[Rule]] = {}
    policies: dict[str, str] = {}
    ended = False
    for line in text.splitlines():
        if line.startswith(":"):
            name, policy = line[1:].split()[:2]
            chains[name] = []
            if policy != "-":
                policies[name] = policy
        elif line.startswith("-A "):
            name, _, rule = line[3:].partition(" ")
            chains.setdefault(name, []).append(_rule(rule))
        elif line == "COMMIT":
            ended = True
        elif "incompatible" in line:
            return None  # `# Table 'filter' is incompatible, use 'nft' tool.`
    return (
        Saved({name: tuple(rules) for name, rules in chains.items()}, policies) if ended else None
    )


PLAIN = {
    "-i": "in_link",
    "-o": "out_link",
    "-p": "protocol",
    "-j": "target",
    "--comment": "comment",
}
SUBNETS = {"-s": "source", "-d": "destination"}
GROUPS = {"--src-group": "in_group", "--dst-group": "out_group"}
STATES = {"RELATED,ESTABLISHED": "replies", "DNAT": "translated"}
MATCHES = frozenset({"comment", "conntrack", "devgroup"})


def _rule(text: str) -> Rule:
    words = [quoted.replace("\\", "") if quoted else bare for quoted, bare in WORD.findall(text)]
    try:
        return Rule(**_fields(words))  # type: ignore[arg-type]
    except (KeyError, ValueError):
        pass
    # Not in our words: what matters of it is where it leads, whose it is and what links it meets.
    said: dict[str, str] = {}
    for before, flag, value in zip(["", *words], words, words[1:], strict=False):
        if flag in (*PLAIN, "-g") and before != "!":
            said.setdefault(flag, value)
    ends = tuple("" if "+" in said.get(flag, "") else said.get(flag, "") for flag in ("-i", "-o"))
    return Rule(
        target=said.get("-j", said.get("-g", "")),
        comment=said.get("--comment", ""),
        other=text.encode("utf-8", "surrogateescape"),
        ends=(ends[0], ends[1]),
    )


def _fields(words: list[str]) -> dict[str, object]:
    """The words as fields of a rule. Raises KeyError and ValueError for what is none of ours."""
    found: dict[str, object] = {"target": ""}
    if len(words) % 2:
        raise ValueError
    for flag, value in zip(words[::2], words[1::2], strict=True):
        if flag == "-m":
            if value not in MATCHES:
                raise KeyError(value)
            continue
        one: object = value
        if flag in PLAIN:
            name = PLAIN[flag]
            if flag in ("-i", "-o") and value.endswith("+"):
                raise ValueError
        elif flag in SUBNETS:
            name, one = SUBNETS[flag], _subnet(value)
        elif flag in GROUPS:
            # With a mask it is another match.
            name, one = GROUPS[flag], int(value, 0)
        elif flag == "--ctstate":
            name, one = STATES[value], True
        else:
            raise KeyError(flag)
        if found.get(name):
            raise ValueError
        found[name] = one
    return found


def _subnet(text: str) -> Subnet:
    if "/" not in text:
        raise ValueError
    return parse_subnet(text)


def restored(
    steps: Iterable[Edit], want: Chains, have: Chains, jumps: Mapping[str, Rule]
) -> list[str]:
    """The same steps as lines for `iptables-restore --noflush`, which carries them out at once.

    A chain of ours is written whole, and a rule of a built-in one is told by its words: numbers
    could mean other rules by the time they count.
    """
    steps = list(steps)
    touched = dict.fromkeys(step.chain for step in steps if step.chain not in jumps)
    new = {step.chain for step in steps if step.verb == "new"}
    gone = [step.chain for step in steps if step.verb == "remove"]
    lines = ["*filter"]
    for chain in touched:
        # To declare a chain that stands is to flush it; one that somebody made meanwhile is an error.
        lines.append(f"-N {chain}" if chain in new else f"-F {chain}")
    for chain in touched:
        lines += [f"-A {chain} {words(rule)}" for rule in want.get(chain, ())]
    lines += _jumps(steps, have, jumps)
    return [*lines, *(f"-X {chain}" for chain in gone), "COMMIT"]


def _jumps(steps: Iterable[Edit], have: Chains, jumps: Mapping[str, Rule]) -> Iterator[str]:
    for step in steps:
        if step.chain not in jumps:
            continue
        assert step.rule is not None and (step.verb == "insert" or is_ours(step.rule.target))
        if step.verb == "delete":
            yield f"-D {step.chain} {words(step.rule)}"
        else:
            yield f"-I {step.chain} {step.number} {words(step.rule)}"


def words(rule: Rule) -> str:
    """The rule as iptables-restore takes it."""
    # Names of ours need no quotes: they have no blank in them.
    if rule.other:
        return rule.other.decode("utf-8", "surrogateescape")
    return " ".join(rule.words())
