"""Our rules in the filter tables of iptables' nft variant, where these drop what no rule accepts.

A packet must pass every base chain at the forward hook, and Docker and ufw set the policy of this one
to drop. So what the policy accepts is accepted there, too: one jump, and chains of ours behind it,
in iptables' own language, through its own programs. Where no such chain is, the kernel alone is
asked and no program started.
"""

from collections.abc import Mapping
from typing import NamedTuple

from reconciler.core import chains, xtables
from reconciler.core.errors import FirewallError
from reconciler.core.policy import Policy
from reconciler.core.xtext import Saved, parsed, restored
from reconciler.host.firewall import nfnl, programs

PROGRAM = {4: "iptables-nft", 6: "ip6tables-nft"}
FAMILY = {2: 4, 10: 6}
FAMILY_NAME = {4: "ip", 6: "ip6"}
CHAIN_POLICY = 5
HOOK_FORWARD, NF_DROP = 2, 0
TRIES = 3
"""A rule of ours that somebody takes away between reading and writing stops a whole change."""


class Found(NamedTuple):
    """What the kernel shows of one IP version's table, without a program."""

    drops: bool
    """The policy of its FORWARD is drop."""
    ours: bool
    """Chains of ours stand in it."""


class State(NamedTuple):
    """One table as it is and as it should be."""

    version: int
    have: dict[str, tuple[xtables.Rule, ...]]
    want: Mapping[str, tuple[xtables.Rule, ...]]
    yielding: bool

    @property
    def edits(self) -> list[xtables.Edit]:
        """What must change."""
        return xtables.edits(
            self.want, self.have, table="filter", beside=True, yielding=self.yielding
        )

    @property
    def script(self) -> list[str]:
        """The same for iptables-restore; nothing where nothing differs."""
        steps = self.edits
        if not steps:
            return []
        return restored(steps, self.want, self.have, xtables.BESIDE_JUMPS)

    @property
    def differences(self) -> list[str]:
        """The same for people."""
        return xtables.differences(
            self.want,
            self.have,
            version=self.version,
            table="filter",
            beside=True,
            yielding=self.yielding,
            program=PROGRAM[self.version],
        )


class Beside:
    """The tables `ip filter` and `ip6 filter` of iptables-nft."""

    def __init__(self) -> None:
        self._read: dict[int, tuple[int, Saved | None]] = {}
        """IP version → the generation of all rules, and what the program said of it then."""

    def served(self) -> frozenset[int]:
        """The IP versions whose table drops, and can be read and written by its own programs."""
        return frozenset(
            version
            for version, found in _found().items()
            if found.drops and self._table(version) is not None
        )

    def differences(self, policy: Policy) -> tuple[str, ...]:
        """What keeps the tables from letting pass what the policy accepts, a line each."""
        lines = [line for state in self._states(policy) for line in state.differences]
        for version in self._leftovers(policy):
            lines.append(
                f"chains {xtables.PREFIX}* (IPv{version} filter of {PROGRAM[version]}): "
                "no longer wanted"
            )
        return tuple(lines)

    def commands(self, policy: Policy) -> tuple[str, ...]:
        """Commands of a shell that mend it."""
        found: list[str] = []
        for state in self._states(policy):
            if state.edits:
                call = f"{PROGRAM[state.version]}-restore --noflush -w <<'END'"
                found += [call, *state.script, "END"]
        return tuple(found)

    def replace(self, policy: Policy) -> None:
        """Mend it, in one transaction a table. Raises FirewallError."""
        for version in self._leftovers(policy):
            _take_out(version)
        left: list[str] = []
        for turn in range(TRIES):
            scripts = [(s.version, s.script) for s in self._states(policy) if s.edits]
            if not scripts:
                return
            for version, lines in scripts:
                name = f"{PROGRAM[version]}-restore"
                text = "\n".join(lines) + "\n"
                try:
                    programs.run(
                        "change the rules", name, "--noflush", "-w", text=text, remedy=REMEDY
                    )
                except FirewallError:
                    if turn + 1 == TRIES:
                        raise
            left = list(self.differences(policy))
        if left:
            raise FirewallError(
                f"firewall: check what was committed: {left[0]} (another program changes the table)"
            )

    def _leftovers(self, policy: Policy) -> list[int]:
        """IP versions whose table has come to be none of iptables', with rules of ours that nobody
        needs any more. Those that are needed stay as they stand."""
        return [
            version
            for version, found in _found().items()
            if found.ours
            and not (found.drops and (policy.networks or policy.kept))
            and self._table(version) is None
        ]

    def _states(self, policy: Policy) -> list[State]:
        states = []
        for version, found in _found().items():
            saved = self._table(version) if found.drops or found.ours else None
            if saved is None:
                continue
            wanted = policy if found.drops else Policy()
            want = chains.beside(wanted, version=version, have=saved.chains)
            states.append(State(version, saved.chains, want, policy.yielding))
        return states

    def _table(self, version: int) -> Saved | None:
        """None: its programs are not installed, or it is not a table of theirs."""
        name = f"{PROGRAM[version]}-save"
        if (
            programs.path_of(name) is None
            or programs.path_of(f"{PROGRAM[version]}-restore") is None
        ):
            return None
        now = nfnl.generation()
        known = self._read.get(version)
        if known is None or known[0] != now:
            try:
                said = programs.run("read the rules", name, "-t", "filter", remedy=REMEDY)
            except FirewallError:
                said = (
                    ""  # as a table that is none of theirs: the rules elsewhere are not to suffer
                )
            known = (now, parsed(said))
            self._read[version] = known
        return known[1]


REMEDY = "install iptables"


def _take_out(version: int) -> None:
    """Remove what is ours through nft, which reads every table. Raises FirewallError."""
    family = {number: one for one, number in FAMILY.items()}[version]
    where = f"{FAMILY_NAME[version]} filter"
    table = nfnl.attribute(nfnl.RULE_TABLE, b"filter\0")
    rules = [one for number, one in nfnl.dump(nfnl.GETRULE, table, family) if number == family]
    held = {nfnl.text(one[nfnl.RULE_CHAIN]) for one in rules}
    names = {
        nfnl.text(one[nfnl.CHAIN_NAME])
        for number, one in nfnl.dump(nfnl.GETCHAIN, b"", family)
        if number == family and one[nfnl.CHAIN_TABLE] == b"filter\0"
    }
    ours = sorted(n for n in names if xtables.is_ours(n) and not (n == xtables.USER and n in held))
    jump = f"{xtables.FORWARD}\0".encode()
    lines = [
        f"delete rule {where} FORWARD handle {nfnl.be32(one[nfnl.RULE_HANDLE])}"
        for one in rules
        if one[nfnl.RULE_CHAIN] == b"FORWARD\0" and any(jump in data for data in one.values())
    ]
    lines += [f"flush chain {where} {name}" for name in ours]
    lines += [f"delete chain {where} {name}" for name in ours]
    text = "\n".join(lines) + "\n"
    programs.run("change the rules", "nft", "-f", "-", text=text, remedy="install nftables")


def _found() -> dict[int, Found]:
    found = dict.fromkeys(FAMILY.values(), Found(drops=False, ours=False))
    for family, one in nfnl.dump(nfnl.GETCHAIN, b""):
        if family not in FAMILY or nfnl.text(one[nfnl.CHAIN_TABLE]) != "filter":
            continue
        version, name = FAMILY[family], nfnl.text(one[nfnl.CHAIN_NAME])
        if xtables.is_ours(name):
            found[version] = found[version]._replace(ours=True)
        hook = nfnl.attributes(one.get(nfnl.CHAIN_HOOK, b""))
        if name == "FORWARD" and nfnl.be32(hook.get(1)) == HOOK_FORWARD:
            drops = nfnl.be32(one.get(CHAIN_POLICY)) == NF_DROP
            found[version] = found[version]._replace(drops=drops)
    return found
