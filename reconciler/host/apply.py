"""Plan → kernel → outcomes. One failure stays one failure: the rest goes on."""

import errno
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType

from reconciler.core import ops
from reconciler.core.observed import LOOPBACK
from reconciler.core.ops import Operation
from reconciler.core.rows import Link
from reconciler.host import rtnl, steps
from reconciler.host.batch import Batch
from reconciler.host.creation import Creations
from reconciler.host.record import Record
from reconciler.host.removal import Outcome

__all__ = ["Kernel", "Outcome"]

SPARE = 64
"""Link numbers left to whoever else makes links while a pass runs."""
KERNEL = 2
"""RTPROT_KERNEL of linux/rtnetlink.h."""


class Kernel(Creations):
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
        self._low = []

    def perform(
        self, operations: Sequence[Operation], *, crowded: Collection[str] = ()
    ) -> Iterator[Outcome]:
        """Carry out everything else, one after another, each for itself.

        Bridges of `crowded` networks stay down until `raise_bridges`.
        """
        batch = Batch()
        jobs: list[Operation] = []
        made_ends: dict[int, tuple[str, str, str]] = {}
        outcomes: dict[Operation, str | None] = {}
        for op in operations:
            before = len(batch)
            error = self._perform(batch, op, made_ends, crowded)
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
        self._low = [(op, index) for op, index in self._low if outcomes.get(op) is None]
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
        self,
        batch: Batch,
        op: Operation,
        ends: dict[int, tuple[str, str, str]],
        crowded: Collection[str],
    ) -> str | None:
        """Add the job of `op` to the batch, or do it here and answer with its error."""
        match op:
            case ops.Rebind():
                self.record.note_points([op.path])
                code = rtnl.bind(op.source, op.path)
                return f"bind {op.source} to {op.path}: {os.strerror(code)}" if code else None
            case ops.MakeBridge():
                self.record.note_bridges({op.bridge.network: 0})
                batch.host()
                index = self._take_index()
                steps.make_bridge(batch, op, index, ipv6=self.ipv6)
                if op.bridge.network in crowded:
                    self._low.append((op, index))
                else:
                    steps.raise_bridge(batch, op, index)
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
                steps.speak(batch, op.endpoint, ipv6=self.ipv6)
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
