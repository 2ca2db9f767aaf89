"""Which of the two backends carries the policy out, and the way from one to the other.

Rules of ours may stand in the backend that is not chosen: from an earlier run, or from one that was
killed on the way. Both are looked at, so that none is left behind; the chosen one's rules are put
in place before the other's are taken away.
"""

from collections.abc import Iterator
from typing import NamedTuple

from reconciler.core import xtables
from reconciler.core.errors import FirewallError
from reconciler.core.policy import Policy, Sender
from reconciler.host.firewall import Backend, Seen, kernel, nfnl, nftables
from reconciler.host.firewall.iptables import Iptables
from reconciler.host.firewall.nftables import NOTHING, Nftables


class Decision(NamedTuple):
    """What is in use, what is to go, and why."""

    chosen: Backend
    other: Backend
    left: Seen
    """What stands of ours in the other."""
    why: str


class Chosen:
    """The backend that `--firewall` asks for, or the one that fits the host (`auto`)."""

    name: str

    def __init__(self, asked: str) -> None:
        self.name = asked
        self._iptables, self._nftables = Iptables(), Nftables()
        self._chosen: Backend | None = None
        """By the last look."""

    def look(self, policy: Policy) -> Seen:
        """Compare the kernel with the policy; see `Backend`."""
        d = self._decide(policy)
        self._chosen = d.chosen
        seen = d.chosen.look(policy)
        # Told as the policy tells them, where it does.
        ports = d.other.look(policy).ports if d.left.ports else {}
        return Seen(
            differences=(*seen.differences, *d.left.differences),
            networks=seen.networks | d.left.networks,
            guards=seen.guards | d.left.guards,
            ports={**ports, **seen.ports},
            notes=(*seen.notes, *d.left.notes),
            senders=seen.senders | d.left.senders,
        )

    def replace(self, policy: Policy) -> tuple[str, ...]:
        """Make the kernel match; see `Backend`."""
        d = self._decide(policy)
        notes = list(d.chosen.replace(policy))
        if d.left.differences:
            # The new rules stand: from here on packets meet both, and then the new ones alone.
            d.other.remove()
            notes.append(f"the rules have moved from {d.other.name} to {d.chosen.name}")
        return tuple(notes)

    def admit(self, policy: Policy, senders: tuple[Sender, ...]) -> None:
        """See `Backend`."""
        if self._chosen is not None:
            self._chosen.admit(policy, senders)

    def remove(self) -> None:
        """Take all of ours away, wherever it is; see `Backend`."""
        self._iptables.remove()
        self._nftables.remove()

    def commands(self, policy: Policy) -> tuple[str, ...]:
        """See `Backend`."""
        d = self._decide(policy)
        gone = d.other.commands(NOTHING) if d.left.differences else ()
        return (*d.chosen.commands(policy), *gone)

    def warnings(self, policy: Policy) -> tuple[str, ...]:
        """See `Backend`."""
        return self._decide(policy).chosen.warnings(policy)

    def told(self, policy: Policy) -> tuple[str, ...]:
        """See `Backend`."""
        d = self._decide(policy)
        lines = [f"the firewall is {d.chosen.name}: {d.why}"]
        lines += _mixture(d.chosen.name)
        lines += d.chosen.told(policy)[1:]
        if d.other.name == "iptables" and _users_rules():
            lines.append(
                f"the legacy chain {xtables.USER} holds rules that no packet meets any more "
                f"(write them in the chain {nftables.USER_CHAIN}, and empty it)"
            )
        if d.other.name == "nftables" and nftables.users_rules():
            lines.append(
                f"the nftables chain {nftables.USER_CHAIN} holds rules that no packet meets any more "
                f"(write them in {xtables.USER}, and empty it)"
            )
        return tuple(lines)

    def _decide(self, policy: Policy) -> Decision:
        if self.name == "iptables":
            return self._moved(self._iptables, "it was asked for", policy)
        if self.name == "nftables":
            return self._moved(self._nftables, "it was asked for", policy)
        in_legacy = bool(self._iptables.look(NOTHING).differences)
        in_nft = nftables.stands()
        absent = nftables.program() is None
        if in_legacy != in_nft and not (in_nft and absent):
            chosen: Backend = self._iptables if in_legacy else self._nftables
            return self._moved(chosen, "rules of an earlier run stand there", policy)
        held = legacy_in_use()
        if held:
            why = f"the kernel's legacy tables are in use: {', '.join(held)}"
            return self._moved(self._iptables, why, policy)
        if absent:
            return self._moved(self._iptables, "there is no nft program", policy)
        return self._moved(self._nftables, "no legacy table of iptables holds a rule", policy)

    def _moved(self, chosen: Backend, why: str, policy: Policy) -> Decision:
        other: Backend = self._nftables if chosen is self._iptables else self._iptables
        left = other.look(NOTHING)
        kept = policy.kept & left.networks | policy.kept_ports & set(left.ports)
        if kept:
            # What has to stay as it stands cannot be said in other words.
            names = ", ".join(sorted(kept))
            why = f"the rules of {names} are kept there until their files can be read or they end"
            return Decision(other, chosen, chosen.look(NOTHING), why)
        return Decision(chosen, other, left, why)


def _mixture(name: str) -> Iterator[str]:
    """That both firewalls are in use on this host."""
    legacy = legacy_in_use()
    tables = nftables_in_use()
    if name == "iptables" and tables:
        shown = ", ".join(tables)
        yield (
            f"both firewalls are in use: nftables hold {shown}, and the rules of runcnet are in the "
            "legacy tables; a packet must pass both"
        )
    elif name == "nftables" and legacy:
        yield (
            f"both firewalls are in use: the legacy tables {', '.join(legacy)} hold rules, and those "
            "of runcnet are in nftables; a packet must pass both"
        )


def legacy_in_use() -> list[str]:
    """The legacy tables in which somebody else has rules, or a policy that is not to accept."""
    return [
        f"{table} (IPv{version})"
        for version in (4, 6)
        for table in sorted(kernel.existing(version))
        if _is_used(version, table)
    ]


def _is_used(version: int, table: str) -> bool:
    try:
        found = kernel.read(version, table)
    except FirewallError:
        return True  # it stands, and cannot be read: somebody else's
    foreign = any(
        not xtables.is_ours(rule.target)
        for chain, rules in found.chains.items()
        if not xtables.is_ours(chain) or chain == xtables.USER
        for rule in rules
    )
    return foreign or any(policy != "ACCEPT" for policy in found.policies.values())


def _users_rules() -> bool:
    """Whether the administrator's legacy chain holds rules."""
    return any(
        kernel.read(version, "filter").chains.get(xtables.USER)
        for version in (4, 6)
        if "filter" in kernel.existing(version)
    )


def nftables_in_use() -> list[str]:
    """The nftables of others in which a packet can meet a rule."""
    names = {1: "inet", 2: "ip", 10: "ip6"}
    hooked = {
        (family, found[nfnl.CHAIN_TABLE])
        for family, found in nfnl.dump(nfnl.GETCHAIN, b"")
        if family in names and nfnl.CHAIN_HOOK in found
    }
    ruled = {(family, found[nfnl.RULE_TABLE]) for family, found in nfnl.dump(nfnl.GETRULE, b"")}
    ours = (nfnl.INET, nftables.NAME)
    tables = {(family, nfnl.text(table)) for family, table in hooked & ruled} - {ours}
    return [f"{names[family]} {table}" for family, table in sorted(tables)]
