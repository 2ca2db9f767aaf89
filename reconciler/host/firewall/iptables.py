"""The iptables backend: reads the kernel's tables itself, has a child process write them.

python-iptables is not thread-safe, caches its handles for the life of the process, moves file
descriptor 1 about and can leave Python by longjmp. A child that lives for one commit ends all of
that, and only a run that changes rules pays for its import.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import msgspec

import reconciler
from reconciler.core import chains, xtables
from reconciler.core.errors import FirewallError
from reconciler.core.policy import Lead, Policy, Sender
from reconciler.host.firewall import Seen, foreign, kernel, legacy

LOCK_TIMEOUT_S = 10.0
UNCHECKED = (
    "antispoof: on bridges MACs are checked, and addresses are not (that takes --firewall nftables)"
)
BRIDGE_SYSCTL = {
    4: "/proc/sys/net/bridge/bridge-nf-call-iptables",
    6: "/proc/sys/net/bridge/bridge-nf-call-ip6tables",
}


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What the worker reads from its stdin."""

    policy: Policy
    version: int
    lock_timeout_s: float
    beside: frozenset[int] | None = None
    """See `Iptables`."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What the worker writes to its stdout."""

    committed: tuple[str, ...] = ()
    """Tables that were changed: `filter (IPv4)`."""
    created: tuple[str, ...] = ()
    """Tables that the kernel did not have before."""
    error: str = ""


class State(msgspec.Struct, frozen=True, kw_only=True):
    """One table as it is and as it should be."""

    version: int
    table: str
    have: dict[str, tuple[xtables.Rule, ...]]
    want: dict[str, tuple[xtables.Rule, ...]]
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


def state(policy: Policy, version: int, table: str, beside: frozenset[int] | None = None) -> State:
    """Read one table and hold it against the policy; for `beside` see `Iptables`."""
    have = kernel.read(version, table).chains
    if beside is not None and table == "filter" and version in beside:
        want = chains.beside(policy, version=version, have=have)
    else:
        want = chains.wanted(
            policy if beside is None else NOTHING,
            version=version,
            table=table,
            have=have,
            bridged=os.path.exists(BRIDGE_SYSCTL[version]),
        )
    return State(
        version=version,
        table=table,
        have=have,
        want=dict(want),
        beside=beside is not None,
        yielding=policy.yielding,
    )


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

    def states(self, policy: Policy) -> list[State]:
        """All tables of both IP versions."""
        return [
            state(policy, version, table, self.beside)
            for version in (4, 6)
            for table in xtables.JUMPS
        ]

    def look(self, policy: Policy) -> Seen:
        """Compare the kernel with the policy; see `Backend`."""
        differences: list[str] = []
        networks: set[str] = set()
        guards: set[int] = set()
        ports: dict[str, tuple[Lead, ...]] = {}
        absent = []
        for s in self.states(policy):
            lines = s.differences
            if lines and s.table not in legacy.existing(s.version):
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

    def told(self, policy: Policy) -> tuple[str, ...]:
        """Its name, and what it cannot do; see `Backend`."""
        lines = [f"the firewall is {self.name}"]
        return (*lines, UNCHECKED) if policy.senders else tuple(lines)

    def commit(self, policy: Policy) -> Answer:
        """Have workers edit what differs, one for each IP version; none where nothing does."""
        versions = sorted({s.version for s in self.states(policy) if s.edits})
        workers = [(version, _start()) for version in versions]
        # Both import at the same time; the lock puts their commits in a row.
        answers, errors = [], []
        for version, worker in workers:
            request = Request(
                policy=policy,
                version=version,
                lock_timeout_s=self.lock_timeout_s,
                beside=self.beside,
            )
            try:
                answers.append(_answer(worker, request))
            except FirewallError as error:
                errors.append(str(error))
        if errors:
            raise FirewallError("; ".join(dict.fromkeys(errors)))
        return Answer(
            committed=tuple(table for answer in answers for table in answer.committed),
            created=tuple(table for answer in answers for table in answer.created),
        )


def _start() -> subprocess.Popen[bytes]:
    # -P and a bare environment: nothing of the caller's folder or variables reaches root's child;
    # the package is found where this one was. A session of its own: an interrupt from the terminal
    # is for the parent, which lets the commit in flight end.
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "reconciler.host.firewall.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd="/",
        start_new_session=True,
        env={
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "LC_ALL": "C",
            "PYTHONPATH": str(Path(reconciler.__file__).parents[1]),
            # python-iptables imports distutils, in whose place setuptools puts all of itself.
            "SETUPTOOLS_USE_DISTUTILS": "stdlib",
            # iptables(8) knows it; sudo does not pass it on.
            "XTABLES_LOCKFILE": os.environ.get("XTABLES_LOCKFILE", ""),
        },
    )


def _answer(worker: subprocess.Popen[bytes], request: Request) -> Answer:
    out, said = worker.communicate(msgspec.json.encode(request))
    if worker.returncode:
        lines = said.decode(errors="replace").strip().splitlines()
        raise FirewallError(
            f"firewall: change the tables: python-iptables ended with {worker.returncode}: "
            f"{lines[-1] if lines else 'no word'} (run with --firewall none to go without)"
        )
    answer = msgspec.json.decode(out, type=Answer)
    if answer.error:
        raise FirewallError(answer.error)
    return answer
