"""Dumps → Observed: what stands on the host and in every namespace of the netns dir."""

from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from reconciler.core.attached import Attached, Attachment
from reconciler.core.model import FORWARDING, NEIGHBOURS
from reconciler.core.names import HOOK, EndpointAlias, parse_alias
from reconciler.core.observed import FileState, Observed, Witness, observe_owned
from reconciler.core.rows import Space
from reconciler.host import netns, procs, rtnl
from reconciler.host.record import Record

if TYPE_CHECKING:
    from reconciler.host.fresh import Fresh

NOBODY: Attached = {}
HOST_SYSCTLS = (*FORWARDING.values(), *NEIGHBOURS)


def read_witness(
    record: Record, names: Collection[str] | None = None, attached: Attached = NOBODY
) -> Witness:
    """The record of the run dir as a value; of containers these alone, where given.

    `attached`: of whom the state dir knows the namespace as well.
    """
    known = {name: one.cookie for name, one in attached.items()}
    return Witness(
        present=record.present,
        spaces={**record.spaces(names), **known},
        hooked=attached.keys(),
        ends=record.ends(names),
        bridges=record.bridges(),
        gateways=record.gateways(),
    )


def adopt(record: Record, observed: Observed, *, netns_dir: str) -> None:
    """Begin a lost record anew with what the marks on the objects say."""
    containers = observed.containers.values()
    record.adopt(
        {seen.name: seen.space.cookie for seen in containers if seen.space is not None},
        {
            end.host.index: (end.network, seen.name, end.name)
            for seen in containers
            for end in seen.ends
        },
        {network: link.index for network, link in observed.bridges.items()},
    )
    record.note_gateways({str(a): n for a, n in observed.gateways.items()})
    record.note_points(f"{netns_dir}/{seen.netns}" for seen in containers if seen.netns)


class Dumps(msgspec.Struct, frozen=True):
    """What the kernel answered, nothing sorted yet."""

    host: Space
    files: dict[str, FileState]
    spaces: dict[str, Space]
    sysctls: tuple[str, ...]
    """The names that were read in each namespace."""
    key: bytes
    """The secret of the digests."""
    attached: dict[str, Space]
    """What lies at `/proc/PID/ns/net` of the processes that hooks were called for."""


def dump(
    netns_dir: str,
    sysctls: tuple[str, ...],
    *,
    key: bytes,
    attached: Iterable[Attachment] = (),
    fresh: "Fresh | None" = None,
) -> Dumps:
    """Dump the host, every namespace of the netns dir, and what was attached, both at once; what is in
    `fresh` has been looked at already."""
    from reconciler.host.ahead import Ahead

    host = Ahead(partial(rtnl.scan_host, sysctls=HOST_SYSCTLS, key=key))
    known = fresh.spaces() if fresh is not None else {}
    files, spaces = netns.read(netns_dir, sysctls, known=known, key=key)
    return Dumps(host.result(), files, spaces, sysctls, key, _attached(attached, sysctls, key))


def _attached(
    attached: Iterable[Attachment], sysctls: tuple[str, ...], key: bytes
) -> dict[str, Space]:
    """What is found there; a process may be gone, and another one have its number."""
    cookies = {one.source: one.cookie for one in attached}
    found = dict(zip(cookies, rtnl.scan(list(cookies), sysctls=sysctls, key=key), strict=True))
    for path, space in found.items():
        netns.check(path, space)
    return {path: s for path, s in found.items() if not s.error and s.cookie == cookies[path]}


def dump_part(
    netns_dir: str,
    sysctls: tuple[str, ...],
    *,
    key: bytes,
    files: Collection[str],
    links: Collection[int],
    attached: Iterable[Attachment] = (),
) -> Dumps:
    """As `dump`, but of these files and of these links of the host alone."""
    host = rtnl.scan_host(sysctls=HOST_SYSCTLS, links=sorted(links), key=key)
    states, spaces = netns.read(netns_dir, sysctls, only=files, key=key)
    return Dumps(host, states, spaces, sysctls, key, _attached(attached, sysctls, key))


def observe(
    dumps: Dumps, *, netns_dir: str, witness: Witness, expected: Iterable[str], ipv6: bool
) -> Observed:
    """Sort a dump.

    `expected` are the files of the netns dir that should be there: where one is not, processes are
    searched for its namespace. `ipv6`: whether a network needs IPv6, and so the host's accept_ra.
    """
    host = dumps.host
    values = dict(zip(HOST_SYSCTLS, host.sysctls, strict=True))
    if ipv6 and values[FORWARDING[6]] != "1":
        # Our own bridges and host ends hear no router, and `lo` neither.
        heard = [
            link.name for link in host.links if link.index != 1 and not parse_alias(link.alias)
        ]
        values |= rtnl.host_sysctls([f"net/ipv6/conf/{name}/accept_ra" for name in heard])
    spaces = _whole(dumps.spaces, f"{netns_dir}/", host, witness)
    dumps = msgspec.structs.replace(dumps, spaces=spaces)
    living = _living(dumps, witness, expected)
    return observe_owned(
        host=host,
        netns_dir=netns_dir,
        files=dumps.files,
        spaces=spaces,
        living=living,
        witness=witness,
        sysctls=values,
        space_sysctls=dumps.sysctls,
        nsids={} if witness.present else _nsids(netns_dir, spaces, living),
    )


def _nsids(
    netns_dir: str, spaces: Mapping[str, Space], living: Mapping[str, Space]
) -> dict[int, int]:
    """Cookie → the id that the namespace has on the host, where it has one."""
    at = {**{f"{netns_dir}/{file}": space for file, space in spaces.items()}, **living}
    known = {path: rtnl.nsid(path) for path, space in at.items() if not space.error}
    return {at[path].cookie: nsid for path, nsid in known.items() if nsid >= 0}


def _living(dumps: Dumps, witness: Witness, expected: Iterable[str]) -> dict[str, Space]:
    """Namespaces of processes that are bound nowhere in the netns dir, or that a hook attached; what is
    not where it should be is looked for in all of /proc."""
    host, attached = dumps.host, dumps.attached
    hooked = {witness.spaces.get(name) for name in witness.hooked}
    # No file counts for what a hook attached.
    spaces = {file: s for file, s in dumps.spaces.items() if s.cookie not in hooked}
    cookies = {space.cookie for found in (spaces, attached) for space in found.values()}
    missed = (
        any(name not in dumps.spaces for name in expected)
        or any(cookie and cookie not in cookies for cookie in witness.spaces.values())
        or any(_unknown(link.alias, witness) for link in host.links)
    )
    if not missed:
        return attached
    known = {space.inode for found in (spaces, attached) for space in found.values()}
    known.add(host.inode)
    paths = [path for inode, path in procs.namespaces().items() if inode not in known]
    found = dict(zip(paths, rtnl.scan(paths, sysctls=dumps.sysctls, key=dumps.key), strict=True))
    return attached | _whole(found, "", host, witness)


def _whole(
    spaces: dict[str, Space], folder: str, host: Space, witness: Witness
) -> dict[str, Space]:
    """Those that could be read; each is found at `folder` and its name.

    A namespace of somebody else's in which things change without end is no matter of ours. Raises
    ObjectError for one that is ours, or may be: what is ours is on record, or has a veth pair whose
    host end has our mark, and shows the id of its namespace.
    """
    failed = {folder + name: space for name, space in spaces.items() if space.error}
    if not failed:
        return spaces
    wanted = set(witness.spaces.values())
    reached = {
        link.peer_nsid
        for link in host.links
        if link.peer_nsid >= 0 and (link.index in witness.ends or parse_alias(link.alias))
    }
    for path, space in failed.items():
        if not netns.torn(space) or space.cookie in wanted or rtnl.nsid(path) in reached:
            netns.check(path, space)
    return {name: space for name, space in spaces.items() if not space.error}


def _unknown(alias: str, witness: Witness) -> bool:
    """Whether it is the mark of a hook, and nobody knows the namespace."""
    if not alias.endswith(HOOK):
        return False
    mark = parse_alias(alias)
    return isinstance(mark, EndpointAlias) and mark.container not in witness.spaces


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
