"""Attachments: containers whose namespace a runtime made, and that a hook joined to networks.

To everything else an attachment is a container like any other: what the hook was told is planted as
a tree, as if it had been read from a file named `hook:NAME`, and judged with all files. What is special is
where its namespace is found (by the processes that live in it; no path holds it), and that nothing but
`poststop`, `teardown` or the end of that namespace takes it away.
"""

import contextlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import msgspec

from reconciler.core import names
from reconciler.core.model import PROTOCOL, Address, Network, parse_address
from reconciler.core.observed import Observed, SeenContainer, SeenEnd
from reconciler.core.policy import Lead
from reconciler.core.rows import RouteRow
from reconciler.core.tree import Map, Seq, Tree

LEAD = "hook:"
NOWHERE = (0, 0)


class Attachment(msgspec.Struct, frozen=True, kw_only=True):
    """What a hook attached, and how its namespace is known again."""

    name: str
    """The container's id."""
    body: str
    """What was asked for: the body of a container in a definition file, as JSON."""
    boot: str
    """The boot id (proc(5), random/boot_id): cookies and pids of another start mean nothing."""
    host: int
    """The cookie of the host's network namespace."""
    cookie: int
    """The cookie of the container's network namespace (SO_NETNS_COOKIE)."""
    pid: int
    """A process that lived in it when it was attached."""
    started: int
    """When that process began (clock ticks since the boot)."""
    ip_file: str = ""
    """Where the address was written for the bundle; empty: nowhere."""

    @property
    def file(self) -> str:
        """What stands for a definition file."""
        return file_of(self.name)

    @property
    def source(self) -> str:
        """Where its namespace is looked for first."""
        return f"/proc/{self.pid}/ns/net"

    def tree(self) -> Tree:
        """What it declares."""
        return tree(self.name, msgspec.json.decode(self.body))

    def addresses(self) -> Iterator[Address]:
        """The addresses that it asked for."""
        for interface in msgspec.json.decode(self.body).get("interfaces", ()):
            texts = interface.get("addresses", ())
            for text in [texts] if isinstance(texts, str) else texts:
                with contextlib.suppress(ValueError):
                    yield parse_address(text)


Attached = Mapping[str, Attachment]
"""By name."""


def file_of(name: str) -> str:
    """What stands for the definition file of an attachment."""
    return LEAD + name


def tree(name: str, body: Any) -> Tree:
    """A container's body as a file would hold it."""
    root = _planted({"containers": {name: body}})
    return Tree(file_of(name), root, nulls=False, hook=True)


def _planted(value: Any) -> Any:
    if isinstance(value, dict):
        found = Map()
        for key, one in value.items():
            found[key] = _planted(one)
            found.marks[key] = found.keys_at[key] = NOWHERE
        return found
    if isinstance(value, list):
        items = Seq()
        items.extend(_planted(one) for one in value)
        items.marks = [NOWHERE] * len(items)
        return items
    return value


def over(attached: Iterable[Attachment], observed: Observed, boot: str) -> set[str]:
    """The attachments whose namespace is gone: no process lives in it."""
    gone = set()
    for one in attached:
        if (one.boot, one.host) != (boot, observed.host.cookie):
            gone.add(one.name)
            continue
        seen = observed.containers.get(one.name)
        if seen is None or seen.space is None:
            gone.add(one.name)
    return gone


def unknown(
    attached: Collection[str], observed: Observed, declared: Collection[str]
) -> list[SeenContainer]:
    """Containers with marks of a hook and a living namespace that no attachment is known of.

    `declared`: containers of files. Whoever may write marks inside such a one cannot make a hook's of
    it while its file is there.
    """
    return [
        seen
        for seen in observed.containers.values()
        if seen.name not in attached
        and seen.source
        and seen.hooked
        and not (seen.netns and seen.name in declared)
        and names.is_name(seen.name)
    ]


def left_over(
    attached: Collection[str], observed: Observed, declared: Collection[str]
) -> list[SeenContainer]:
    """Containers with marks of a hook that neither an attachment is known of nor any process lives in."""
    return [
        seen
        for seen in observed.containers.values()
        if seen.hooked
        and not seen.source
        and seen.name not in attached
        and seen.name not in declared
    ]


def rebuilt(
    seen: SeenContainer,
    networks: Mapping[str, Network],
    leads: Mapping[str, tuple[Lead, ...]],
    machine: str,
) -> dict[str, Any]:
    """What a hook must have asked for, as links, addresses and rules tell.

    `leads`: `NETWORK/CONTAINER` → the published ports that lead there.
    """
    ends = [end for end in seen.ends if end.inner is not None]
    through = {row.index for row in _defaults(seen)}
    # The default route is the first interface's whose network has a gateway.
    ends.sort(key=lambda end: (end.inner is None or end.inner.index not in through, end.name))
    ports = [
        _port(lead, end.network)
        for end in ends
        for lead in leads.get(f"{end.network}/{seen.name}", ())
    ]
    return {
        "interfaces": [_interface(end, seen, networks, machine) for end in ends],
        # One that is published on all addresses leads on once for each IP version.
        "ports": [port for at, port in enumerate(ports) if port not in ports[:at]],
    }


def _port(lead: Lead, network: str) -> dict[str, str]:
    def run(first: int) -> str:
        last = first + lead.last - lead.first
        return str(first) if first == last else f"{first}-{last}"

    found = {"published": run(lead.first), "target": run(lead.target_port)}
    found |= {"protocol": lead.protocol, "network": network}
    return found if lead.host_ip is None else {**found, "host_ip": str(lead.host_ip)}


def _defaults(seen: SeenContainer) -> Iterable[RouteRow]:
    assert seen.space is not None  # callers have found it
    return [row for row in seen.space.routes if not row.to.prefix and row.table == 254]


def _interface(
    end: SeenEnd, seen: SeenContainer, networks: Mapping[str, Network], machine: str
) -> dict[str, Any]:
    assert end.inner is not None and seen.space is not None
    carried = sorted(
        row.address.address
        for row in seen.space.addresses
        if row.index == end.inner.index
        and row.protocol == PROTOCOL
        and not row.address.is_link_local
    )
    found: dict[str, Any] = {"network": end.network, "name": end.name}
    network = networks.get(end.network)
    # What a range could have given was handed out; the rest was asked for.
    asked = [str(a) for a in carried if network is None or not _given_out(network, a)]
    if asked:
        found["addresses"] = asked
    elif network is not None and not carried and network.subnets:
        found["addresses"] = "none"
    if carried:
        derived = names.member_mac(machine, end.network, carried[0])
    else:
        derived = names.bare_mac(machine, end.network, seen.name, end.name, host=False)
    if end.inner.mac != derived:
        found["mac"] = names.mac_text(end.inner.mac)
    return found


def _given_out(network: Network, address: Address) -> bool:
    return any(
        r.version == address.version and r.first <= address.value <= r.last for r in network.ranges
    )
