"""Which of the two backends carries the policy out, and the way from one to the other.

Rules of ours may stand in the backend that is not chosen: from an earlier run, or from one that was
killed on the way. Both are looked at, so that none is left behind; the chosen one's rules are put
in place before the other's are taken away. Beside either, rules stand in filter tables of iptables
whose FORWARD drops what no rule there accepts: legacy ones beside nftables, those of its nft variant
beside both.
"""

from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

from reconciler.core import xtables
from reconciler.core.policy import Policy, Sender
from reconciler.host.firewall import Backend, Seen, foreign, iptables, kernel, probe
from reconciler.host.firewall.beside import Beside
from reconciler.host.firewall.iptables import Iptables

NOTHING = Policy()
NONE = Seen(differences=(), networks=frozenset(), guards=frozenset(), ports={}, notes=())


class Decision(NamedTuple):
    """What is in use, what is to go, and why. `other` is None where nothing of it stands."""

    chosen: Backend
    other: Backend | None
    rest: Policy
    """What is to stand in the other."""
    left: Seen
    """What stands there, held against that."""
    why: str


class Chosen:
    """The backend that `--firewall` asks for, or the one that fits the host (`auto`)."""

    name: str

    def __init__(self, asked: str) -> None:
        self.name = asked
        self._iptables = Iptables()
        self._beside = Beside()
        self._chosen: Backend | None = None
        """By the last look."""

    @cached_property
    def _nftables(self) -> Backend:
        # Where there is none, nothing of it is loaded.
        from reconciler.host.firewall.nftables import Nftables

        return Nftables()

    @property
    def lock_timeout_s(self) -> float:
        """How long another program's lock on the legacy tables is waited for."""
        return self._iptables.lock_timeout_s

    @lock_timeout_s.setter
    def lock_timeout_s(self, seconds: float) -> None:
        self._iptables.lock_timeout_s = seconds

    def look(self, policy: Policy) -> Seen:
        """Compare the kernel with the policy; see `Backend`."""
        d = self._decide(policy)
        self._chosen = d.chosen
        seen = d.chosen.look(policy)
        # Told as the policy tells them, where it does.
        ports = d.other.look(policy).ports if d.other is not None and d.left.ports else {}
        return Seen(
            differences=(
                *seen.differences,
                *d.left.differences,
                *self._beside.differences(policy),
            ),
            networks=seen.networks | d.left.networks,
            guards=seen.guards | d.left.guards,
            ports={**ports, **seen.ports},
            notes=(*seen.notes, *d.left.notes),
            senders=seen.senders | d.left.senders,
        )

    def differences(self, policy: Policy) -> tuple[str, ...]:
        """See `Backend`."""
        d = self._decide(policy)
        mine = d.chosen.differences(policy)
        return (*mine, *d.left.differences, *self._beside.differences(policy))

    def replace(self, policy: Policy) -> tuple[str, ...]:
        """Make the kernel match; see `Backend`."""
        d = self._decide(policy)
        notes = list(d.chosen.replace(policy))
        if d.other is not None and d.left.differences:
            # The new rules stand: from here on packets meet both, and then the new ones alone.
            if d.rest == NOTHING:
                d.other.remove()
            else:
                d.other.replace(d.rest)
            if d.rest == NOTHING or d.left.networks or d.left.guards:
                notes.append(f"the rules have moved from {d.other.name} to {d.chosen.name}")
        self._beside.replace(policy)
        return tuple(notes)

    def admit(self, policy: Policy, senders: tuple[Sender, ...]) -> None:
        """See `Backend`."""
        if self._chosen is not None:
            self._chosen.admit(policy, senders)

    def dismiss(self, senders: tuple[Sender, ...]) -> None:
        """See `Backend`."""
        if self._chosen is not None:
            self._chosen.dismiss(senders)

    def stand_by(self, *, wanted: bool) -> None:
        """See `Backend`."""
        if self._chosen is not None:
            legacy = self._chosen is self._iptables
        elif self.name == "auto":
            # Not decided yet, which takes a look at all rules: this is how it is likely to come out.
            legacy = "nat" in kernel.existing(4) and not probe.stands()
        else:
            legacy = self.name == "iptables"
        self._iptables.stand_by(wanted=wanted and legacy)

    def remove(self) -> None:
        """Take all of ours away, wherever it is; see `Backend`."""
        self._iptables.remove()
        if probe.present():
            self._nftables.remove()
        self._beside.replace(NOTHING)

    def commands(self, policy: Policy) -> tuple[str, ...]:
        """See `Backend`."""
        d = self._decide(policy)
        gone = d.other.commands(d.rest) if d.other is not None and d.left.differences else ()
        return (*d.chosen.commands(policy), *gone, *self._beside.commands(policy))

    def warnings(self, policy: Policy) -> tuple[str, ...]:
        """See `Backend`."""
        # A legacy filter table that drops is either the chosen one or holds our rules beside it.
        return foreign.warnings(policy, served=self._beside.served())

    def told(self, policy: Policy) -> tuple[str, ...]:
        """See `Backend`."""
        d = self._decide(policy)
        lines = [f"the firewall is {d.chosen.name}: {d.why}"]
        lines += _mixture(d.chosen.name)
        lines += d.chosen.told(policy)[1:]
        helped = iptables.dropping() if d.chosen.name == "nftables" else frozenset()
        if policy.networks:
            lines += [_helped("iptables-legacy", version) for version in sorted(helped)]
            lines += [_helped("iptables-nft", version) for version in sorted(self._beside.served())]
        if d.chosen.name == "nftables" and probe.legacy_users_rules(met=helped):
            lines.append(
                f"the legacy chain {xtables.USER} holds rules that no packet meets any more "
                f"(write them in the chain {probe.USER_CHAIN}, and empty it)"
            )
        if d.chosen.name == "iptables" and probe.users_rules():
            lines.append(
                f"the nftables chain {probe.USER_CHAIN} holds rules that no packet meets any more "
                f"(write them in {xtables.USER}, and empty it)"
            )
        return tuple(lines)

    def _decide(self, policy: Policy) -> Decision:
        if self.name == "iptables":
            return self._moved(self._iptables, "it was asked for", policy)
        if self.name == "nftables":
            return self._moved(self._nftables, "it was asked for", policy)
        in_legacy, helps = iptables.standing()
        in_nft = probe.stands() or helps
        lacks = probe.lacks()
        if in_legacy != in_nft and not (in_nft and lacks):
            chosen: Backend = self._iptables if in_legacy else self._nftables
            return self._moved(chosen, "rules of an earlier run stand there", policy)
        held = probe.legacy_in_use()
        if held:
            why = f"the kernel's legacy tables are in use: {', '.join(held)}"
            return self._moved(self._iptables, why, policy)
        if lacks:
            return self._moved(self._iptables, lacks, policy)
        return self._moved(self._nftables, "no legacy table of iptables holds a rule", policy)

    def _moved(self, chosen: Backend, why: str, policy: Policy) -> Decision:
        d = self._decision(chosen, why, policy)
        kept = policy.kept & d.left.networks | policy.kept_ports & set(d.left.ports)
        if not kept:
            return d
        # What has to stay as it stands cannot be said in other words.
        names = ", ".join(sorted(kept))
        why = f"the rules of {names} are kept there until their files can be read or they end"
        there: Backend = self._nftables if chosen is self._iptables else self._iptables
        return self._decision(there, why, policy)

    def _decision(self, chosen: Backend, why: str, policy: Policy) -> Decision:
        if chosen is self._iptables:
            if not probe.present():
                return Decision(chosen, None, NOTHING, NONE, why)
            return Decision(chosen, self._nftables, NOTHING, self._nftables.look(NOTHING), why)
        dropping = iptables.dropping()
        other = self._iptables
        if dropping:
            other = Iptables(lock_timeout_s=self.lock_timeout_s, beside=dropping)
        rest = policy if dropping else NOTHING
        return Decision(chosen, other, rest, other.look(rest), why)


def _helped(program: str, version: int) -> str:
    """That rules of ours stand beside those of another tool."""
    return (
        f"the policy of FORWARD in the filter table of {program} (IPv{version}) is drop: what is "
        f"accepted elsewhere is accepted there, too, by {xtables.FORWARD}"
    )


def _mixture(name: str) -> Iterator[str]:
    """That both firewalls are in use on this host."""
    legacy = probe.legacy_in_use()
    tables = probe.nftables_in_use()
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
