"""What nft has said of chains, rules and sets, kept by the kernel's own bytes of them.

The program takes long to start, and reads all elements though it prints none. The same bytes mean
the same: so rules that somebody flushed, put in another order, or that were put back are told from
a dump alone, and the program is asked of what was never seen before.
"""

from typing import Any, NamedTuple

import msgspec

from reconciler.core import nftset
from reconciler.core.nftset import Chain, Rule, Shape, Table
from reconciler.host.firewall import nfnl

MANY = 4096
Hook = tuple[str, str, int, str] | None
Bytes = tuple[tuple[int, bytes], ...]
UNNAMED = b"__"
"""How the names of sets begin that belong to one rule (`{ 80, 443 }`); they are counted, and so
mean something in that rule alone."""


class Line(NamedTuple):
    """A rule, and the chains and sets that it leads to or looks up."""

    rule: Rule
    names: frozenset[str]


class Learned:
    """Grows with `learn`, and is looked up by `table`."""

    def __init__(self) -> None:
        self._chains: dict[Bytes, Hook] = {}
        self._shapes: dict[Bytes, Shape] = {}
        self._rules: dict[Bytes, Line] = {}

    def table(self, dump: nfnl.Structure) -> Table | None:
        """The table without its elements; None: something of it was never seen."""
        try:
            shapes = {_set_name(one): self._shapes[_set_key(one)] for one in _named(dump)}
            hooks = {
                nfnl.text(one[nfnl.CHAIN_NAME]): self._chains[_chain_key(one)]
                for one in dump.chains
            }
            lines = [(_chain_of(one), self._rules[_rule_key(one)]) for one in dump.rules]
        except KeyError:
            return None
        rules: dict[str, list[Rule]] = {}
        for chain, line in lines:
            rules.setdefault(chain, []).append(line.rule)
        held = frozenset().union(*(n.names for chain, n in lines if nftset.is_users(chain)))
        chains = {name: Chain(tuple(rules.get(name, ())), hook) for name, hook in hooks.items()}
        return Table(shapes, {}, chains, held=held)

    def learn(self, said: str, dump: nfnl.Structure) -> None:
        """Take in what nft has said of what the kernel held at the same time.

        Raises msgspec.DecodeError, ValueError, LookupError, TypeError and AttributeError for what
        cannot be read.
        """
        if len(self._chains) + len(self._shapes) + len(self._rules) > MANY:
            self._chains.clear()
            self._shapes.clear()
            self._rules.clear()
        chains: dict[str, Hook] = {}
        shapes: dict[str, Shape] = {}
        lines: dict[tuple[str, int], Line] = {}
        for item in msgspec.json.decode(said)["nftables"]:
            ((kind, one),) = item.items()
            if kind in ("set", "map"):
                shapes[one["name"]] = _shape(one)
            elif kind == "chain":
                hooked = "hook" in one
                chains[one["name"]] = (
                    (one["type"], one["hook"], one["prio"], one["policy"]) if hooked else None
                )
            elif kind == "rule":
                rule = Rule(nftset.rule_code(one["expr"], one.get("comment", "")))
                lines[one["chain"], one["handle"]] = Line(rule, frozenset(_names(one["expr"])))
        for found in dump.chains:
            self._chains[_chain_key(found)] = chains[nfnl.text(found[nfnl.CHAIN_NAME])]
        for found in _named(dump):
            self._shapes[_set_key(found)] = shapes[_set_name(found)]
        for found in dump.rules:
            handle = int.from_bytes(found[nfnl.RULE_HANDLE], "big")
            self._rules[_rule_key(found)] = lines[_chain_of(found), handle]


def _named(dump: nfnl.Structure) -> list[dict[int, bytes]]:
    """The sets that are declared, which alone nft lists."""
    return [one for one in dump.sets if not one[nfnl.SET_NAME].startswith(UNNAMED)]


def _set_name(one: dict[int, bytes]) -> str:
    return nfnl.text(one[nfnl.SET_NAME])


def _chain_of(rule: dict[int, bytes]) -> str:
    return nfnl.text(rule[nfnl.RULE_CHAIN])


def _set_key(one: dict[int, bytes]) -> Bytes:
    changing = (nfnl.SET_HANDLE, nfnl.SET_POINTER, nfnl.SET_COUNT)
    return tuple(sorted(item for item in one.items() if item[0] not in changing))


def _chain_key(one: dict[int, bytes]) -> Bytes:
    changing = (nfnl.CHAIN_HANDLE, nfnl.CHAIN_USE)
    return tuple(sorted(item for item in one.items() if item[0] not in changing))


def _rule_key(one: dict[int, bytes]) -> Bytes:
    # Its place is not the rule: what stands before it, and the number that it was given.
    place = {nfnl.RULE_CHAIN, nfnl.RULE_POSITION, nfnl.RULE_HANDLE}
    if any(UNNAMED in data for data in one.values()):
        place.discard(nfnl.RULE_HANDLE)
    return tuple(sorted(item for item in one.items() if item[0] not in place))


def _shape(one: dict[str, Any]) -> Shape:
    key = one["type"]
    data = one.get("map", ())
    # What is in no word of ours makes it another shape than any of ours.
    flags = set(_listed(one.get("flags", ()))) - {"dynamic", "timeout"}
    known = {"family", "name", "table", "type", "handle", "map", "flags", "timeout", "size", "elem"}
    odd = tuple(sorted((flags - {"interval"}) | (set(one) - known)))
    return Shape(
        (*_listed(key), *odd),
        tuple(data.split(" . ")) if isinstance(data, str) else tuple(data),
        interval="interval" in flags,
        timeout_s=one.get("timeout", 0),
        size=one.get("size", 0),
    )


def _listed(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def _names(value: Any) -> set[str]:
    """The chains and sets that an expression leads to or looks up."""
    if isinstance(value, dict):
        found = {str(value["target"])} if set(value) == {"target"} else set()
        return found.union(*(_names(one) for one in value.values()))
    if isinstance(value, list):
        return set().union(*(_names(one) for one in value))
    return {value[1:]} if isinstance(value, str) and value.startswith("@") else set()
