"""Containers and what they are attached to, made in bulk: a batch of them in one trip through C."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import msgspec

from reconciler.core import ops
from reconciler.core.names import container_alias
from reconciler.core.rows import IPV6_MTU
from reconciler.core.wanted import Endpoint, Member
from reconciler.host import steps
from reconciler.host.batch import Batch, Result
from reconciler.host.removal import Outcome, Removals

BATCH = 256
"""Containers made in one trip through C; a signal is heard between two trips."""
FIRST, LAST = 64, 32
"""The first trip is short, for packing it is waited for; so is the last one, for what it has brought
is looked at when nothing else is left to do."""
CROWD = 64
"""From so many ports on, a new bridge comes up behind them: each time that a port of one which is up
changes its state, the kernel goes through all that are there."""
INNER = 64
"""The number of a fresh container's first interface: a kernel with tunnel modules puts a device of
each into every new namespace, and those are numbered from 2 on."""


class _Part(msgspec.Struct, frozen=True):
    """One batch of containers to be made."""

    batch: Batch
    made: list[ops.MakeContainer]
    ends: dict[int, tuple[str, str, str]]
    refused: list[Outcome]


class Creations(Removals):
    """The part of carrying out that makes containers; see `apply.py` for the rest."""

    netns_dir: str
    ipv6: bool
    _indexes: dict[str, int]
    """The host's links by name."""
    _next_index: int
    _low: list[tuple[ops.MakeBridge, int]]
    """Bridges that were made and are still down, and their numbers."""

    def create(
        self,
        creations: Sequence[ops.MakeContainer],
        made: Callable[[Sequence[str]], None] = lambda files: None,
    ) -> Iterator[Outcome]:
        """Make containers, a batch at a time; what is about to be made is written down first.

        The next batch is packed while the kernel is at work on one. `made` is told the files of the
        netns dir that one has brought, while the kernel is at work on the next.
        """
        if not creations:
            return
        from reconciler.host.ahead import Ahead

        few = [op.member.name for op in creations] if len(creations) <= BATCH else None
        before = self.record.spaces(few)
        ahead: tuple[_Part, Ahead[list[Result]]] | None = None
        for some in batches(creations):
            if self.stop():
                break
            part = self._pack(some)
            # Written before the kernel hears of it.
            self.record.note_spaces({op.member.name: 0 for op in part.made})
            self.record.note_points(f"{self.netns_dir}/{op.member.netns}" for op in part.made)
            self.record.note_ends(part.ends)
            done, results = ahead[0] if ahead else None, ahead[1].result() if ahead else []
            ahead = part, Ahead(part.batch.run)
            if done is not None:
                made(_files(done, results))
                yield from self._made(done, results, before)
        if ahead is not None:
            results = ahead[1].result()
            made(_files(ahead[0], results))
            yield from self._made(ahead[0], results, before)

    def raise_bridges(self) -> Iterator[Outcome]:
        """Bring the bridges up that waited for their ports; an outcome for each that would not."""
        low, self._low = self._low, []
        batch = Batch()
        for op, index in low:
            batch.host()
            steps.raise_bridge(batch, op, index)
        for (op, _), result in zip(low, batch.run(), strict=True):
            if result.failures:
                yield Outcome(op, steps.failure_text(result))

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


def crowded(creations: Iterable[ops.MakeContainer]) -> set[str]:
    """Networks with a bridge on which many interfaces are about to be made."""
    found = Counter(e.network for op in creations for e in op.member.endpoints if not e.group)
    return {network for network, count in found.items() if count >= CROWD}


def batches(creations: Sequence[ops.MakeContainer]) -> Iterator[Sequence[ops.MakeContainer]]:
    """What is made in one trip through C each."""
    start, size = 0, FIRST
    while start < len(creations):
        left = len(creations) - start
        size = min(size, max(LAST, left // 2))
        yield creations[start : start + size]
        start, size = start + size, BATCH


def _files(part: _Part, results: Sequence[Result]) -> list[str]:
    return [op.netns for op, r in zip(part.made, results, strict=True) if not r.failures]
