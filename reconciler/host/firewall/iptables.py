"""The iptables backend: reads and compares the kernel's tables, and has a child process write them."""

import os
from collections.abc import Callable, Iterable
from typing import NamedTuple

import msgspec

from reconciler.core import chains, xtables
from reconciler.core.errors import FirewallError
from reconciler.core.policy import Lead, Policy, Sender
from reconciler.core.xtables import Chains
from reconciler.host.firewall import Seen, foreign, kernel, standby

LOCK_TIMEOUT_S = 10.0
UNCHECKED = (
    "antispoof: on bridges MACs are checked, and addresses are not (that takes --firewall nftables)"
)
BRIDGE_SYSCTL = {
    4: "/proc/sys/net/bridge/bridge-nf-call-iptables",
    6: "/proc/sys/net/bridge/bridge-nf-call-ip6tables",
}


class Committed(msgspec.Struct, frozen=True, kw_only=True):
    """What a change of the rules came to."""

    committed: tuple[str, ...] = ()
    """Tables that were changed: `filter (IPv4)`."""
    created: tuple[str, ...] = ()
    """Tables that the kernel did not have before."""


class State(msgspec.Struct, frozen=True, kw_only=True):
    """One table as it is and as it should be."""

    version: int
    table: str
    have: Chains
    want: Chains
    beside: bool = False
    """The table only helps another firewall out."""
    yielding: bool = False

    @property
    def edits(self) -> list[xtables.Edit]:
        """What one commit must change."""
        return xtables.edits(
            self.want, self.have, table=self.table, beside=self.beside, yielding=self.yielding
        )

    @property
    def differences(self) -> list[str]:
        """The same for people."""
        return xtables.differences(
            self.want,
            self.have,
            version=self.version,
            table=self.table,
            beside=self.beside,
            yielding=self.yielding,
        )

    @property
    def helps_out(self) -> bool:
        """Whether what stands there is beside another firewall."""
        return any(rule.comment == xtables.BESIDE for rule in self.have.get("FORWARD", ()))


NOTHING = Policy()


def dropping() -> frozenset[int]:
    """The IP versions whose legacy FORWARD drops what no rule accepts."""
    return frozenset(
        version
        for version in (4, 6)
        if kernel.read(version, "filter").policies.get("FORWARD") == "DROP"
    )


class Standing(NamedTuple):
    """What the legacy tables hold of ours."""

    lives: bool
    """Rules that are there for themselves."""
    helps: bool
    """Rules beside another firewall, where ours live."""


def standing() -> Standing:
    """Look at all tables."""
    found = Iptables().states(NOTHING)
    return Standing(
        lives=any(s.edits and not s.helps_out for s in found),
        helps=any(s.helps_out for s in found if s.table == "filter"),
    )


class Iptables:
    """Rules in the kernel's legacy tables, through python-iptables."""

    name = "iptables"

    def __init__(
        self, *, lock_timeout_s: float = LOCK_TIMEOUT_S, beside: frozenset[int] | None = None
    ) -> None:
        """`beside`: the rules live elsewhere, and only the filter tables of these IP versions, which
        drop what no rule there accepts, are to hold what the policy accepts."""
        self.lock_timeout_s = lock_timeout_s
        self.beside = beside
        self._nat: dict[int, tuple[Policy, Chains]] = {}
        """IP version → what was last asked for, and its nat table."""

    def states(self, policy: Policy) -> list[State]:
        """All tables of both IP versions."""
        return [self.state(policy, v, table) for v in (4, 6) for table in xtables.JUMPS]

    def state(self, policy: Policy, version: int, table: str) -> State:
        """Read one table and hold it against the policy."""
        have = kernel.read(version, table).chains
        return State(
            version=version,
            table=table,
            have=have,
            want=self._wanted(policy, version, table, have),
            beside=self.beside is not None,
            yielding=policy.yielding,
        )

    def _wanted(self, policy: Policy, version: int, table: str, have: Chains) -> Chains:
        if self.beside is not None and table == "filter" and version in self.beside:
            return chains.beside(policy, version=version, have=have)
        if self.beside is not None:
            policy = NOTHING
        known = self._nat.get(version) if table == "nat" else None
        if known is not None and known[0].is_as(policy):
            return known[1]
        bridged = os.path.exists(BRIDGE_SYSCTL[version])
        want = chains.wanted(policy, version=version, table=table, have=have, bridged=bridged)
        if table == "nat" and not policy.kept and not policy.kept_ports:
            self._nat[version] = policy, want  # it does not depend on what stands
        return want

    def look(self, policy: Policy) -> Seen:
        """Compare the kernel with the policy; see `Backend`."""
        differences: list[str] = []
        networks: set[str] = set()
        guards: set[int] = set()
        ports: dict[str, tuple[Lead, ...]] = {}
        absent = []
        for s in self.states(policy):
            lines = s.differences
            if lines and s.table not in kernel.existing(s.version):
                absent.append(f"{s.table} (IPv{s.version})")
            differences += lines
            if s.table == "filter" and s.helps_out:
                continue
            networks |= chains.networks_in(s.have)
            if s.table == "nat":
                for whose, leads in chains.ports_in(s.have, s.version).items():
                    ports[whose] = ports.get(whose, ()) + leads
            if s.table == "filter" and chains.guarded(s.have):
                guards.add(s.version)
        note = (
            f"the kernel's legacy tables do not exist yet: {', '.join(absent)}; iptables makes the "
            "kernel create them, and they stay until the host restarts"
        )
        return Seen(
            differences=tuple(differences),
            networks=frozenset(networks),
            guards=frozenset(guards),
            ports=ports,
            notes=(note,) if absent else (),
        )

    def differences(self, policy: Policy) -> tuple[str, ...]:
        """See `Backend`."""
        return tuple(line for s in self.states(policy) for line in s.differences)

    def replace(self, policy: Policy) -> tuple[str, ...]:
        """Make the kernel match; see `Backend`."""
        answer = self.commit(policy)
        if not answer.created:
            return ()
        tables = ", ".join(answer.created)
        return (f"the kernel has created its legacy tables {tables}; they stay until it restarts",)

    def stand_by(self, *, wanted: bool) -> None:
        """Have python-iptables loaded; see `Backend`."""
        if wanted:
            standby.ready()
        else:
            standby.close()

    def remove(self) -> None:
        """Take all of ours away; see `Backend`."""
        self.commit(NOTHING)

    def commands(self, policy: Policy) -> tuple[str, ...]:
        """The edits as command lines; see `Backend`."""
        return tuple(
            line
            for s in self.states(policy)
            for line in xtables.commands(s.edits, version=s.version, table=s.table)
        )

    def warnings(self, policy: Policy) -> tuple[str, ...]:
        """Base chains of others that drop; see `Backend`."""
        return foreign.warnings(policy)

    def admit(self, policy: Policy, senders: tuple[Sender, ...]) -> None:
        """Nothing: what members of bridges send from is not checked; see `Backend`."""

    def dismiss(self, senders: tuple[Sender, ...]) -> None:
        """Nothing, likewise; see `Backend`."""

    def told(self, policy: Policy) -> tuple[str, ...]:
        """Its name, and what it cannot do; see `Backend`."""
        lines = [f"the firewall is {self.name}"]
        return (*lines, UNCHECKED) if policy.senders else tuple(lines)

    def commit(self, policy: Policy) -> Committed:
        """Edit what differs, in one commit a table; no process is asked where nothing does."""
        asked: dict[int, list[str]] = {}
        for s in self.states(policy):
            if s.edits:
                asked.setdefault(s.version, []).append(s.table)
        committed: list[str] = []
        created: list[str] = []
        errors: list[str] = []
        for version, tables in asked.items():
            before = kernel.existing(version)
            try:
                likely = tuple(table for table in tables if table in before)
                begin = standby.Begin(version, self.lock_timeout_s, likely)
                with standby.locked(begin) as write:
                    for table in xtables.JUMPS:
                        if self._edit(policy, version, table, write):
                            committed.append(f"{table} (IPv{version})")
            except FirewallError as error:
                errors.append(str(error))
            new = sorted(kernel.existing(version) - before)
            created += [f"{table} (IPv{version})" for table in new]
        if errors:
            raise FirewallError("; ".join(dict.fromkeys(errors)))
        return Committed(committed=tuple(committed), created=tuple(created))

    def _edit(
        self,
        policy: Policy,
        version: int,
        table: str,
        write: Callable[[str, Iterable[xtables.Edit]], None],
    ) -> bool:
        """Under the lock: read again, edit what differs, and see that the kernel holds what was
        meant; whether there was anything to do."""
        steps = self.state(policy, version, table).edits
        if not steps:
            return False
        if table not in kernel.existing(version):
            kernel.fetch(version, table)  # tells a kernel without legacy tables apart
            steps = self.state(policy, version, table).edits
        write(table, steps)
        left = self.state(policy, version, table).differences
        if left:
            raise FirewallError(
                f"firewall: check what was committed: {left[0]} (another program changes the "
                "tables, or the kernel and the iptables libraries do not fit each other)"
            )
        return True
