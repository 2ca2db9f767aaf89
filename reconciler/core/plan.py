"""plan(desired, observed) → Plan: what is to be done, in order, and what is left alone and why."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec

from reconciler.core import ops
from reconciler.core.desired import Bridge, Desired, Member
from reconciler.core.forwarding import host_sysctls
from reconciler.core.limits import removal_limit
from reconciler.core.observed import FileState, Observed, SeenContainer
from reconciler.core.ops import Operation
from reconciler.core.overlap import overlap_with_host
from reconciler.core.repair import Group, bridge_repairs, container_repairs


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """Something that a pass left as it is, and why."""

    object: str
    reason: str


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator allows."""

    max_removals: str = "50%"
    """A number, a share with a percent sign, or `all`."""
    no_interrupt: bool = False
    only: frozenset[str] | None = None
    """Objects to look at; None: all."""


class Scene(msgspec.Struct, frozen=True, kw_only=True):
    """What planning needs beside desired and observed state."""

    declared: Mapping[str, str]
    """Every declared container → its mode."""
    networks: frozenset[str]
    """Every declared network."""
    busy: Callable[[str], Sequence[int]]
    """The pids of the processes that live in a container's namespace, by its name."""
    keep: str = ""
    """Why nothing undeclared may be removed; empty: it may."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Operations in the order in which they are carried out."""

    removals: tuple[Operation, ...]
    """Containers that go, and veth pairs in whose place something else comes."""
    networks: tuple[Operation, ...]
    host: tuple[Operation, ...]
    """Forwarding; after the firewall."""
    creations: tuple[ops.MakeContainer, ...]
    repairs: tuple[Operation, ...]
    last: tuple[Operation, ...]
    """Networks that go, after their members."""
    problems: dict[str, list[str]]
    """Object → why it is not as declared and cannot be made so."""
    held: tuple[Held, ...]
    states: dict[str, str]
    """Object → ok, missing, differs, foreign, failed or held."""

    @property
    def operations(self) -> tuple[Operation, ...]:
        """All, in order."""
        return self.removals + self.networks + self.host + self.creations + self.repairs + self.last


class _Planner:
    """One run of `plan`; collects as it goes through networks and containers."""

    def __init__(
        self, desired: Desired, observed: Observed, scene: Scene, options: Options
    ) -> None:
        self.desired = desired
        self.observed = observed
        self.scene = scene
        self.options = options
        self.removals: list[Operation] = []
        self.networks: list[Operation] = []
        self.creations: list[ops.MakeContainer] = []
        self.repairs: list[Operation] = []
        self.last: list[Operation] = []
        self.problems: dict[str, list[str]] = {}
        self.held: list[Held] = []
        self.states: dict[str, str] = {}
        self.subnets = {name: b.subnets for name, b in desired.bridges.items()}
        self.by_name = {link.name: link for link in observed.host.links}
        self.freed: set[str] = set()
        """Files of the netns dir that are free once the removals are carried out."""
        self.leaving: dict[str, bool] = {}
        """Containers that are to be made anew, and whether they may be taken away for that."""

    def wanted(self, name: str) -> bool:
        return self.options.only is None or name in self.options.only

    def problem(self, name: str, text: str, state: str = "failed") -> None:
        self.problems.setdefault(name, []).append(text)
        self.states[name] = state

    def hold(self, name: str, reason: str) -> None:
        self.held.append(Held(object=name, reason=reason))
        self.states[name] = "held"

    # -- networks ---------------------------------------------------------------------------

    def plan_network(self, bridge: Bridge) -> None:
        name = bridge.object
        if bridge.external:
            if name in self.desired.problems:
                self.problem(name, self.desired.problems[name], "missing")
            return
        if name in self.observed.doubles:
            self.problem(name, self.observed.doubles[name])
            return
        link = self.observed.bridges.get(bridge.network)
        if link is None:
            standing = self.by_name.get(bridge.name)
            overlap = overlap_with_host(bridge, self.observed)
            if standing is not None:
                self.problem(
                    name,
                    f"{bridge.name} exists and is not runcnet's "
                    "(external: true uses it; bridge: NAME takes another name)",
                    "foreign",
                )
            elif overlap:
                self.problem(name, overlap)
            elif self.wanted(name):
                self.networks.append(ops.MakeBridge(object=name, bridge=bridge))
                self.states[name] = "missing"
            return
        used = (
            any(
                self.scene.busy(seen.name)
                for seen in self.observed.containers.values()
                if any(end.network == bridge.network for end in seen.ends)
            )
            if self._may_interrupt(bridge, link.name)
            else False
        )
        groups = bridge_repairs(bridge, link, self.observed.host, used=used)
        self._take(name, groups, self.networks)

    def _may_interrupt(self, bridge: Bridge, link: str) -> bool:
        """Looking for processes costs a walk through /proc: only where the answer matters."""
        probe = bridge_repairs(
            bridge, self.observed.bridges[bridge.network], self.observed.host, used=True
        )
        return any(op.interrupts for group in probe for op in group)

    def plan_lost_networks(self) -> Iterator[tuple[str, Group]]:
        """Bridges of ours that no network declares, with what would take them away."""
        external = {b.name for b in self.desired.bridges.values() if b.external}
        for network, link in sorted(self.observed.bridges.items()):
            name = f"network/{network}"
            kept = self.desired.bridges.get(network)
            if (kept is not None and not kept.external) or not self.wanted(name):
                continue
            if kept is not None or link.name in external:
                continue
            if network in self.scene.networks:
                continue
            yield name, [ops.RemoveBridge(object=name, link=link.name, index=link.index)]

    def hold_occupied(self, name: str, going: set[str]) -> bool:
        """Hold a bridge that somebody's port, or a container that stays, still needs."""
        link = self.observed.bridges[name.partition("/")[2]]
        owners = {
            end.host.index: seen.name
            for seen in self.observed.containers.values()
            for end in seen.ends
        }
        removed_ends = {op.index for op in self._endpoint_removals()}
        for port in self.observed.host.links:
            if port.master != link.index or port.index in removed_ends:
                continue
            who = owners.get(port.index)
            if who is None:
                self.hold(name, f"{port.name} is a port of {link.name} and not runcnet's")
                return True
            if f"container/{who}" not in going:
                self.hold(name, f"container {who} still uses {link.name}")
                return True
        return False

    def _endpoint_removals(self) -> list[ops.RemoveEndpoint]:
        both = self.removals + self.repairs
        return [op for op in both if isinstance(op, ops.RemoveEndpoint)]

    # -- containers -------------------------------------------------------------------------

    def plan_container(self, member: Member) -> None:
        name = member.object
        if name in self.observed.doubles:
            self.problem(name, self.observed.doubles[name])
            return
        seen = self.observed.containers.get(member.name)
        state = self.observed.files.get(member.netns)
        if member.name in self.leaving:
            if self.leaving[member.name]:
                self._create(member, state)
            return
        if seen is not None and seen.space is not None:
            source = []
            if not seen.netns:
                if state is FileState.NAMESPACE or state is FileState.FOREIGN:
                    self._foreign(member)
                    return
                source = [
                    ops.Rebind(
                        object=name,
                        netns=member.netns,
                        source=seen.source,
                        path=f"{self.observed.netns_dir}/{member.netns}",
                    )
                ]
            self._repair(member, seen, list(source))
            return
        self._create(member, state)

    def plan_leaving(self, member: Member) -> None:
        """Take a container away that is to be made anew elsewhere, or in another mode.

        All of these go before any is made, for one may be given another's file.
        """
        seen = self.observed.containers.get(member.name)
        if seen is None or member.object in self.observed.doubles:
            return
        if seen.netns and seen.netns != member.netns:
            why = f"its netns file is to be {member.netns}"
        elif seen.ends and not member.endpoints:
            why = "its mode is now none"
        elif member.endpoints and not seen.networked:
            why = "its mode is now network"
        else:
            return
        self.leaving[member.name] = self.replace(seen, why)

    def _foreign(self, member: Member) -> None:
        path = f"{self.observed.netns_dir}/{member.netns}"
        self.problem(
            member.object,
            f"{path} exists and is not runcnet's "
            f"(remove it with `ip netns del {member.netns}`, or declare another `netns`)",
            "foreign",
        )

    def _create(self, member: Member, state: FileState | None) -> None:
        taken = state in (FileState.NAMESPACE, FileState.FOREIGN)
        if taken and member.netns not in self.freed:
            self._foreign(member)
            return
        blocked = self._blocked(member)
        if blocked:
            self.problem(member.object, blocked, "missing")
            return
        self.creations.append(
            ops.MakeContainer(object=member.object, netns=member.netns, member=member)
        )
        self.states[member.object] = "missing"

    def _blocked(self, member: Member) -> str:
        """Why the container's networks cannot take it."""
        for endpoint in member.endpoints:
            owner = f"network/{endpoint.network}"
            if owner in self.problems:
                return f"network {endpoint.network}: {self.problems[owner][0]}"
            standing = endpoint.bridge in self.by_name or any(
                isinstance(op, ops.MakeBridge) and op.bridge.network == endpoint.network
                for op in self.networks
            )
            renamed = endpoint.network in self.observed.bridges
            if not standing and not renamed:
                return f"the bridge {endpoint.bridge} of network {endpoint.network} is not there"
        return ""

    def _repair(self, member: Member, seen: SeenContainer, lead: Group) -> None:
        assert seen.space is not None  # callers repair what stands
        sysctls = dict(zip(self.observed.space_sysctls, seen.space.sysctls, strict=True))

        def compare(running: bool) -> tuple[list[Group], list[str]]:
            assert seen.space is not None
            return container_repairs(
                member,
                seen,
                seen.space,
                host=self.observed.host,
                subnets=self.subnets,
                sysctls=sysctls,
                running=running,
            )

        groups, problems = compare(True)
        if any(op.interrupts for group in groups for op in group):
            groups, problems = compare(bool(self.scene.busy(member.name)))
        blocked = self._blocked(member)
        if blocked:
            groups = [g for g in groups if not any(_needs_network(op) for op in g)]
            self.problem(member.object, blocked, "differs")
        for text in problems:
            self.problem(member.object, text, "differs")
        self._take(member.object, [lead, *groups] if lead else groups, self.repairs)

    def _take(self, name: str, groups: list[Group], where: list[Operation]) -> None:
        taken = False
        for group in groups:
            cuts = next((op for op in group if op.interrupts), None)
            if cuts is not None and self.options.no_interrupt:
                self.hold(name, f"{cuts.describe()} would interrupt it (--no-interrupt)")
                continue
            where += group
            taken = True
        if taken:
            self.states.setdefault(name, "differs")
        else:
            self.states.setdefault(name, "ok")

    def replace(self, seen: SeenContainer, why: str) -> bool:
        """Take a container away because it is to be another; False where it is held back."""
        name = f"container/{seen.name}"
        if self.scene.keep:
            self.hold(name, self.scene.keep)
            return False
        pids = self.scene.busy(seen.name)
        if pids:
            self.hold(name, f"{why}, and it is in use by {_pids(pids)}")
            return False
        self.removals.append(self._removal(seen))
        self.freed.add(seen.netns)
        return True

    def _removal(self, seen: SeenContainer) -> ops.RemoveContainer:
        return ops.RemoveContainer(
            object=f"container/{seen.name}",
            netns=seen.netns,
            name=seen.name,
            path=f"{self.observed.netns_dir}/{seen.netns}" if seen.netns else "",
            ends=tuple(end.host.index for end in seen.ends),
        )

    def plan_lost_containers(self) -> Iterator[tuple[str, SeenContainer, str]]:
        """Containers of ours that are not declared (or have no namespace any more), and why."""
        for seen in self.observed.containers.values():
            name = f"container/{seen.name}"
            if not self.wanted(name):
                continue
            mode = self.scene.declared.get(seen.name)
            if name in self.observed.doubles:
                if mode is None:
                    self.problem(name, self.observed.doubles[name])
                continue
            if mode is None:
                yield name, seen, "it is no longer declared"
            elif mode not in ("network", "none") and (seen.netns or seen.ends):
                yield name, seen, f"its mode is now {mode}"


def _needs_network(op: Operation) -> bool:
    return isinstance(op, ops.MakeEndpoint) or (
        isinstance(op, ops.SetLink) and op.master is not None
    )


def _pids(pids: Sequence[int]) -> str:
    shown = ", ".join(str(p) for p in pids[:3])
    more = f" and {len(pids) - 3} more" if len(pids) > 3 else ""
    return f"pid {shown}{more}" if len(pids) == 1 else f"pids {shown}{more}"


def plan(
    desired: Desired, observed: Observed, scene: Scene, options: Options | None = None
) -> Plan:
    """The difference between what is declared and what stands, as operations in order."""
    options = options or Options()
    p = _Planner(desired, observed, scene, options)
    for bridge in desired.bridges.values():
        p.plan_network(bridge)
    for name, text in desired.problems.items():
        if name.startswith("container/") and p.wanted(name):
            p.problem(name, text)
    going: list[Operation] = []
    for _, seen, why in p.plan_lost_containers():
        if p.replace(seen, why):
            going.append(p.removals.pop())
    members = [m for m in desired.members.values() if p.wanted(m.object)]
    for member in members:
        p.plan_leaving(member)
    for member in members:
        p.plan_container(member)
    replaced = {op.object for op in p.removals}
    gone = {op.object for op in going} | replaced
    bridges: list[Operation] = []
    for name, group in p.plan_lost_networks():
        if scene.keep:
            p.hold(name, scene.keep)
        elif not p.hold_occupied(name, gone):
            bridges += group
    owned = len(observed.containers) + len(observed.bridges)
    total = len(going) + len(bridges) + len(replaced)
    limit = removal_limit(options.max_removals, owned)
    if total > limit:
        for op in [*going, *p.removals, *bridges]:
            p.hold(
                op.object,
                f"{total} of {owned} networks and containers would go and {limit} may "
                f"(--max-removals {total} allows it)",
            )
        p.creations = [
            op for op in p.creations if op.object not in replaced and op.netns not in p.freed
        ]
        p.removals, going, bridges = [], [], []
    for op in [*going, *bridges]:
        p.states[op.object] = "differs"
    return Plan(
        removals=tuple(going + p.removals),
        networks=tuple(p.networks),
        host=tuple(host_sysctls(desired, observed)) if options.only is None else (),
        creations=tuple(p.creations),
        repairs=tuple(p.repairs),
        last=tuple(bridges),
        problems=p.problems,
        held=tuple(p.held),
        states=p.states,
    )
