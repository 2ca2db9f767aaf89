"""Plan → kernel → outcomes. One failure stays one failure: the rest goes on."""

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from reconciler.core import ops
from reconciler.core.names import container_alias
from reconciler.core.observed import LOOPBACK
from reconciler.core.ops import Operation
from reconciler.core.rows import IPV6_MTU, Link
from reconciler.core.wanted import Endpoint, Member
from reconciler.host import rtnl, steps
from reconciler.host.ahead import Ahead
from reconciler.host.batch import Batch, Result
from reconciler.host.record import Record
from reconciler.host.removal import Outcome, Removals

__all__ = ["Kernel", "Outcome"]

BATCH = 256
"""Containers made in one trip through C; a signal is heard between two trips."""
SPARE = 64
"""Link numbers left to whoever else makes links while a pass runs."""
KERNEL = 2
"""RTPROT_KERNEL of linux/rtnetlink.h."""
INNER = 64
"""The number of a fresh container's first interface: a kernel with tunnel modules puts a device of
each into every new namespace, and those are numbered from 2 on."""


class _Part(NamedTuple):
    """One batch of containers to be made."""

    batch: Batch
    made: list[ops.MakeContainer]
    ends: dict[int, tuple[str, str, str]]
    refused: list[Outcome]


class Kernel(Removals):
    """Carries operations out in one host, and writes down in the record what they make."""

    def __init__(
        self,
        *,
        netns_dir: str,
        record: Record,
        links: Iterable[Link],
        ipv6: bool = True,
        above: int = 0,
        cookies: Mapping[str, int] = MappingProxyType({}),
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """`links` are the host's, as they were last seen; `ipv6`: whether the kernel has it; `above`:
        numbers up to that are taken, too; `cookies`: which namespace was seen at a path: what is meant
        for it is not done to another one that has come there since."""
        self.netns_dir = netns_dir
        self._cookies = cookies
        self.record = record
        self.stop = stop
        self.ipv6 = ipv6
        self._indexes = {link.name: link.index for link in links}
        used = max(self._indexes.values(), default=0)
        # Links that others make meanwhile are numbered by the kernel from its last number on.
        self._next_index = max(used, above, record.last_end()) + SPARE

    def create(self, creations: Sequence[ops.MakeContainer]) -> Iterator[Outcome]:
        """Make containers, a batch at a time; what is about to be made is written down first.

        The next batch is packed while the kernel is at work on one.
        """
        before = self.record.spaces([op.member.name for op in creations]) if creations else {}
        ahead: tuple[_Part, Ahead[list[Result]]] | None = None
        for start in range(0, len(creations), BATCH):
            if self.stop():
                break
            part = self._pack(creations[start : start + BATCH])
            # Written before the kernel hears of it.
            self.record.note_spaces({op.member.name: 0 for op in part.made})
            self.record.note_ends(part.ends)
            done, results = ahead[0] if ahead else None, ahead[1].result() if ahead else []
            ahead = part, Ahead(part.batch.run)
            if done is not None:
                yield from self._made(done, results, before)
        if ahead is not None:
            yield from self._made(ahead[0], ahead[1].result(), before)

    def _pack(self, creations: Sequence[ops.MakeContainer]) -> "_Part":
        part = _Part(Batch(), [], {}, [])
        for op in creations:
            missing = self._missing_bridge(op.member)
            if missing:
                part.refused.append(Outcome(op, missing))
            else:
                part.made.append(op)
                part.ends.update(self._container(part.batch, op.member))
        return part

    def _made(
        self, part: "_Part", results: list[Result], before: Mapping[str, int]
    ) -> Iterator[Outcome]:
        pairs = list(zip(part.made, results, strict=True))
        self.record.note_spaces(
            {op.member.name: result.cookie for op, result in pairs if not result.failures}
        )
        failed = {op.member.name for op, result in pairs if result.failures}
        if failed:
            # What stood in the way may be the container itself, bound in another netns dir.
            self.record.note_spaces({n: before[n] for n in failed if n in before})
            self.record.forget(
                containers=sorted(failed - before.keys()),
                ends=[i for i, end in part.ends.items() if end[1] in failed],
            )
        yield from part.refused
        for op, result in pairs:
            yield Outcome(op, steps.failure_text(result) if result.failures else None)

    def _missing_bridge(self, member: Member) -> str:
        for endpoint in member.endpoints:
            if not endpoint.group and endpoint.bridge not in self._indexes:
                return f"the bridge {endpoint.bridge} of network {endpoint.network} is not there"
        return ""

    def _container(self, batch: Batch, member: Member) -> dict[int, tuple[str, str, str]]:
        """One job. What needs no veth comes first: it is done ahead, by a thread of its own."""
        ends = {}
        batch.create(f"{self.netns_dir}/{member.netns}")
        batch.link(1, inside=True, up=True, alias=container_alias(member.name))
        for name, value in member.sysctls:
            batch.sysctl(name, value, inside=True)
        if member.manner is not None:
            batch.sysctl(*member.manner, inside=True, if_there=True)
        numbers = {}
        for position, endpoint in enumerate(member.endpoints):
            index = self._take_index()
            ends[index] = (endpoint.network, member.name, endpoint.name)
            numbers[endpoint.name] = index
            self._veth(batch, endpoint, index, INNER + position)
        links = {e.name: INNER + position for position, e in enumerate(member.endpoints)}
        for endpoint in member.endpoints if member.manner is None else ():
            # All at once: each other step between two would be a message to wait for.
            steps.quiet(batch, endpoint, ipv6=self.ipv6)
        for endpoint in member.endpoints:
            steps.inner_up(batch, endpoint, links[endpoint.name], ipv6=self.ipv6)
        for route in member.routes:
            batch.route(
                route.to, via=route.via, link=links[route.link], table=route.table, inside=True
            )
        for rule in member.rules:
            batch.rule(rule.source, table=rule.table, priority=rule.priority, inside=True)
        for endpoint in member.endpoints:
            self._entries(batch, endpoint, numbers[endpoint.name], links[endpoint.name])
        return ends

    def _entries(self, batch: Batch, endpoint: Endpoint, host: int, inner: int | str) -> None:
        """The neighbours on both sides and the host's routes."""
        for gateway in endpoint.gateways:
            batch.neighbour(gateway, endpoint.host_mac, link=inner, inside=True)
        for route in endpoint.routes:
            batch.route(route.to, via=None, link=host, source=route.source, inside=False)
        behind = host if endpoint.group else self._indexes[endpoint.bridge]
        for address in endpoint.neighbours:
            batch.neighbour(address, endpoint.mac, link=behind, inside=False)

    def _take_index(self) -> int:
        index = self._next_index
        self._next_index += 1
        return index

    def _veth(self, batch: Batch, endpoint: Endpoint, index: int, peer_index: int) -> None:
        ipv6 = self.ipv6 and endpoint.mtu >= IPV6_MTU
        batch.veth(
            name=endpoint.host_name,
            index=index,
            mac=endpoint.host_mac,
            mtu=endpoint.mtu,
            master=0 if endpoint.group else self._indexes[endpoint.bridge],
            alias=endpoint.alias,
            port=endpoint.port,
            peer_name=endpoint.name,
            peer_index=peer_index,
            peer_mac=endpoint.mac,
            group=endpoint.group,
            ipv6=ipv6,
        )
        if ipv6:
            steps.deafen(batch, endpoint.host_name)

    def perform(self, operations: Sequence[Operation]) -> Iterator[Outcome]:
        """Carry out everything else, one after another, each for itself."""
        batch = Batch()
        jobs: list[Operation] = []
        made_ends: dict[int, tuple[str, str, str]] = {}
        outcomes: dict[Operation, str | None] = {}
        for op in operations:
            before = len(batch)
            error = self._perform(batch, op, made_ends)
            if len(batch) > before:
                jobs.append(op)
            else:
                outcomes[op] = error
        if made_ends:
            self.record.note_ends(made_ends)
        for op, result in zip(jobs, batch.run() if jobs else [], strict=True):
            outcomes[op] = steps.failure_text(result) if result.failures else None
            if isinstance(op, ops.RemoveNeighbour) and result.failures:
                # It may have gone with an address or a link before.
                gone = result.failures[0].errno in (errno.ENOENT, errno.ENODEV)
                outcomes[op] = None if gone else outcomes[op]
            if outcomes[op] is None and isinstance(op, ops.RemoveEndpoint) and not op.inside:
                self.record.forget(ends=[op.index])
            if outcomes[op] is None and isinstance(op, ops.MakeEndpoint):
                # What stood there before and is no more need not be known any longer.
                self.record.forget(ends=self._replaced(op, made_ends))
            if outcomes[op] is None and isinstance(op, ops.RemoveGateway):
                self.record.forget(gateways=[str(op.address)])
            if outcomes[op] is None and isinstance(op, ops.RemoveBridge):
                self.record.forget(bridges=[op.object.partition("/")[2]])
        for op in jobs:
            if isinstance(op, ops.MakeBridge) and outcomes[op] is not None:
                self._indexes.pop(op.bridge.name, None)
        self._note_bridges([op for op in jobs if outcomes[op] is None])
        for op in operations:
            yield Outcome(op, outcomes[op])

    def _replaced(self, op: ops.MakeEndpoint, made: Mapping[int, object]) -> list[int]:
        """The numbers of a veth pair's forerunners that are gone."""
        end = (op.endpoint.network, op.endpoint.container, op.endpoint.name)
        standing = {*self._indexes.values(), *made}
        known = self.record.ends([op.endpoint.container])
        return [index for index, one in known.items() if one == end and index not in standing]

    def _note_bridges(self, done: Sequence[Operation]) -> None:
        made = {}
        for op in done:
            if isinstance(op, ops.MakeBridge):
                made[op.bridge.network] = self._indexes[op.bridge.name]
            elif isinstance(op, ops.SetLink) and op.host and op.name is not None:
                self._indexes[op.name] = op.index
        self.record.note_bridges(made)

    def _perform(
        self, batch: Batch, op: Operation, ends: dict[int, tuple[str, str, str]]
    ) -> str | None:
        """Add the job of `op` to the batch, or do it here and answer with its error."""
        match op:
            case ops.Rebind():
                code = rtnl.bind(op.source, op.path)
                return f"bind {op.source} to {op.path}: {os.strerror(code)}" if code else None
            case ops.MakeBridge():
                self.record.note_bridges({op.bridge.network: 0})
                batch.host()
                index = self._take_index()
                steps.make_bridge(batch, op, index, ipv6=self.ipv6)
                self._indexes.setdefault(op.bridge.name, index)
            case ops.RemoveBridge():
                batch.host()
                batch.delete_link(op.index, inside=False)
            case ops.RemoveEndpoint():
                if op.inside:
                    self._enter(batch, op)
                else:
                    batch.host()
                batch.delete_link(op.index, inside=op.inside)
                steps.forget_neighbours(batch, op.neighbours)
            case ops.MakeEndpoint():
                if not op.endpoint.group and op.endpoint.bridge not in self._indexes:
                    return f"the bridge {op.endpoint.bridge} is not there"
                self._enter(batch, op)
                index = self._take_index()
                ends[index] = (op.endpoint.network, op.endpoint.container, op.endpoint.name)
                self._veth(batch, op.endpoint, index, 0)
                steps.quiet(batch, op.endpoint, ipv6=self.ipv6)
                steps.inner_up(batch, op.endpoint, op.endpoint.name, ipv6=self.ipv6)
                self._entries(batch, op.endpoint, index, op.endpoint.name)
            case ops.SetLink():
                return self._set_link(batch, op)
            case ops.AddAddress() | ops.RemoveAddress():
                self._enter(batch, op)
                batch.address(
                    op.link,
                    op.address,
                    inside=bool(op.netns),
                    delete=isinstance(op, ops.RemoveAddress),
                )
            case ops.AddRoute() | ops.RemoveRoute():
                self._enter(batch, op)
                batch.route(
                    op.route.to,
                    via=op.route.via,
                    link=op.route.link,
                    table=op.route.table,
                    source=op.route.source,
                    inside=bool(op.netns),
                    delete=isinstance(op, ops.RemoveRoute),
                    **_manner(op),
                )
            case ops.AddRule() | ops.RemoveRule():
                self._enter(batch, op)
                batch.rule(
                    op.rule.source,
                    table=op.rule.table,
                    priority=op.rule.priority,
                    inside=True,
                    delete=isinstance(op, ops.RemoveRule),
                )
            case ops.AddNeighbour():
                self._enter(batch, op)
                batch.neighbour(op.address, op.mac, link=op.link, inside=bool(op.netns))
            case ops.RemoveNeighbour():
                batch.host()
                row = op.row
                batch.neighbour(row.address, row.mac, link=row.index, inside=False, delete=True)
            case ops.TellBridge():
                batch.host()
                batch.table(op.mac, port=op.index, delete=op.forget)
            case ops.MakeGateway():
                network = op.object.partition("/")[2]
                self.record.note_gateways({str(a): network for a in op.addresses})
                batch.host()
                for address in op.addresses:
                    batch.address(LOOPBACK, address, inside=False)
            case ops.RemoveGateway():
                batch.host()
                batch.address(LOOPBACK, op.address, inside=False, delete=True)
            case ops.SetSysctl():
                self._enter(batch, op)
                inside = bool(op.netns)
                batch.sysctl(op.name, op.value, inside=inside, if_there=op.if_there)
            case _:
                raise AssertionError(f"no way to carry out {type(op).__name__}")
        return None

    def _enter(self, batch: Batch, op: Operation) -> None:
        if op.netns:
            path = os.path.join(self.netns_dir, op.netns)  # which may be absolute
            batch.enter(path, self._cookies.get(path, 0))
        else:
            batch.host()

    def _set_link(self, batch: Batch, op: ops.SetLink) -> str | None:
        master = None
        if op.master == "":
            master = 0
        elif op.master is not None:
            if op.master not in self._indexes:
                return f"the bridge {op.master} is not there"
            master = self._indexes[op.master]
        if op.netns and not op.host:
            self._enter(batch, op)
        else:
            batch.host()
        steps.set_link(batch, op, master, ipv6=self.ipv6)
        return None


def _manner(op: ops.AddRoute | ops.RemoveRoute) -> dict[str, int]:
    """What the kernel would give a route to the subnet of an address, where it is one."""
    if not isinstance(op, ops.AddRoute) or not op.connected:
        return {}
    return {"protocol": KERNEL, "metric": ops.CONNECTED_METRIC[op.route.to.version]}
