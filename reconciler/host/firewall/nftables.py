"""The nftables backend: the table `inet runcnet` and, for what members of bridges send from, `bridge
runcnet`, changed by the nft program in one transaction.

What stands is read in two ways: chains, rules and declarations by `nft -j -t`, which does not list
elements; those by netlink, which is fifty times as quick as the program where they are thousands.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from typing import Any

from reconciler.core import nft, nftbridge, nftset
from reconciler.core.errors import FirewallError
from reconciler.core.nftset import TABLE, Chain, Element, Key, Rule, Shape, Table
from reconciler.core.policy import Policy, Sender
from reconciler.host.firewall import Seen, foreign, nfnl
from reconciler.host.firewall.iptables import BRIDGE_SYSCTL

NAME = "runcnet"
WORDS = {nfnl.INET: "inet", nfnl.BRIDGE: "bridge"}
EMPTY = {nfnl.INET: nftset.EMPTY, nfnl.BRIDGE: nftbridge.EMPTY}
SHAPES = {nfnl.INET: nft.SHAPES, nfnl.BRIDGE: nftbridge.SHAPES}
USER_CHAIN = f"{TABLE} {nftset.USER}"
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
READS = 20
STEPS = 2
"""A table that sleeps is woken first; and once more, where somebody came in between."""
NOTHING = Policy()
TIMEOUT_S = 60.0


def program() -> str | None:
    """The path of the nft program, if it is installed."""
    return shutil.which("nft", path=f"{PATH}:/usr/local/sbin:/usr/local/bin")


class Nftables:
    """Rules in a table of our own, through nft."""

    name = "nftables"

    def look(self, policy: Policy) -> Seen:
        """Compare the kernel with the policy; see `Backend`."""
        if policy == NOTHING and program() is None:
            lines = tuple(f"table {WORDS[f]} {NAME}: no longer wanted" for f in _removable())
            return Seen(
                differences=lines, networks=frozenset(), guards=frozenset(), ports={}, notes=()
            )
        pairs = _pairs(policy)
        (_, have), (_, bridged) = pairs
        return Seen(
            differences=tuple(line for pair in pairs for line in nftset.differences(*pair)),
            networks=nft.networks_in(have),
            guards=nft.guards_in(have),
            ports=nft.ports_in(have, policy.publications),
            notes=(),
            senders=nftbridge.senders_in(bridged),
        )

    def replace(self, policy: Policy) -> tuple[str, ...]:
        """Make the kernel match; see `Backend`."""
        left: list[str] = []
        for _ in range(STEPS):
            pairs = _pairs(policy)
            lines = [line for pair in pairs for line in nftset.script(*pair)]
            if not lines:
                return ()
            _nft("change the rules", "-f", "-", text="\n".join(lines) + "\n")
            left = [
                line
                for family, (want, _) in zip(WORDS, pairs, strict=True)
                for line in nftset.differences(want, read(family))
            ]
            if not left:
                return ()
        raise FirewallError(
            f"firewall: check what was committed: {left[0]} (another program changes the table, "
            "or this version of nft says otherwise what it is told)"
        )

    def admit(self, policy: Policy, senders: tuple[Sender, ...]) -> None:
        """Add elements; see `Backend`. What they take the place of goes with the next whole look."""
        if not present(nfnl.BRIDGE):
            self.replace(policy)
            return
        want = nftbridge.EMPTY._replace(shapes=nftbridge.SHAPES)
        lines = nftset.element_lines("add", want, nftbridge.elements(senders))
        _nft("admit addresses", "-f", "-", text="\n".join(lines) + "\n")

    def remove(self) -> None:
        """Take all of ours away; see `Backend`."""
        if program() is not None:
            self.replace(NOTHING)
        for family in _removable() if program() is None else ():
            nfnl.remove_table(NAME, family)

    def commands(self, policy: Policy) -> tuple[str, ...]:
        """The edits as one command of a shell; see `Backend`."""
        lines = [line for pair in _pairs(policy) for line in nftset.script(*pair)]
        return ("nft -f - <<'END'", *lines, "END") if lines else ()

    def warnings(self, policy: Policy) -> tuple[str, ...]:
        """Base chains of others that drop; see `Backend`."""
        return foreign.warnings(policy, backend=self.name)

    def told(self, policy: Policy) -> tuple[str, ...]:
        """Nothing beyond its name; see `Backend`."""
        return (f"the firewall is {self.name}",)


def _pairs(policy: Policy) -> tuple[tuple[Table, Table], tuple[Table, Table]]:
    """What is wanted and what stands, of each family, in the order of WORDS."""
    have, bridge = read(), read(nfnl.BRIDGE)
    bridged = [version for version, path in BRIDGE_SYSCTL.items() if os.path.exists(path)]
    return (
        (nft.wanted(policy, have=have, bridged=bridged), have),
        (nftbridge.wanted(policy, have=bridge), bridge),
    )


def present(family: int = nfnl.INET) -> bool:
    """Whether there is a table of our name; asks the kernel alone."""
    return (family, NAME) in nfnl.tables()


def stands() -> bool:
    """Whether chains of ours stand; asks the kernel alone."""
    names = (
        nfnl.text(found[nfnl.CHAIN_NAME])
        for family, found in nfnl.dump(nfnl.GETCHAIN, b"", nfnl.INET)
        if family == nfnl.INET and nfnl.text(found[nfnl.CHAIN_TABLE]) == NAME
    )
    return any(not nftset.is_users(name) for name in names)


def _removable() -> list[int]:
    """The tables that can go without the nft program, which would keep what the administrator wrote."""
    known = nfnl.tables()
    return [f for f in WORDS if (f, NAME) in known and not (f == nfnl.INET and users_rules())]


def users_rules() -> bool:
    """Whether the administrator's chain holds rules."""
    body = nfnl.attribute(nfnl.RULE_TABLE, NAME.encode() + b"\0")
    chain = nftset.USER.encode() + b"\0"
    return any(
        rule.get(nfnl.RULE_CHAIN) == chain for _, rule in nfnl.dump(nfnl.GETRULE, body, nfnl.INET)
    )


def read(family: int = nfnl.INET) -> Table:
    """The table of that family as it is."""
    for _ in range(READS):
        before = nfnl.generation()
        found = _read(family)
        if found is not None and nfnl.generation() == before:
            return found
    raise FirewallError(
        f"firewall: read the table {WORDS[family]} {NAME}: nftables change all the time "
        "(find out who rewrites them)"
    )


def _read(family: int) -> Table | None:
    """None: the table went away meanwhile."""
    flags = nfnl.tables().get((family, NAME))
    if flags is None:
        return EMPTY[family]
    name = f"{WORDS[family]} {NAME}"
    if flags & nfnl.DORMANT:
        known = SHAPES[family]
        shapes = {one: known[one] for one in nfnl.sets(NAME, family) if one in known}
        return Table(shapes, _elements(shapes, family), {}, dormant=True, name=name)
    structure = nfnl.structure(NAME, family)
    if family not in _last or _last[family][0] != structure:
        try:
            said = _nft("read the rules", "-j", "-t", "list", "table", WORDS[family], NAME)
        except FirewallError:
            if present(family):
                raise
            return None
        try:
            _last[family] = structure, _parsed(said)._replace(name=name)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise FirewallError(
                f"firewall: read the rules: what nft -j prints cannot be read: {error!r} (another "
                "version of nftables may do, or --firewall iptables)"
            ) from error
    found = _last[family][1]
    return found._replace(elements=_elements(found.shapes, family))


def _elements(shapes: Mapping[str, Shape], family: int) -> dict[str, dict[Key, Element]]:
    """Those of the sets that are declared as ours are."""
    return {
        name: nfnl.elements(NAME, name, shape, family)
        for name, shape in shapes.items()
        if SHAPES[family].get(name) == shape and not shape.timeout_s
    }


_last: dict[int, tuple[object, Table]] = {}
"""By family, the structure that was read last, and what nft said of it: the same bytes mean the same."""


def _parsed(said: str) -> Table:
    """The table without its elements, out of what nft prints."""
    shapes: dict[str, Shape] = {}
    chains: dict[str, Chain] = {}
    rules: dict[str, list[Rule]] = {}
    held: set[str] = set()
    for item in json.loads(said)["nftables"]:
        ((kind, one),) = item.items()
        if kind in ("set", "map"):
            shapes[one["name"]] = _shape(one)
        elif kind == "chain":
            hook = (one["type"], one["hook"], one["prio"], one["policy"]) if "hook" in one else None
            chains[one["name"]] = Chain((), hook)
        elif kind == "rule":
            code = nftset.rule_code(one["expr"], one.get("comment", ""))
            rules.setdefault(one["chain"], []).append(Rule(code))
            if nftset.is_users(one["chain"]):
                held |= _names(one["expr"])
    for name, chain in chains.items():
        chains[name] = chain._replace(rules=tuple(rules.get(name, ())))
    return Table(shapes, {}, chains, held=frozenset(held))


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


def _nft(action: str, *words: str, text: str = "") -> str:
    path = program()
    if path is None:
        raise FirewallError(
            f"firewall: {action}: there is no nft program (install nftables, or run with "
            "--firewall iptables)"
        )
    # -S and -y are not given: numbers and names come as this version prints them to a script.
    try:
        done = subprocess.run(
            [path, *words],
            input=text,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            cwd="/",
            start_new_session=True,
            timeout=TIMEOUT_S,
            env={"PATH": PATH, "LC_ALL": "C"},
        )
    except subprocess.TimeoutExpired:
        raise FirewallError(f"firewall: {action}: nft took over {TIMEOUT_S:g} s") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        said = lines[0] if lines else f"it ended with {done.returncode}"
        raise FirewallError(f"firewall: {action}: nft: {said}")
    return done.stdout
