"""Dumps → Observed: what stands on the host and in every namespace of the netns dir."""

from collections.abc import Callable, Iterable, Sequence

from reconciler.core.forwarding import FORWARDING
from reconciler.core.names import parse_alias
from reconciler.core.observed import Observed, Witness, observe_owned
from reconciler.core.rows import Space
from reconciler.host import netns, procs, rtnl
from reconciler.host.record import Record


def read_witness(record: Record) -> Witness:
    """The record of the run dir as a value."""
    return Witness(
        present=record.present,
        spaces=record.spaces(),
        ends=record.ends(),
        bridges=record.bridges(),
        gateways=record.gateways(),
    )


def observe(
    *,
    netns_dir: str,
    witness: Witness,
    expected: Iterable[str],
    sysctls: Sequence[str],
    ipv6: bool,
) -> Observed:
    """Look at everything.

    `expected` are the files of the netns dir that should be there: where one is not, processes are
    searched for its namespace. `sysctls` are read in each namespace. `ipv6`: whether a network
    needs IPv6, and so the host's accept_ra.
    """
    names = tuple(sysctls)
    host = rtnl.scan_host(sysctls=tuple(FORWARDING.values()))
    values: dict[str, str | None] = dict(zip(FORWARDING.values(), host.sysctls, strict=True))
    if ipv6 and values[FORWARDING[6]] != "1":
        # Our own bridges and host ends hear no router, and `lo` neither.
        heard = [
            link.name for link in host.links if link.index != 1 and not parse_alias(link.alias)
        ]
        keys = [f"net/ipv6/conf/{name}/accept_ra" for name in heard]
        values.update(zip(keys, rtnl.scan_host(sysctls=keys).sysctls, strict=True))
    files, spaces = netns.read(netns_dir, names)
    return observe_owned(
        host=host,
        netns_dir=netns_dir,
        files=files,
        spaces=spaces,
        living=_living(host, spaces, witness, expected, names),
        witness=witness,
        sysctls=values,
        space_sysctls=names,
    )


def _living(
    host: Space,
    spaces: dict[str, Space],
    witness: Witness,
    expected: Iterable[str],
    sysctls: tuple[str, ...],
) -> dict[str, Space]:
    """Namespaces of processes that are bound nowhere in the netns dir; looked for only when missed."""
    cookies = {space.cookie for space in spaces.values()}
    missed = any(name not in spaces for name in expected) or any(
        cookie and cookie not in cookies for cookie in witness.spaces.values()
    )
    if not missed:
        return {}
    known = {space.inode for space in spaces.values()} | {host.inode}
    paths = [path for inode, path in procs.namespaces().items() if inode not in known]
    return dict(zip(paths, rtnl.scan(paths, sysctls=sysctls), strict=True))


def busy_in(observed: Observed) -> Callable[[str], tuple[int, ...]]:
    """A function from a container's name to the pids in its namespace; /proc is walked at first use."""
    found: dict[int, tuple[int, ...]] = {}

    def busy(name: str) -> tuple[int, ...]:
        seen = observed.containers.get(name)
        if seen is None or seen.space is None:
            return ()
        if not found:
            found.update(procs.pids_by_inode())
        return found.get(seen.space.inode, ())

    return busy
