"""The nftables backend: the table `inet runcnet` and, for what members of bridges send from, `bridge
runcnet`, changed by the nft program in one transaction, or, where it is about a few elements of the latter,
by netlink (`elements.py`).

What stands is read in two ways: chains, rules and declarations by `nft -j -t`, which does not list
elements; those by netlink, which is fifty times as quick as the program where they are thousands.
"""

import os
from collections.abc import Iterable, Mapping

import msgspec

from reconciler.core import nft, nftbridge, nftset
from reconciler.core.errors import FirewallError
from reconciler.core.nftset import Element, Key, Shape, Table
from reconciler.core.policy import Policy, Sender
from reconciler.host.firewall import Seen, elements, foreign, nfnl, programs
from reconciler.host.firewall.iptables import BRIDGE_SYSCTL
from reconciler.host.firewall.learned import Learned
from reconciler.host.firewall.probe import NAME, present, program, users_rules

WORDS = {nfnl.INET: "inet", nfnl.BRIDGE: "bridge"}
EMPTY = {nfnl.INET: nftset.EMPTY, nfnl.BRIDGE: nftbridge.EMPTY}
SHAPES = {nfnl.INET: nft.SHAPES, nfnl.BRIDGE: nftbridge.SHAPES}
READS = 20
STEPS = 2
"""A table that sleeps is woken first; and once more, where somebody came in between."""
NOTHING = Policy()


class Nftables:
    """Rules in a table of our own, through nft."""

    name = "nftables"

    def __init__(self) -> None:
        self._asked: tuple[Policy, list[int]] | None = None
        self._want = nftset.EMPTY
        """What that asks for."""

    def look(self, policy: Policy) -> Seen:
        """Compare the kernel with the policy; see `Backend`."""
        if policy == NOTHING and program() is None:
            lines = tuple(f"table {WORDS[f]} {NAME}: no longer wanted" for f in _removable())
            return Seen(
                differences=lines, networks=frozenset(), guards=frozenset(), ports={}, notes=()
            )
        pairs = self._pairs(policy)
        (_, have), (_, bridged) = pairs
        return Seen(
            differences=tuple(line for pair in pairs for line in nftset.differences(*pair)),
            networks=nft.networks_in(have),
            guards=nft.guards_in(have),
            ports=nft.ports_in(have, policy.publications),
            notes=(),
            senders=nftbridge.senders_in(bridged),
        )

    def differences(self, policy: Policy) -> tuple[str, ...]:
        """See `Backend`."""
        return tuple(line for pair in self._pairs(policy) for line in nftset.differences(*pair))

    def replace(self, policy: Policy) -> tuple[str, ...]:
        """Make the kernel match; see `Backend`."""
        left: list[str] = []
        for _ in range(STEPS):
            pairs = self._pairs(policy)
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
        if not elements.ready():
            self.replace(policy)
            return
        elements.change("admit addresses", add=nftbridge.elements(senders), remove={})

    def strike(self, before: Iterable[Sender], now: Iterable[Sender]) -> None:
        """Take elements of these away but for what they have now, whatever the policy is. Raises
        FirewallError."""
        stays = nftbridge.elements(now)
        gone = {
            name: {key: one for key, one in found.items() if key not in stays[name]}
            for name, found in nftbridge.elements(before).items()
        }
        if not any(gone.values()) or not elements.ready():
            return
        # What is not there cannot be taken away, and what is there can be added.
        elements.change("dismiss addresses", add=gone, remove=gone)

    def dismiss(self, senders: tuple[Sender, ...]) -> None:
        """Take elements away; see `Backend`."""
        self.strike(senders, ())

    def stand_by(self, *, wanted: bool) -> None:
        """Nothing: it has nothing to load; see `Backend`."""

    def remove(self) -> None:
        """Take all of ours away; see `Backend`."""
        if program() is not None:
            self.replace(NOTHING)
        for family in _removable() if program() is None else ():
            nfnl.remove_table(NAME, family)

    def commands(self, policy: Policy) -> tuple[str, ...]:
        """The edits as one command of a shell; see `Backend`."""
        lines = [line for pair in self._pairs(policy) for line in nftset.script(*pair)]
        return ("nft -f - <<'END'", *lines, "END") if lines else ()

    def warnings(self, policy: Policy) -> tuple[str, ...]:
        """Base chains of others that drop; see `Backend`."""
        return foreign.warnings(policy, backend=self.name)

    def told(self, policy: Policy) -> tuple[str, ...]:
        """Nothing beyond its name; see `Backend`."""
        return (f"the firewall is {self.name}",)

    def _pairs(self, policy: Policy) -> tuple[tuple[Table, Table], tuple[Table, Table]]:
        """What is wanted and what stands, of each family, in the order of WORDS."""
        have, bridge = read(), read(nfnl.BRIDGE)
        return (
            (self._wanted(policy, have), have),
            (nftbridge.wanted(policy, have=bridge), bridge),
        )

    def _wanted(self, policy: Policy, have: Table) -> Table:
        bridged = [version for version, path in BRIDGE_SYSCTL.items() if os.path.exists(path)]
        if policy.kept or policy.kept_ports:
            return nft.wanted(policy, have=have, bridged=bridged)  # it depends on what stands
        if self._asked is None or not self._asked[0].is_as(policy) or self._asked[1] != bridged:
            self._want = nft.wanted(policy, have=have, bridged=bridged)
            self._asked = (policy, bridged)
        return self._want


def _removable() -> list[int]:
    """The tables that can go without the nft program, which would keep what the administrator wrote."""
    known = nfnl.tables()
    return [f for f in WORDS if (f, NAME) in known and not (f == nfnl.INET and users_rules())]


def read(family: int = nfnl.INET) -> Table:
    """The table of that family as it is."""
    for _ in range(READS):
        before = nfnl.generation()
        now = _now.get(family)
        if now is not None and before == now[0]:
            return now[1]
        found = _read(family, before)
        if found is not None and nfnl.generation() == before:
            # Every change of a rule or an element has a generation of its own, but for what packets
            # add to sets; and that is nobody's to compare.
            _now.pop(family, None)
            if before > 0:
                _now[family] = before, found
            return found
    raise FirewallError(
        f"firewall: read the table {WORDS[family]} {NAME}: nftables change all the time "
        "(find out who rewrites them)"
    )


_now: dict[int, tuple[int, Table]] = {}
"""By family, the generation that was read last, and what the table was."""


def _read(family: int, generation: int) -> Table | None:
    """None: it has changed, or gone, since that generation of rules."""
    flags = nfnl.tables().get((family, NAME))
    if flags is None:
        return EMPTY[family]
    name = f"{WORDS[family]} {NAME}"
    if flags & nfnl.DORMANT:
        known = SHAPES[family]
        shapes = {one: known[one] for one in nfnl.sets(NAME, family) if one in known}
        return Table(shapes, _elements(shapes, family), {}, dormant=True, name=name)
    dump = nfnl.structure(NAME, family)
    learned = _learned[family]
    found = learned.table(dump)
    if found is None:
        try:
            said = _nft("read the rules", "-j", "-t", "list", "table", WORDS[family], NAME)
        except FirewallError:
            if present(family):
                raise
            return None
        if nfnl.generation() != generation:
            return None  # it may be of other rules than the dump
        try:
            learned.learn(said, dump)
            found = learned.table(dump)
        except (msgspec.DecodeError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise FirewallError(
                f"firewall: read the rules: what nft -j prints cannot be read: {error!r} (another "
                "version of nftables may do, or --firewall iptables)"
            ) from error
        assert found is not None  # all of it was just learned
    return found._replace(elements=_elements(found.shapes, family), name=name)


def _elements(shapes: Mapping[str, Shape], family: int) -> dict[str, dict[Key, Element]]:
    """Those of the sets that are declared as ours are."""
    return {
        name: nfnl.elements(NAME, name, shape, family)
        for name, shape in shapes.items()
        if SHAPES[family].get(name) == shape and not shape.timeout_s
    }


_learned = {family: Learned() for family in WORDS}


def _nft(action: str, *words: str, text: str = "") -> str:
    # -S and -y are not given: numbers and names come as this version prints them to a script.
    remedy = "install nftables, or run with --firewall iptables"
    return programs.run(action, "nft", *words, text=text, remedy=remedy)
