"""How many automatic addresses are in use and how many are left, for each network and IP version.

Counted, never walked through: an IPv6 /64 holds more addresses than can be looked at.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from typing import NamedTuple

from reconciler.core.leases import Book, is_usable
from reconciler.core.model import Range, Spec

Run = tuple[int, int]
"""The first and the last of some addresses in a row."""


class Pool(NamedTuple):
    """The addresses of one network and IP version (4 or 6)."""

    network: str
    version: int


def room(spec: Spec, book: Book) -> tuple[dict[Pool, int], dict[Pool, int]]:
    """(used, free), each for every subnet of every declared network.

    Used: leases, those of containers that only wait to be removed too. Free: how many more automatic
    interfaces could be given an address, so without gateways, declared addresses and leases. The two
    need not add up to the ranges: a lease that an edit left outside of them stays in use.
    """
    used: dict[Pool, int] = {}
    taken: dict[Pool, set[int]] = {}
    for network in spec.networks.values():
        for subnet in network.subnets:
            pool = Pool(network.name, subnet.version)
            used[pool] = 0
            taken[pool] = {g.value for g in network.gateways if g.version == subnet.version}
            taken[pool] |= {v for v in (subnet.value, subnet.last) if not is_usable(subnet, v)}
    for container in spec.containers.values():
        for interface in container.interfaces:
            for address in interface.addresses:
                pool = Pool(interface.network, address.version)
                if pool in taken:
                    taken[pool].add(address.value)
    for key, address in book.held.items():
        pool = Pool(key.network, key.version)
        if pool in used:
            used[pool] += 1
            taken[pool].add(address.value)
    free = {}
    for pool, values in taken.items():
        runs = _merged(r for r in spec.networks[pool.network].ranges if r.version == pool.version)
        inside = sorted(values)
        free[pool] = sum(
            last - first + 1 - (bisect_right(inside, last) - bisect_left(inside, first))
            for first, last in runs
        )
    return used, free


def _merged(ranges: Iterable[Range]) -> list[Run]:
    """The same addresses in ascending order, each once: ranges may overlap."""
    runs: list[Run] = []
    for r in sorted(ranges):
        if runs and r.first <= runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], max(runs[-1][1], r.last))
        else:
            runs.append((r.first, r.last))
    return runs
