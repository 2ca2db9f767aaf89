"""What the table `inet runcnet` is made of: sets, maps, chains and rules as values. Pure.

A rule is known by its code, which is what `nft -j` says about it in one spelling, so that what is
wanted and what stands can be compared. An element is known by its key, as numbers and names.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import msgspec

from reconciler.core.model import BITS, Address
from reconciler.core.names import ALIAS as MARK
from reconciler.core.names import stand_in

TABLE = "inet runcnet"
USER = "user"
HOST = MARK + "host"
COMMENT_BYTES = 127
"""The longest comment that nft takes."""
ND_TARGET = "@th,64,128"
"""The address that a neighbour advertisement is about (RFC 4861); `icmpv6 taddr` is younger."""
ADDRESS = {4: "ipv4_addr", 6: "ipv6_addr"}


class Shape(NamedTuple):
    """How a set or a map is declared."""

    key: tuple[str, ...]
    """The types of the parts of a key, in nft's words."""
    data: tuple[str, ...] = ()
    """Of a map: what a key leads to."""
    interval: bool = False
    """Addresses and ports of a key are runs: the first and the last."""
    timeout_s: int = 0
    """Not 0: packets add the elements, which are nobody's to compare."""
    size: int = 0

    @property
    def declaration(self) -> str:
        """What stands between the braces of `add set`."""
        kinds = " . ".join(self.key) + (f" : {' . '.join(self.data)}" if self.data else "")
        if self.key == ("ifname", "integer"):
            # No type has a name for a part of a packet.
            return f"{{ typeof iifname . {ND_TARGET}; }}"
        flags = "flags interval; " if self.interval else ""
        if self.timeout_s:
            flags = f"size {self.size}; flags dynamic,timeout; timeout {self.timeout_s}s; "
        return f"{{ type {kinds}; {flags}}}"


Part = Any
"""A name, a number (an address, a port, a device group), or the first and the last of a run."""
Key = tuple[Part, ...]


class Element(NamedTuple):
    """What a key leads to (a verdict, an address and a port, or an address alone), and whose it is."""

    comment: str
    data: str | tuple[int, ...] = ""


class Rule(NamedTuple):
    """One rule; `text` is empty where it was read from the kernel."""

    code: bytes
    text: str = ""


class Chain(NamedTuple):
    """A chain. `hook`: type, hook, priority and policy of a base chain."""

    rules: tuple[Rule, ...] = ()
    hook: tuple[str, str, int, str] | None = None

    @property
    def codes(self) -> list[bytes]:
        """What tells it apart from another one with the same hook."""
        return [rule.code for rule in self.rules]


class Table(NamedTuple):
    """The whole table. Not `present`: the kernel has none of that name.

    `dormant`: somebody has put it to sleep, so that no packet meets it. nft 1.0.6 cannot print it
    then, so of a dormant table the elements alone are known.
    """

    shapes: Mapping[str, Shape]
    elements: Mapping[str, Mapping[Key, Element]]
    chains: Mapping[str, Chain]
    present: bool = True
    dormant: bool = False
    held: frozenset[str] = frozenset()
    """Chains and sets that the administrator's rules lead to or look up."""
    name: str = TABLE
    """Its family and name."""


EMPTY = Table({}, {}, {}, present=False)


def is_users(name: str) -> bool:
    """Whether a chain or a set is the administrator's by its name."""
    return name.startswith(USER)


def comment(whose: str) -> str:
    """The comment of an object's elements; of a name that is too long for nft, a digest."""
    text = MARK + whose
    if len(text) <= COMMENT_BYTES:
        return text
    network, _, container = whose.partition("/")
    return f"{MARK}{network}/{stand_in(container)}"


def owner(element: Element) -> str:
    """Whose an element is: a network, or `NETWORK/CONTAINER`; empty: nobody says."""
    text = element.comment
    return text.removeprefix(MARK) if text.startswith(MARK) else ""


def rule_code(expressions: object, comment: str) -> bytes:
    """The code of a rule, out of its expressions as `nft -j` prints them."""
    return msgspec.json.encode([_plain(expressions), comment], order="deterministic")


def _plain(value: Any) -> Any:
    """One spelling for what versions of nft write in several."""
    if isinstance(value, dict):
        plain = {key: _plain(one) for key, one in value.items() if key != "handle"}
        if plain.get("op") == "in":
            plain["op"] = "=="
        if set(plain) == {"set"}:
            return _sorted(plain["set"])
        if "right" in plain:
            plain["right"] = _sorted(plain["right"])
        return plain
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return value


def _sorted(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    return value[0] if len(value) == 1 else sorted(value, key=str)


# -- elements as text ---------------------------------------------------------------------------


def element_text(shape: Shape, key: Key, element: Element | None = None) -> str:
    """An element as nft takes it; without `element`: as it takes one away."""
    text = " . ".join(_part(kind, part) for kind, part in zip(shape.key, key, strict=True))
    if element is None:
        return text
    if element.comment:
        text += f' comment "{element.comment}"'
    if isinstance(element.data, tuple):
        address, *port = element.data
        goal = [str(Address(_version(shape.data[0]), address)), *map(str, port)]
        text += f" : {' . '.join(goal)}"
    elif element.data:
        text += f" : {element.data}"
    return text


def _version(kind: str) -> int:
    return next(version for version, name in ADDRESS.items() if name == kind)


def _part(kind: str, part: Part) -> str:
    if kind == "ifname":
        return f'"{part}"'
    if kind == "integer":
        return hex(part)
    if kind not in ADDRESS.values():
        return f"{part[0]}-{part[1]}" if _is_run(part) else _one(part)
    version = _version(kind)
    if not isinstance(part, tuple):
        return str(Address(version, part))
    first, last = part
    free = (first ^ last).bit_length()
    if last - first == (1 << free) - 1:
        lead = str(Address(version, first))
        return f"{lead}/{BITS[version] - free}" if free else lead
    return f"{Address(version, first)}-{Address(version, last)}"


def _is_run(part: Part) -> bool:
    return isinstance(part, tuple) and part[0] != part[1]


def _one(part: Part) -> str:
    return str(part[0] if isinstance(part, tuple) else part)


# -- how to get there ---------------------------------------------------------------------------


class Difference(NamedTuple):
    """What keeps one table from being another."""

    chains: tuple[str, ...]
    """To be written anew."""
    gone_chains: tuple[str, ...]
    sets: tuple[str, ...]
    """To be declared, anew where they stand."""
    gone_sets: tuple[str, ...]
    emptied: tuple[str, ...]
    """Chains and sets that would go, but for a rule of the administrator's."""
    added: dict[str, dict[Key, Element]]
    removed: dict[str, list[Key]]


def difference(want: Table, have: Table) -> Difference:
    """What must change to get from `have` to `want`."""
    sets = tuple(n for n, shape in want.shapes.items() if have.shapes.get(n) != shape)
    gone_sets = tuple(n for n in have.shapes if n not in want.shapes and not _stays(n, have))
    renewed = [f'"@{name}"'.encode() for name in sets if name in have.shapes]
    chains = tuple(
        name
        for name, chain in want.chains.items()
        if name not in have.chains
        or (
            not is_users(name)
            and (
                (have.chains[name].hook, have.chains[name].codes) != (chain.hook, chain.codes)
                or any(mark in rule.code for mark in renewed for rule in chain.rules)
            )
        )
    )
    gone_chains = tuple(n for n in have.chains if n not in want.chains and not _stays(n, have))
    added: dict[str, dict[Key, Element]] = {}
    removed: dict[str, list[Key]] = {}
    for name, elements in want.elements.items():
        stand = {} if name in sets else have.elements.get(name, {})
        if elements == stand:
            continue
        added[name] = {key: one for key, one in elements.items() if stand.get(key) != one}
        removed[name] = [key for key, one in stand.items() if elements.get(key) != one]
    emptied = [
        name
        for name in sorted(have.held - want.shapes.keys() - want.chains.keys())
        if not is_users(name) and (have.elements.get(name) or have.chains.get(name, Chain()).rules)
    ]
    return Difference(chains, gone_chains, sets, gone_sets, tuple(emptied), added, removed)


def _stays(name: str, have: Table) -> bool:
    return is_users(name) or name in have.held


def _users_own(have: Table) -> bool:
    """Whether the administrator has written something."""
    return any(is_users(n) for n in have.shapes) or any(
        is_users(n) and (n != USER or chain.rules) for n, chain in have.chains.items()
    )


def script(want: Table, have: Table) -> list[str]:
    """The lines for `nft -f` that turn `have` into `want` at once; none where nothing differs.

    A dormant table is woken, and no more: what it holds cannot be read before.
    """
    if have.dormant:
        return [f"add table {want.name}"]
    if not want.chains and not _users_own(have):
        return [f"delete table {want.name}"] if have.present else []
    if not want.chains and not have.present:
        return []
    d = difference(want, have)
    rehooked = [
        n for n in d.chains if n in have.chains and have.chains[n].hook != want.chains[n].hook
    ]
    flushed = [n for n in (*d.chains, *d.gone_chains, *d.emptied) if n in have.chains]
    drained = [n for n in d.emptied if n in have.shapes]
    lines = [] if have.present else [f"add table {want.name}"]
    lines += [f"flush chain {want.name} {name}" for name in flushed]
    lines += [f"flush {_noun(have, name)} {want.name} {name}" for name in drained]
    lines += [f"delete chain {want.name} {name}" for name in (*rehooked, *d.gone_chains)]
    renewed = [name for name in d.sets if name in have.shapes]
    lines += [f"delete {_noun(have, name)} {want.name} {name}" for name in (*renewed, *d.gone_sets)]
    lines += [
        f"add {_noun(want, name)} {want.name} {name} {want.shapes[name].declaration}"
        for name in d.sets
    ]
    for name in d.chains:
        if name not in have.chains or name in rehooked:
            lines.append(f"add chain {want.name} {name}{_hooked(want.chains[name])}")
    lines += element_lines("delete", want, {n: dict.fromkeys(k) for n, k in d.removed.items()})
    lines += element_lines("add", want, d.added)
    lines += [
        f"add rule {want.name} {name} {rule.text}"
        for name in d.chains
        for rule in want.chains[name].rules
    ]
    return lines


def _noun(table: Table, name: str) -> str:
    return "map" if table.shapes[name].data else "set"


def _hooked(chain: Chain) -> str:
    if chain.hook is None:
        return ""
    kind, hook, priority, policy = chain.hook
    return f" {{ type {kind} hook {hook} priority {priority}; policy {policy}; }}"


def element_lines(
    verb: str, want: Table, changed: Mapping[str, Mapping[Key, Element | None]]
) -> Iterable[str]:
    """The lines that add elements to the sets of a table, or delete them."""
    for name, elements in changed.items():
        if elements:
            shape = want.shapes[name]
            texts = ",\n".join(element_text(shape, key, one) for key, one in elements.items())
            yield f"{verb} element {want.name} {name} {{ {texts} }}"


def differences(want: Table, have: Table) -> list[str]:
    """What `script` would mend, for people."""
    if not script(want, have):
        return []
    if not have.present:
        return [f"table {want.name}: missing"]
    if not want.chains:
        return [f"table {want.name}: no longer wanted"]
    if have.dormant:
        return [f"table {want.name}: dormant"]
    d = difference(want, have)
    lines = []
    for name in want.shapes:
        missing, extra = len(d.added.get(name, ())), len(d.removed.get(name, ()))
        parts = [
            f"{count} {'element' if count == 1 else 'elements'} {what}"
            for count, what in ((missing, "missing"), (extra, "not wanted"))
            if count
        ]
        if name in d.sets:
            parts = ["declared otherwise" if name in have.shapes else "missing"]
        if parts:
            lines.append(f"{_noun(want, name)} {name} (nftables): {', '.join(parts)}")
    lines += [f"{_noun(have, name)} {name} (nftables): no longer wanted" for name in d.gone_sets]
    lines += [
        f"{name} (nftables): to be emptied: the administrator's rules need it" for name in d.emptied
    ]
    for name in d.chains:
        text = "rules that differ" if name in have.chains else "missing"
        if name in have.chains and have.chains[name].hook != want.chains[name].hook:
            text = "at another hook, or with another policy"
        lines.append(f"chain {name} (nftables): {text}")
    lines += [f"chain {name} (nftables): no longer wanted" for name in d.gone_chains]
    return lines
