"""The firewall's part of a pass: what is asked for, whether it differs, and putting it in place."""

from collections.abc import Callable, Set

import msgspec

from reconciler.core import ops
from reconciler.core.errors import FirewallError
from reconciler.core.model import FORWARDING
from reconciler.core.netplan import Scene
from reconciler.core.observed import Observed
from reconciler.core.plan import Plan
from reconciler.core.policy import Policy
from reconciler.core.wanted import Desired
from reconciler.host import firewall
from reconciler.host.machine import boot_id
from reconciler.host.store import Store


class Wall:
    """One pass's view of the firewall. `look` first, then `raise_`."""

    def __init__(self, choice: str, store: Store) -> None:
        self.backend = firewall.backend(choice)
        self.store = store
        self.policy = Policy()
        self.operation: ops.ReplaceFirewall | None = None
        self.problem = ""
        """Why the firewall cannot be read."""
        self.notes: list[str] = []

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
        )
        if self.backend is None:
            return
        try:
            self._compare(self.backend, scene, leaving)
        except FirewallError as error:
            self.problem = str(error)

    def _compare(self, backend: firewall.Backend, scene: Scene, leaving: Set[str]) -> None:
        seen = backend.look(self.policy)
        kept = self.policy.kept
        if scene.keep:
            kept |= seen.networks - scene.networks - leaving
        # A guard that stands says by itself that runcnet turned forwarding on.
        guards = tuple(sorted(seen.guards | set(self.policy.guards)))
        if (kept, guards) != (self.policy.kept, self.policy.guards):
            self.policy = msgspec.structs.replace(self.policy, kept=kept, guards=guards)
            seen = backend.look(self.policy)
        self.notes += backend.warnings(self.policy)
        if seen.differences:
            self.operation = ops.ReplaceFirewall(
                object="firewall",
                differences=seen.differences,
                lines=backend.commands(self.policy),
            )

    def stands(self) -> bool:
        """Whether the rules are still as `look` wanted them; asks the kernel, and costs little."""
        if self.backend is None:
            return True
        try:
            return not self.backend.look(self.policy).differences
        except FirewallError as error:
            return str(error) == self.problem

    def forwardable(self) -> frozenset[int]:
        """The IP versions that may be forwarded with the rules that stand now; asks the kernel."""
        if self.backend is None:
            return frozenset(FORWARDING)
        return frozenset(self.policy.guards) if self.stands() and not self.problem else frozenset()

    @staticmethod
    def _fact(observed: Observed) -> str:
        return f"guards:{boot_id()}:{observed.host.cookie}"

    def _guards(self, desired: Desired, observed: Observed) -> tuple[int, ...]:
        """IP versions for which runcnet itself turned forwarding on, or is about to."""
        noted = self.store.get(self._fact(observed)) or ""
        return tuple(
            version
            for version, name in FORWARDING.items()
            if str(version) in noted
            or (version in desired.forwarding and observed.sysctls.get(name) == "0")
        )

    def raise_(self, observed: Observed, done: Callable[[ops.Operation, str | None], None]) -> bool:
        """Put the rules in place; whether forwarding may be turned on. `done` hears of the operation."""
        if self.backend is None:
            return True
        if self.problem:
            return not self.policy.guards
        if self.policy.guards:
            # Before the sysctl is: a kill in between must not make a router of the host.
            self.store.put(self._fact(observed), "".join(str(v) for v in self.policy.guards))
        if self.operation is None:
            return True
        try:
            self.notes += self.backend.replace(self.policy)
        except FirewallError as error:
            done(self.operation, str(error))
            return not self.policy.guards
        done(self.operation, None)
        return True
