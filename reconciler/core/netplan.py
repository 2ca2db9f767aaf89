"""The part of planning that looks at networks, and what the whole of it collects."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import msgspec

from reconciler.core import ops
from reconciler.core.hostview import Group, HostView
from reconciler.core.model import PROTOCOL, Address, Subnet
from reconciler.core.names import network_group
from reconciler.core.observed import Observed
from reconciler.core.ops import Operation
from reconciler.core.repair import bridge_repairs
from reconciler.core.wanted import Bridge, Desired, Routed


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
    settled: Collection[str] = frozenset()
    """Containers of which a pass before this one found that nothing differs, unchanged since."""
    keep: str = ""
    """Why nothing undeclared may be removed; empty: it may."""
    expected: Collection[str] = frozenset()
    """Objects of which a trial is taken back, or that somebody has asked to go by name: they go
    whatever `keep` and the options say."""
    forced: Collection[str] = frozenset()
    """Containers that go, when they go, also where processes live in them."""
    freed: Collection[Address] = frozenset()
    """Addresses that went with their containers' namespaces: the host's entries for them go."""
    unfit: Mapping[str, str] = {}
    """Networks that an earlier look at the whole host found unfit, and why: see `Networks.unfit`."""


class Networks:
    """One run of `plan`; collects as it goes through networks and, in `plan.py`, containers."""

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
        self.subnets |= {name: r.subnets for name, r in desired.routed.items()}
        self.by_name = {link.name: link for link in observed.host.links}
        self.view = HostView(observed, tuple(desired.members.values()))
        self.freed: set[str] = set()
        """Files of the netns dir that are free once the removals are carried out."""
        self.leaving: dict[str, bool] = {}
        """Containers that are to be made anew, and whether they may be taken away for that."""
        self.unfit: dict[str, str] = {}
        """Networks that cannot be as they are declared now, and why: what stands is left as it is."""

    def wanted(self, name: str) -> bool:
        return self.options.only is None or name in self.options.only

    def keeping(self, name: str) -> str:
        """Why an undeclared object may not be removed; empty: it may."""
        return "" if name in self.scene.expected else self.scene.keep

    def problem(self, name: str, text: str, state: str = "failed") -> None:
        self.problems.setdefault(name, []).append(text)
        self.states[name] = state

    def hold(self, name: str, reason: str) -> None:
        self.held.append(Held(object=name, reason=reason))
        self.states[name] = "held"

    def take(self, name: str, groups: list[Group], where: list[Operation]) -> None:
        taken = False
        for group in groups:
            cuts = next((op for op in group if op.interrupts), None)
            held_back = self.options.no_interrupt and name not in self.scene.expected
            if cuts is not None and held_back:
                self.hold(name, f"{cuts.describe()} would interrupt it (--no-interrupt)")
                continue
            where += group
            taken = True
        if taken:
            self.states.setdefault(name, "differs")
        else:
            self.states.setdefault(name, "ok")

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
            overlap = self._overlap(bridge)
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
        carried = {row.address for row in self.view.addresses.get(link.index, ())}
        if any(not a.is_link_local and a not in carried for a in bridge.addresses) and (
            self._unfit(bridge)
        ):
            return
        if not self.wanted(name):
            self.states.setdefault(name, "ok")
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
        groups = bridge_repairs(bridge, link, self.view, used=used)
        self.take(name, groups, self.networks)
        if any(
            isinstance(op, ops.RemoveAddress)
            or (isinstance(op, ops.SetLink) and (op.mac is not None or op.name is not None))
            for op in self.networks
            if op.object == name
        ):
            self.view.flushed.add(bridge.name)

    def plan_routed(self, network: Routed) -> None:
        name = network.object
        missing = [a for a in network.addresses if a not in self.observed.gateways]
        if not missing:
            self.states.setdefault(name, "ok")
            return
        new = len(missing) == len(network.addresses)
        if not self._unfit(network) and self.wanted(name):
            self.networks.append(ops.MakeGateway(object=name, addresses=tuple(missing)))
            self.states[name] = "missing" if new else "differs"

    def _unfit(self, network: Bridge | Routed) -> bool:
        """Whether what it would get now would cut the host off from what it has."""
        why = self.scene.unfit.get(network.network) or self._overlap(network)
        if why and network.network not in self.scene.unfit:
            # Where its members live already, it only lost something: whoever came later must bear it.
            fresh = tuple(s for s in network.subnets if not self._lived_in(network.network, s))
            network = msgspec.structs.replace(network, subnets=fresh)
            why = self._overlap(network)
        if why:
            self.problem(network.object, why)
            self.unfit[network.network] = why
        return bool(why)

    def _overlap(self, network: Bridge | Routed) -> str:
        from reconciler.core.overlap import overlap_with_host  # only what is new needs it

        return overlap_with_host(network, self.observed)

    def _lived_in(self, network: str, subnet: Subnet) -> bool:
        return any(
            row.index == end.inner.index
            and row.protocol == PROTOCOL
            and subnet.holds(row.address.address)
            for seen in self.observed.containers.values()
            for end in seen.ends
            if end.network == network and seen.space is not None and end.inner is not None
            for row in seen.space.addresses
        )

    def _may_interrupt(self, bridge: Bridge, link: str) -> bool:
        """Looking for processes costs a walk through /proc: only where the answer matters."""
        probe = bridge_repairs(bridge, self.observed.bridges[bridge.network], self.view, used=True)
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
            if network in self.scene.networks and network not in self.desired.routed:
                continue
            yield name, [ops.RemoveBridge(object=name, link=link.name, index=link.index)]

    def plan_lost_gateways(self, gone: set[str]) -> Iterator[ops.RemoveGateway]:
        """Gateways of ours that no routed network declares, unless a member stays behind them."""
        wanted = {a for network in self.desired.routed.values() for a in network.addresses}
        ends = [
            end
            for seen in self.observed.containers.values()
            for end in seen.ends
            if f"container/{seen.name}" not in gone
        ]
        staying = {end.network for end in ends}
        stand = self.desired.routed.keys() | self.desired.bridges.keys()
        if any(e.host.group == network_group(e.network) and e.network not in stand for e in ends):
            staying.add("")  # where the record is lost, it may be that one's
        for address, network in sorted(self.observed.gateways.items()):
            name = f"network/{network or address.address}"
            if address in wanted or not self.wanted(name):
                continue
            if network in self.unfit or (self.unfit and not network):
                continue
            declared = network in self.desired.routed or network in self.desired.bridges
            if not declared and (network in self.scene.networks or network in staying):
                if network not in self.scene.networks:
                    self.hold(name, f"containers still use its gateway {address}")
                continue
            yield ops.RemoveGateway(object=name, address=address, whole=not declared)

    def plan_stray_neighbours(self, only: Collection[Address] | None = None) -> list[Operation]:
        """Neighbours on bridges of ours that nobody needs: what a kill has left.

        `only`: those with these addresses.
        """
        ends = [end for seen in self.observed.containers.values() for end in seen.ends]
        # A port that has left its bridge leaves its entries there, and its container's repair takes them.
        going = {op.row for op in self.repairs if isinstance(op, ops.RemoveNeighbour)}
        return [
            ops.RemoveNeighbour(
                object=f"network/{network}", link=self.view.names[row.index], row=row
            )
            for network, row in self.view.stray_neighbours(ends)
            # Where the bridge loses all of them in this pass, nothing is left to be removed.
            if row not in going
            and (only is None or row.address in only)
            and network in self.desired.bridges
            and self.desired.bridges[network].name not in self.view.flushed
        ]

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
