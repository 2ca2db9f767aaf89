"""What a dump showed, sorted: the one place that says what is ours and what is foreign.

Two witnesses speak for an object: the record in the run dir (what runcnet wrote down before it made
the object) and the mark on the object itself. The mark alone counts only where the record is lost,
for a container with CAP_NET_ADMIN can forge marks on links.
"""

from collections import Counter
from collections.abc import Collection, Mapping
from enum import Enum
from types import MappingProxyType

import msgspec

from reconciler.core.model import FORWARDING, PROTOCOL, InterfaceAddress
from reconciler.core.names import EndpointAlias, endpoint_alias, parse_alias
from reconciler.core.rows import Link, Space

LOOPBACK = 1
"""The ifindex of `lo` in every namespace."""
INTENT = 0
"""The record's cookie or ifindex of what was about to be made when it was written."""


class FileState(Enum):
    """What lies at a path of the netns dir."""

    PLACEHOLDER = "placeholder"
    """An empty file of mode 000: a mount point left by a crash, used by the next pass."""
    NAMESPACE = "namespace"
    FOREIGN = "foreign"


class Witness(msgspec.Struct, frozen=True, kw_only=True):
    """The record of the run dir, read once."""

    present: bool
    spaces: Mapping[str, int]
    """Container → cookie of its namespace."""
    ends: Mapping[int, tuple[str, str, str]]
    """Ifindex of a host end → network, container, interface."""
    bridges: Mapping[str, int]
    """Network → ifindex of its bridge."""
    gateways: Mapping[str, str] = {}
    """Gateway on the host's `lo` (`10.0.0.1/32`) → routed network."""
    hooked: Collection[str] = ()
    """Containers that the state dir knows as attached by a hook."""


class SeenEnd(msgspec.Struct, frozen=True, kw_only=True):
    """A host end of ours and, where the namespace could be read, its inner end."""

    network: str
    name: str
    """The inner interface's name as the mark or the record says."""
    host: Link
    space: Space | None
    hook: bool = False
    """Whether a hook attached it."""

    @property
    def inner(self) -> Link | None:
        """The inner end; looked for when it is asked for."""
        return self.space.veth(self.host.peer, self.host.index) if self.space is not None else None


class SeenContainer(msgspec.Struct, frozen=True, kw_only=True):
    """A container of ours. `netns` is its file, empty where its path was unmounted."""

    name: str
    netns: str
    space: Space | None
    source: str
    """Where its namespace can be entered: its path, or `/proc/PID/ns/net`; empty: nowhere."""
    ends: tuple[SeenEnd, ...]
    networked: bool
    """Whether it was made with interfaces, also where somebody has deleted them all since."""
    lost: frozenset[int] = frozenset()
    """Numbers that host ends of its had which are no longer on the host."""

    @property
    def hooked(self) -> bool:
        """Whether the marks on all its host ends say that a hook attached it."""
        return bool(self.ends) and all(end.hook for end in self.ends)


class Observed(msgspec.Struct, frozen=True, kw_only=True):
    """The kernel's state, sorted by owner."""

    host: Space
    netns_dir: str
    files: dict[str, FileState]
    spaces: dict[str, Space]
    """Every namespace of the netns dir, by its file."""
    containers: dict[str, SeenContainer]
    bridges: dict[str, Link]
    """Network → its bridge, ours only."""
    gateways: dict[InterfaceAddress, str]
    """Gateways of ours on the host's `lo` → routed network; empty: the record does not say."""
    doubles: dict[str, str]
    """Object → what is wrong: two links that carry the same mark."""
    sysctls: dict[str, str | None]
    """The host's own, by the name that was asked for."""
    space_sysctls: tuple[str, ...]
    """The names whose values `Space.sysctls` holds, in its order."""

    @property
    def ipv6(self) -> bool:
        """Whether the kernel has IPv6."""
        return self.sysctls.get(FORWARDING[6]) is not None


def marked_container(space: Space) -> str | None:
    """The container that a namespace says it is, by the alias of its `lo`."""
    alias = next((link.alias for link in space.links if link.index == 1), "")
    mark = parse_alias(alias) if alias else None
    return mark if isinstance(mark, str) else None


def _owner_by_mark(space: Space, witness: Witness) -> str | None:
    name = marked_container(space)
    if name is None or (witness.present and witness.spaces.get(name) != INTENT):
        return None
    return name


def _led_to(host: Space, witness: Witness) -> dict[int, set[str]]:
    """Namespace by its id on the host → whose marked host ends lead there, as the kernel says."""
    behind: dict[int, set[str]] = {}
    for name, ends in _ends(host, witness, {})[0].items():
        for _, link in ends:
            behind.setdefault(link.peer_nsid, set()).add(name)
    behind.pop(-1, None)
    return behind


def _only(names: Collection[str]) -> str | None:
    return next(iter(names)) if len(names) == 1 else None


def observe_owned(
    *,
    host: Space,
    netns_dir: str,
    files: Mapping[str, FileState],
    spaces: Mapping[str, Space],
    living: Mapping[str, Space],
    witness: Witness,
    sysctls: Mapping[str, str | None],
    space_sysctls: tuple[str, ...],
    nsids: Mapping[int, int] = MappingProxyType({}),
) -> Observed:
    """Sort a dump by owner.

    `spaces` are the namespaces of the netns dir by file, `living` those of processes by
    `/proc/PID/ns/net`, looked at only where a path may be missing. `nsids`: cookie → the id that
    the namespace has on the host, where it has one; only where the record is lost.
    """
    by_cookie = {cookie: name for name, cookie in witness.spaces.items() if cookie}
    behind = {} if witness.present else _led_to(host, witness)
    ended = {name for names in behind.values() for name in names}
    found: dict[str, tuple[str, str, Space]] = {}
    for file in sorted(spaces):
        space = spaces[file]
        if space.error:
            continue
        name = by_cookie.get(space.cookie)
        if name is None:
            name = _only(behind.get(nsids.get(space.cookie, -1), ()))
        if name is None:
            # What is written inside counts only of who has no host end: a workload may choose it.
            name = _owner_by_mark(space, witness)
            name = None if name in ended else name
        # A namespace bound twice is one container: the path named like it counts. Where a hook attached
        # it, no path counts: whoever bound it there may take that away.
        if name in witness.hooked:
            continue
        if name is not None and (name not in found or file == name):
            found[name] = (file, f"{netns_dir}/{file}", space)
    ends, doubles = _ends(host, witness, found)
    bound = {space.cookie for _, _, space in found.values()}
    for source in sorted(living):
        space = living[source]
        if space.error or space.cookie in bound or space.cookie == host.cookie:
            continue
        name = by_cookie.get(space.cookie)
        if name is None:
            name = _only(behind.get(nsids.get(space.cookie, -1), ()))
        if name is not None and name not in found:
            found[name] = ("", source, space)
            bound.add(space.cookie)
    containers = {}
    noted = {container for _, container, _ in witness.ends.values()}
    links = {link.index for link in host.links}
    lost: dict[str, set[int]] = {}
    for index, (_, container, _) in witness.ends.items():
        if index not in links:
            lost.setdefault(container, set()).add(index)
    for name in sorted({*found, *ends}):
        file, source, seen = found.get(name, ("", "", None))
        containers[name] = SeenContainer(
            name=name,
            netns=file,
            space=seen,
            source=source,
            ends=tuple(
                SeenEnd(
                    network=mark.network, name=mark.interface, host=link, space=seen, hook=mark.hook
                )
                for mark, link in ends.get(name, [])
            ),
            networked=name in ends or name in noted or not witness.present,
            lost=frozenset(lost.get(name, ())),
        )
    bridges, twice = _bridges(host, witness)
    return Observed(
        host=host,
        netns_dir=netns_dir,
        files=dict(files),
        spaces=dict(spaces),
        containers=containers,
        bridges=bridges,
        gateways=_gateways(host, witness),
        doubles={**doubles, **twice},
        sysctls=dict(sysctls),
        space_sysctls=space_sysctls,
    )


_Ends = dict[str, list[tuple[EndpointAlias, Link]]]


def _ends(
    host: Space, witness: Witness, found: Mapping[str, tuple[str, str, Space]]
) -> tuple[_Ends, dict[str, str]]:
    ends: _Ends = {}
    marks: Counter[EndpointAlias] = Counter()
    for link in host.links:
        if link.kind != "veth":
            continue
        noted = witness.ends.get(link.index)
        mark: EndpointAlias | str | None
        if noted is not None:
            # An ifindex can come again: the mark or the pairing must bear the record out.
            hook = link.alias == endpoint_alias(*noted, hook=True)
            marked = hook or link.alias == endpoint_alias(*noted)
            pair = found.get(noted[1])
            if not marked and not (pair and pair[2].veth(link.peer, link.index)):
                continue
            mark = EndpointAlias(*noted, hook or noted[1] in witness.hooked)
        elif witness.present:
            continue
        else:
            mark = parse_alias(link.alias) if link.alias else None
        if isinstance(mark, EndpointAlias):
            ends.setdefault(mark.container, []).append((mark, link))
            marks[mark] += 1
    doubles = {
        f"container/{mark.container}": f"{times} links carry the mark of its {mark.interface} in "
        f"{mark.network} (delete the false one, or its alias)"
        for mark, times in marks.items()
        if times > 1
    }
    return ends, doubles


def _bridges(host: Space, witness: Witness) -> tuple[dict[str, Link], dict[str, str]]:
    by_index = {index: name for name, index in witness.bridges.items() if index}
    bridges: dict[str, Link] = {}
    doubles = {}
    for link in host.links:
        if link.kind != "bridge":
            continue
        name = by_index.get(link.index)
        if name is None and link.alias:
            mark = parse_alias(link.alias)
            if isinstance(mark, str) and (
                not witness.present or witness.bridges.get(mark) == INTENT
            ):
                name = mark
        if name is None:
            continue
        if name in bridges:
            doubles[f"network/{name}"] = (
                f"{bridges[name].name} and {link.name} both carry its mark "
                "(delete the false one, or its alias)"
            )
            continue
        bridges[name] = link
    return bridges, doubles


def _gateways(host: Space, witness: Witness) -> dict[InterfaceAddress, str]:
    """Nobody but root on the host can sign an address on its `lo`: the mark needs no second witness."""
    return {
        row.address: witness.gateways.get(str(row.address), "")
        for row in host.addresses
        if row.index == LOOPBACK
        and (row.protocol == PROTOCOL or str(row.address) in witness.gateways)
    }
