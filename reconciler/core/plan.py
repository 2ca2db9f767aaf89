"""plan(desired, observed) → Plan: what is to be done, in order, and what is left alone and why."""

from collections.abc import Iterator, Sequence

import msgspec

from reconciler.core import ops
from reconciler.core.forwarding import host_sysctls, neighbour_sysctls
from reconciler.core.hostview import Group
from reconciler.core.limits import removal_limit
from reconciler.core.netplan import Held, Networks, Options, Scene
from reconciler.core.observed import FileState, Observed, SeenContainer
from reconciler.core.ops import Operation
from reconciler.core.repair import container_repairs
from reconciler.core.wanted import Desired, Member


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
    unfit: dict[str, str]
    """Networks that are left as they are, and why; whole looks at the host find them."""
    states: dict[str, str]
    """Object → ok, missing, differs, foreign, failed or held."""

    @property
    def operations(self) -> tuple[Operation, ...]:
        """All, in order."""
        return self.removals + self.networks + self.host + self.creations + self.repairs + self.last


class _Planner(Networks):
    """One run of `plan`: containers, on top of networks."""

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
        if member.hooked:
            if seen is None or seen.space is None:
                self.problem(name, "its namespace cannot be looked into (see /proc)", "missing")
                return
            member = msgspec.structs.replace(member, netns=seen.source)
        if seen is not None and seen.space is not None:
            source: list[Operation] = []
            if not seen.netns and not member.hooked:
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
            unfit = next((e.network for e in member.endpoints if e.network in self.unfit), None)
            if unfit is not None:
                self.problem(name, f"network {unfit}: {self.unfit[unfit]}", "differs")
                self.repairs += source  # its path, at least
                return
            if self._settled(member, seen):
                self.states.setdefault(name, "ok")
                return
            self._repair(member, seen, list(source))
            return
        self._create(member, state)

    def _settled(self, member: Member, seen: SeenContainer) -> bool:
        """Whether it is known to be as wanted without a look at its rows."""
        return (
            member.name in self.scene.settled
            and self.view.entries_stand(member, seen)
            and not self._blocked(member)
        )

    def plan_leaving(self, member: Member) -> None:
        """Take a container away that is to be made anew elsewhere, or in another mode.

        All of these go before any is made, for one may be given another's file.
        """
        seen = self.observed.containers.get(member.name)
        if seen is None or member.hooked or member.object in self.observed.doubles:
            return
        if seen.space is None and self.view.whole_pairs(seen):
            why = "its interface was moved to the host, and its namespace is gone"
        elif seen.netns and seen.netns != member.netns:
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
            for route in endpoint.routes if self.view.foreign else ():
                row = self.view.foreign.get(route.to)
                if row is not None:
                    link = self.view.names.get(row.index, "no link")
                    return (
                        f"the host's route to {route.to} through {link} is not runcnet's "
                        "(remove it, or give the container another address)"
                    )
            if endpoint.group:
                network = self.desired.routed[endpoint.network]
                made = any(
                    isinstance(op, ops.MakeGateway) and op.object == owner for op in self.networks
                )
                if not made and any(a not in self.observed.gateways for a in network.addresses):
                    return f"the gateway of network {endpoint.network} is not there"
                continue
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
                view=self.view,
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
        self.take(member.object, [lead, *groups] if lead else groups, self.repairs)

    def replace(self, seen: SeenContainer, why: str) -> bool:
        """Take a container away because it is to be another; False where it is held back."""
        name = f"container/{seen.name}"
        forced = seen.name in self.scene.forced
        keep = self.keeping(name)
        if keep and not forced:
            self.hold(name, keep)
            return False
        pids = self.scene.busy(seen.name)
        if pids and not forced:
            self.hold(name, f"{why}, and it is in use by {_pids(pids)}")
            return False
        self.removals.append(self._removal(seen, forced=forced, in_use=bool(pids)))
        self.freed.add(seen.netns)
        return True

    def _removal(self, seen: SeenContainer, *, forced: bool, in_use: bool) -> ops.RemoveContainer:
        return ops.RemoveContainer(
            object=f"container/{seen.name}",
            netns=seen.netns,
            name=seen.name,
            path=f"{self.observed.netns_dir}/{seen.netns}" if seen.netns else "",
            ends=tuple(end.host.index for end in seen.ends),
            neighbours=tuple(row for end in seen.ends for row in self.view.entries_of(end)),
            forced=forced,
            in_use=in_use,
        )

    def plan_lost_containers(self) -> Iterator[tuple[str, SeenContainer, str]]:
        """Containers of ours that are not declared (or have no namespace any more), and why."""
        for seen in self.observed.containers.values():
            name = f"container/{seen.name}"
            if not self.wanted(name):
                continue
            mode = self.scene.declared.get(seen.name)
            if mode is None and seen.hooked and name not in self.scene.expected:
                continue  # it goes with its namespace, or where a hook or somebody says so
            if name in self.observed.doubles:
                if mode is None:
                    self.problem(name, self.observed.doubles[name])
                continue
            if mode is None:
                yield name, seen, "it is no longer declared"
            elif mode not in ("network", "none") and (seen.netns or seen.ends):
                yield name, seen, f"its mode is now {mode}"


def _needs_network(op: Operation) -> bool:
    if isinstance(op, ops.AddRoute):
        return op.route.source is not None
    return isinstance(op, ops.MakeEndpoint) or (isinstance(op, ops.SetLink) and bool(op.master))


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
    for routed in desired.routed.values():
        p.plan_routed(routed)
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
        keep = p.keeping(name)
        if keep:
            p.hold(name, keep)
        elif not p.hold_occupied(name, gone):
            bridges += group
    if not scene.keep or scene.expected:
        bridges += [op for op in p.plan_lost_gateways(gone) if not p.keeping(op.object)]
    owned = len(observed.containers) + len(observed.bridges) + len(observed.gateways)
    counted = [op for op in [*going, *bridges] if op.object not in scene.expected]
    total = len(counted) + len(replaced.difference(scene.expected))
    limit = removal_limit(options.max_removals, owned)
    if total > limit:
        over = {op.object for op in [*counted, *p.removals]}.difference(scene.expected)
        # A network that a trial made stays with a container that stays.
        over |= {
            f"network/{end.network}"
            for seen in observed.containers.values()
            if f"container/{seen.name}" in over
            for end in seen.ends
        }
        stay = [op for op in [*going, *p.removals, *bridges] if op.object in over]
        for op in stay:
            p.hold(
                op.object,
                f"{total} of {owned} networks and containers would go and {limit} may "
                f"(--max-removals {total} allows it)",
            )
        files = p.freed & {op.netns for op in stay}
        p.creations = [op for op in p.creations if op.object not in over and op.netns not in files]
        p.removals, going, bridges = (
            [op for op in removals if op.object not in over]
            for removals in (p.removals, going, bridges)
        )
    for op in [*going, *bridges]:
        p.states[op.object] = "differs"
    if options.only is None and not scene.keep:
        p.repairs += p.plan_stray_neighbours()
    elif scene.freed:
        p.repairs += p.plan_stray_neighbours(scene.freed)
    return Plan(
        removals=tuple(going + p.removals),
        networks=tuple(p.networks),
        host=tuple(host_sysctls(desired, observed) + neighbour_sysctls(desired, observed))
        if p.wanted("host")
        else (),
        creations=tuple(p.creations),
        repairs=tuple(p.repairs),
        last=tuple(bridges),
        problems=p.problems,
        held=tuple(p.held),
        unfit=p.unfit,
        states=p.states,
    )
