"""The nftables backend: one table, `inet runcnet`, changed by the nft program in one transaction.

What stands is read in two ways: chains, rules and declarations by `nft -j -t`, which does not list
elements; those by netlink, which is fifty times as quick as the program where they are thousands.
"""

import os
from collections.abc import Mapping

import msgspec

from reconciler.core import nft, nftset
from reconciler.core.errors import FirewallError
from reconciler.core.nftset import TABLE, Element, Key, Shape, Table
from reconciler.core.policy import Policy
from reconciler.host.firewall import Seen, foreign, nfnl, programs
from reconciler.host.firewall.iptables import BRIDGE_SYSCTL
from reconciler.host.firewall.learned import Learned
from reconciler.host.firewall.probe import NAME, present, program, users_rules

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
            lines = (f"table {TABLE}: no longer wanted",) if _removable() else ()
            return Seen(
                differences=lines, networks=frozenset(), guards=frozenset(), ports={}, notes=()
            )
        have = read()
        want = self._wanted(policy, have)
        return Seen(
            differences=tuple(nftset.differences(want, have)),
            networks=nft.networks_in(have),
            guards=nft.guards_in(have),
            ports=nft.ports_in(have, policy.publications),
            notes=(),
        )

    def differences(self, policy: Policy) -> tuple[str, ...]:
        """See `Backend`."""
        have = read()
        return tuple(nftset.differences(self._wanted(policy, have), have))

    def replace(self, policy: Policy) -> tuple[str, ...]:
        """Make the kernel match; see `Backend`."""
        left: list[str] = []
        for _ in range(STEPS):
            have = read()
            want = self._wanted(policy, have)
            lines = nftset.script(want, have)
            if not lines:
                return ()
            _nft("change the rules", "-f", "-", text="\n".join(lines) + "\n")
            left = nftset.differences(want, read())
            if not left:
                return ()
        raise FirewallError(
            f"firewall: check what was committed: {left[0]} (another program changes the table, "
            "or this version of nft says otherwise what it is told)"
        )

    def remove(self) -> None:
        """Take all of ours away; see `Backend`."""
        if program() is not None:
            self.replace(NOTHING)
        elif _removable():
            nfnl.remove_table(NAME)

    def commands(self, policy: Policy) -> tuple[str, ...]:
        """The edits as one command of a shell; see `Backend`."""
        have = read()
        lines = nftset.script(self._wanted(policy, have), have)
        return ("nft -f - <<'END'", *lines, "END") if lines else ()

    def warnings(self, policy: Policy) -> tuple[str, ...]:
        """Base chains of others that drop; see `Backend`."""
        return foreign.warnings(policy, backend=self.name)

    def told(self, policy: Policy) -> tuple[str, ...]:
        """Nothing beyond its name; see `Backend`."""
        return (f"the firewall is {self.name}",)

    def _wanted(self, policy: Policy, have: Table) -> Table:
        bridged = [version for version, path in BRIDGE_SYSCTL.items() if os.path.exists(path)]
        if policy.kept or policy.kept_ports:
            return nft.wanted(policy, have=have, bridged=bridged)  # it depends on what stands
        if self._asked is None or not _same(self._asked[0], policy) or self._asked[1] != bridged:
            self._want = nft.wanted(policy, have=have, bridged=bridged)
            self._asked = (policy, bridged)
        return self._want


def _same(one: Policy, other: Policy) -> bool:
    """Whether both were made of the same; to compare thousands of ports one by one takes long."""
    return (
        one.networks is other.networks
        and one.publications is other.publications
        and (one.guards, one.kept, one.kept_ports) == (other.guards, other.kept, other.kept_ports)
    )


def _removable() -> bool:
    """Whether the table can go without the nft program, which would keep what the administrator wrote."""
    return present() and not users_rules()


def read() -> Table:
    """The table as it is."""
    for _ in range(READS):
        before = nfnl.generation()
        if _now and before == _now[0][0]:
            return _now[0][1]
        found = _read(before)
        if found is not None and nfnl.generation() == before:
            # Every change of a rule or an element has a generation of its own, but for what packets
            # add to sets; and that is nobody's to compare.
            _now[:] = [(before, found)] if before > 0 else []
            return found
    raise FirewallError(
        f"firewall: read the table {TABLE}: nftables change all the time (find out who rewrites them)"
    )


_now: list[tuple[int, Table]] = []
"""The generation that was read last, and what it was."""


def _read(generation: int) -> Table | None:
    """None: it has changed, or gone, since that generation of rules."""
    flags = nfnl.tables().get((nfnl.INET, NAME))
    if flags is None:
        return nftset.EMPTY
    if flags & nfnl.DORMANT:
        shapes = {name: nft.SHAPES[name] for name in nfnl.sets(NAME) if name in nft.SHAPES}
        return Table(shapes, _elements(shapes), {}, dormant=True)
    dump = nfnl.structure(NAME)
    found = _learned.table(dump)
    if found is None:
        try:
            said = _nft("read the rules", "-j", "-t", "list", "table", "inet", NAME)
        except FirewallError:
            if present():
                raise
            return None
        if nfnl.generation() != generation:
            return None  # it may be of other rules than the dump
        try:
            _learned.learn(said, dump)
            found = _learned.table(dump)
        except (msgspec.DecodeError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise FirewallError(
                f"firewall: read the rules: what nft -j prints cannot be read: {error!r} (another "
                "version of nftables may do, or --firewall iptables)"
            ) from error
        assert found is not None  # all of it was just learned
    return found._replace(elements=_elements(found.shapes))


def _elements(shapes: Mapping[str, Shape]) -> dict[str, dict[Key, Element]]:
    """Those of the sets that are declared as ours are."""
    return {
        name: nfnl.elements(NAME, name, shape)
        for name, shape in shapes.items()
        if nft.SHAPES.get(name) == shape and not shape.timeout_s
    }


_learned = Learned()


def _nft(action: str, *words: str, text: str = "") -> str:
    # -S and -y are not given: numbers and names come as this version prints them to a script.
    remedy = "install nftables, or run with --firewall iptables"
    return programs.run(action, "nft", *words, text=text, remedy=remedy)
