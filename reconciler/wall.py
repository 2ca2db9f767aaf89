"""The firewall's part of a pass: what is asked for, whether it differs, and putting it in place."""

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Set
from typing import TYPE_CHECKING

import msgspec

from reconciler.core import ops
from reconciler.core.errors import FirewallError
from reconciler.core.model import FORWARDING, Address
from reconciler.core.names import whole_names
from reconciler.core.netplan import Scene
from reconciler.core.observed import Observed
from reconciler.core.plan import Plan
from reconciler.core.policy import Lead, Policy, Publication, Sender, taken
from reconciler.core.wanted import Desired, Member
from reconciler.host import rtnl
from reconciler.host.machine import boot_id
from reconciler.host.store import Store

if TYPE_CHECKING:  # a hook mostly changes no rule
    from reconciler.host import conntrack, firewall


class Wall:
    """One pass's view of the firewall. `look` first, then `raise_`."""

    def __init__(
        self,
        choice: str,
        store: Store,
        *,
        serving: bool = True,
        patience_s: float | None = None,
        yielding: bool = False,
    ) -> None:
        """`serving`: whoever asks for a published port is told where there is no firewall.
        `patience_s`: how long the locks of other programs are waited for, if not as usual.
        `yielding`: see `Policy`."""
        self.serving = serving
        self.yielding = yielding
        self.backend = _backend(choice) if choice != "none" else None
        if patience_s is not None and self.backend is not None:
            self.backend.lock_timeout_s = patience_s
        self.store = store
        self.policy = Policy()
        self.operation: ops.ReplaceFirewall | None = None
        self.problem = ""
        """Why the firewall cannot be read."""
        self.notes: list[str] = []
        self.told: tuple[str, ...] = ()
        """Which firewall it is, and why."""
        self.refused: dict[str, str] = {}
        """Containers whose published ports cannot be had, and why."""
        self.raised = True
        """Whether the rules are in place."""
        self._whole: Mapping[str, str] = {}
        """What stands for a long name in a rule → that name."""
        self._gone: frozenset[Address] = frozenset()
        """Addresses of containers that this pass takes away."""
        self._moved: frozenset[conntrack.Port] = frozenset()
        """Ports that lead elsewhere from now on, or nowhere."""

    def look(self, desired: Desired, decided: Plan, scene: Scene, observed: Observed) -> None:
        """Work out the policy and compare it with the kernel."""
        held = {h.object.partition("/")[2] for h in decided.held if h.object.startswith("network/")}
        leaving = {op.object.partition("/")[2] for op in decided.last}
        standing = (set(observed.bridges) | set(observed.gateways.values())) - {"", *leaving}
        kept = (held | standing if scene.keep else held) - scene.networks
        # What is wrong with a network must not take its rules away.
        broken = {n.partition("/")[2] for n in decided.problems if n.startswith("network/")}
        self.policy = Policy(
            networks=tuple(p for p in desired.policies if p.name not in broken),
            guards=self._guards(desired, observed),
            kept=frozenset(kept | broken),
            publications=_publications(desired, broken),
            senders=senders(desired.members.values(), broken) if self.backend is not None else (),
            yielding=self.yielding,
        )
        gone = {op.object.partition("/")[2] for op in decided.removals if _takes_away(op)}
        self._gone = frozenset(_addresses(observed, gone)).union(scene.freed)
        if self.backend is None:
            whose = {p.container for p in self.policy.publications if self.serving}
            text = "its published ports need a firewall (--firewall none is without)"
            self.refused = {f"container/{name}": text for name in whose}
            return

        self._whole = whole_names(observed.containers.keys() | desired.members.keys())

        def stays(name: str) -> bool:
            """Whether a container that is not wanted, or not readable, keeps its ports."""
            name = self._whole.get(name, name)
            if name in desired.members or name in gone or name in scene.forced:
                return False
            return name in observed.containers or bool(scene.keep)

        try:
            self._compare(self.backend, scene, leaving, stays)
        except FirewallError as error:
            self.problem = str(error)

    def _compare(
        self,
        backend: "firewall.Backend",
        scene: Scene,
        leaving: Set[str],
        stays: Callable[[str], bool],
    ) -> None:
        seen = backend.look(self.policy)
        kept = self.policy.kept
        if scene.keep:
            kept |= seen.networks - scene.networks - leaving
        # A guard that stands says by itself that runcnet turned forwarding on.
        guards = tuple(sorted(seen.guards | set(self.policy.guards)))
        ports = frozenset(whose for whose in seen.ports if stays(whose.partition("/")[2]))
        kept_leads = {whose: seen.ports[whose] for whose in ports}
        kept_senders = frozenset(name for name in seen.senders if stays(name))
        free = self._free_of(kept_leads)
        before = {lead for leads in seen.ports.values() for lead in leads}
        after = {p.lead for p in free}.union(*kept_leads.values())
        self._moved = frozenset(
            [_port(lead, leads=False) for lead in before - after]
            + [_port(lead, leads=True) for lead in after - before]
        )
        found = (kept, guards, ports, free, kept_senders)
        p = self.policy
        if found != (p.kept, p.guards, p.kept_ports, p.publications, p.kept_senders):
            self.policy = msgspec.structs.replace(
                p,
                kept=kept,
                guards=guards,
                kept_ports=ports,
                publications=free,
                kept_senders=kept_senders,
            )
            seen = backend.look(self.policy)
        self.notes += backend.warnings(self.policy)
        self.told = backend.told(self.policy)
        if self.policy.publications:
            from reconciler.host.listeners import listeners

            self.notes += dict.fromkeys(taken(self.policy.publications, listeners()))
        if seen.differences:
            self.operation = ops.ReplaceFirewall(
                object="firewall",
                differences=seen.differences,
                lines=backend.commands(self.policy),
            )

    def _free_of(self, kept: Mapping[str, tuple[Lead, ...]]) -> tuple[Publication, ...]:
        """The publications, less those whose host ports a container that is kept still has."""
        if not kept:
            return self.policy.publications
        free = []
        for one in self.policy.publications:
            holder = next((w for w, leads in kept.items() if any(map(one.lead.meets, leads))), None)
            if holder is None:
                free.append(one)
                continue
            run = f"{one.host_port}/{one.protocol}"
            kept_name = holder.partition("/")[2]
            self.refused[f"container/{one.container}"] = (
                f"the host port {run} still leads to {self._whole.get(kept_name, kept_name)}, which "
                "is kept (see `runcnet status`)"
            )
        return tuple(free)

    def stand_by(self, *, wanted: bool) -> None:
        """Whether a change of the rules is to be expected: what takes long can begin meanwhile."""
        if self.backend is not None:
            with contextlib.suppress(FirewallError):  # it is said where the rules are looked at
                self.backend.stand_by(wanted=wanted)

    def published(self, containers: Iterable[str]) -> Mapping[str, tuple[Lead, ...]]:
        """`NETWORK/CONTAINER` → the published ports that lead there now, as far as that can be read;
        `containers`: those that stand."""
        if self.backend is None:
            return {}
        try:
            ports = self.backend.look(Policy()).ports
        except FirewallError:
            return {}  # which is said where the rules are compared
        whole = whole_names(containers)
        halves = ((whose.partition("/"), leads) for whose, leads in ports.items())
        return {f"{net}/{whole.get(name, name)}": leads for (net, _, name), leads in halves}

    def stands(self, *, yielding: bool = False) -> bool:
        """Whether the rules are still as `look` wanted them; asks the kernel, and costs little."""
        if self.backend is None:
            return True
        try:
            return not self.backend.differences(self._asked(yielding))
        except FirewallError as error:
            return str(error) == self.problem

    def admit(self, members: Iterable[Member]) -> None:
        """Let these containers send from the addresses that they are about to have.

        All else stands as it was looked at. Raises FirewallError.
        """
        if self.backend is None:
            return
        members = list(members)
        found = senders(members, frozenset())
        known = {sender.link: sender for sender in self.policy.senders}
        names = {member.name for member in members}
        # What they had elsewhere is wanted no more: the next check finds that it still stands.
        rest = [s for s in self.policy.senders if s.container not in names]
        self.policy = msgspec.structs.replace(self.policy, senders=(*rest, *found))
        new = tuple(one for one in found if known.get(one.link) != one)
        if new:
            self.backend.admit(self.policy, new)

    def publish(self, names: Collection[str], wanted: Iterable[Publication]) -> ops.ReplaceFirewall:
        """Let host ports lead to these containers as `wanted`; all else stands as it was looked at.

        Raises FirewallError, also where only a look at everything can tell whether that may be.
        """
        old = self.policy
        rest = [one for one in old.publications if one.container not in names]
        policy = msgspec.structs.replace(
            old, publications=tuple(sorted([*rest, *wanted], key=lambda one: one.rank))
        )
        looped = [any(one.looped for one in p.publications) for p in (old, policy)]
        if self.backend is None or self.problem or old.kept_ports or looped == [True, False]:
            # The last rule that guards the loopback goes after what it guards.
            raise FirewallError("published ports are not to be changed by themselves")
        self.backend.replace(policy)
        self.policy = policy
        before, after = ({one.lead for one in p.publications} for p in (old, policy))
        from reconciler.host import conntrack

        conntrack.forget(
            (),
            [_port(lead, leads=False) for lead in before - after]
            + [_port(lead, leads=True) for lead in after - before],
        )
        whose = ", ".join(sorted(names))
        return ops.ReplaceFirewall(object="firewall", differences=(f"published ports of {whose}",))

    def dismiss(self, names: Collection[str]) -> None:
        """Let these containers send no longer: they are gone. Raises FirewallError."""
        gone = tuple(one for one in self.policy.senders if one.container in names)
        if self.backend is None or not gone:
            return
        rest = tuple(one for one in self.policy.senders if one.container not in names)
        self.policy = msgspec.structs.replace(self.policy, senders=rest)
        self.backend.dismiss(gone)

    def _asked(self, yielding: bool) -> Policy:
        return msgspec.structs.replace(self.policy, yielding=yielding)

    def mend(self, *, yielding: bool) -> ops.ReplaceFirewall | None:
        """Put back what others have changed; None: all stands. Raises FirewallError."""
        if self.backend is None:
            return None
        asked = self._asked(yielding)
        differences = self.backend.differences(asked)
        if not differences:
            return None
        self.backend.replace(asked)
        return ops.ReplaceFirewall(object="firewall", differences=differences)

    def forwardable(self) -> frozenset[int]:
        """The IP versions that may be forwarded with the rules that stand now; asks the kernel."""
        if self.backend is None:
            return frozenset(FORWARDING)
        return frozenset(self.policy.guards) if self.stands() and not self.problem else frozenset()

    @staticmethod
    def _fact(cookie: int) -> str:
        return f"guards:{boot_id()}:{cookie}"

    def remind(self, store: Store) -> None:
        """Tell a state that is another one by now for what runcnet turned forwarding on: where it was
        lost together with the rules, nothing else says so."""
        fact = self._fact(rtnl.cookie())
        if self.policy.guards and store.get(fact) is None:
            store.put(fact, "".join(str(v) for v in self.policy.guards))

    def _guards(self, desired: Desired, observed: Observed) -> tuple[int, ...]:
        """IP versions for which runcnet itself turned forwarding on, or is about to."""
        noted = self.store.get(self._fact(observed.host.cookie)) or ""
        return tuple(
            version
            for version, name in FORWARDING.items()
            if str(version) in noted
            or (version in desired.forwarding and observed.sysctls.get(name) == "0")
        )

    def raise_(self, observed: Observed, done: Callable[[ops.Operation, str | None], None]) -> bool:
        """Put the rules in place; whether forwarding may be turned on. `done` hears of the operation."""
        allowed = self._raise(observed, done)
        moved = self._moved if self.raised else ()
        if not self._gone and not moved:
            return allowed
        from reconciler.host import conntrack

        try:
            conntrack.forget(self._gone, moved)
        except FirewallError as error:
            self.notes.append(str(error))
        return allowed

    def _raise(self, observed: Observed, done: Callable[[ops.Operation, str | None], None]) -> bool:
        if self.backend is None:
            return True
        if self.problem:
            self.raised = False
            return not self.policy.guards
        if self.policy.guards:
            # Before the sysctl is: a kill in between must not make a router of the host.
            self.store.put(
                self._fact(observed.host.cookie), "".join(str(v) for v in self.policy.guards)
            )
        if self.operation is None:
            return True
        try:
            self.notes += (*self.told, *self.backend.replace(self.policy))
        except FirewallError as error:
            self.raised = False
            done(self.operation, str(error))
            return not self.policy.guards
        done(self.operation, None)
        return True


def _backend(choice: str) -> "firewall.Waiting | None":
    from reconciler.host import firewall

    return firewall.backend(choice)


def senders(members: Iterable[Member], broken: Set[str]) -> tuple[Sender, ...]:
    """The ports whose addresses are checked, but those in networks that are broken."""
    return tuple(
        Sender(e.network, member.name, e.host_name, tuple(a.address for a in e.addresses))
        for member in members
        for e in member.endpoints
        if e.told and e.network not in broken
    )


def _publications(desired: Desired, broken: Set[str]) -> tuple[Publication, ...]:
    """All that are wanted, but those into networks that are broken: their rules stay as they are."""
    found = [p for member in desired.members.values() for p in member.publications]
    return tuple(sorted((p for p in found if p.network not in broken), key=lambda p: p.rank))


def _port(lead: Lead, *, leads: bool) -> "conntrack.Port":
    """A run of ports whose connections are to be forgotten, unless they go where it leads."""
    from reconciler.host import conntrack

    return conntrack.Port(
        lead.version, lead.protocol, lead.host_ip, lead.first, lead.last,
        lead.target if leads else None, lead.target_port,
    )  # fmt: skip


def _addresses(observed: Observed, names: Set[str]) -> Iterator[Address]:
    """What these containers are reached by."""
    for name in names & observed.containers.keys():
        seen = observed.containers[name]
        inner = {end.inner.index for end in seen.ends if end.inner is not None}
        for row in seen.space.addresses if seen.space is not None else ():
            if row.index in inner and row.scope == 0:
                yield row.address.address


def _takes_away(operation: ops.Operation) -> bool:
    return isinstance(operation, ops.RemoveContainer)
