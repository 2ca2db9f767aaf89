"""The steps that an operation takes in the C layer, and what a failed one is called."""

import errno
import os
from collections.abc import Iterable

from reconciler.core import ops
from reconciler.core.names import network_alias
from reconciler.core.rows import GEN_MODE_NONE, IPV6_MTU, NeighbourRow
from reconciler.core.wanted import Endpoint
from reconciler.host.batch import Batch, Result


def set_link(batch: Batch, op: ops.SetLink, master: int | None, *, ipv6: bool) -> None:
    """What differs on one link.

    `master` is its bridge's number (0: none, None: as it is), `ipv6`: whether the kernel has it.
    """
    inside = bool(op.netns) and not op.host
    index = op.index
    if op.name is not None:
        batch.link(index, inside=inside, up=False)
        batch.link(index, inside=inside, name=op.name)
    if op.mac is not None:
        if inside:
            # Neighbours hear of the new MAC at once: open connections do not wait for a timeout.
            name = op.name if op.name is not None else op.link
            batch.sysctl(f"net/ipv4/conf/{name}/arp_notify", "1", inside=True)
        batch.link(index, inside=inside, mac=op.mac)
    if op.mtu is not None:
        batch.link(index, inside=inside, mtu=op.mtu)
    if op.gen_mode_none and ipv6:
        # Behind the MTU: below 1,280 bytes a link has no IPv6, and so no such mode.
        batch.link(index, inside=inside, gen_mode=GEN_MODE_NONE)
    if master is not None:
        batch.link(index, inside=inside, master=master)
    if op.group is not None:
        batch.link(index, inside=inside, group=op.group)
    if op.port is not None:
        batch.link(index, inside=inside, port=op.port)
    if op.flush:
        batch.link(index, inside=inside, flush=True)
    if op.alias is not None:
        batch.link(index, inside=inside, alias=op.alias)
    if op.up or op.name is not None:
        batch.link(index, inside=inside, up=True)
    if op.snoop:
        # Behind that: while it comes up, it would go through all ports for each of them.
        batch.link(index, inside=inside, snoop=True)


def deafen(batch: Batch, link: str) -> None:
    """No router is believed behind a link of the host that is ours, where it has IPv6 at all."""
    batch.sysctl(ops.accept_ra(link), "0", inside=False, if_there=True)


def make_bridge(batch: Batch, op: ops.MakeBridge, index: int, *, ipv6: bool) -> None:
    """The steps that make a bridge; `raise_bridge` completes it. `ipv6`: whether the kernel has it."""
    bridge = op.bridge
    # By number, never by name: where somebody was faster, nothing of theirs may be touched.
    batch.bridge(name=bridge.name, index=index, mac=bridge.mac)
    # The MTU stays only once it was changed to another value (a bridge follows its ports else).
    batch.link(index, inside=False, mtu=ops.other_mtu(bridge.mtu))
    batch.link(index, inside=False, mtu=bridge.mtu, alias=network_alias(bridge.network))
    if ipv6 and bridge.mtu >= IPV6_MTU:
        batch.link(index, inside=False, gen_mode=GEN_MODE_NONE)
        deafen(batch, bridge.name)


def raise_bridge(batch: Batch, op: ops.MakeBridge, index: int) -> None:
    """The steps that bring a bridge up, with its addresses. They go out in one datagram: a bridge of
    ours that is up is complete."""
    batch.link(index, inside=False, up=True)
    batch.link(index, inside=False, snoop=True)
    for address in op.bridge.addresses:
        batch.address(index, address, inside=False)


def forget_neighbours(batch: Batch, rows: Iterable[NeighbourRow]) -> None:
    """The steps that take the host's entries for a member away, as far as they still stand."""
    for row in rows:
        batch.neighbour(row.address, row.mac, link=row.index, inside=False, delete=True)


def quiet(batch: Batch, endpoint: Endpoint, *, ipv6: bool) -> None:
    """The step that says how the inner end treats IPv6. It comes before that is up."""
    if ipv6 and endpoint.mtu >= IPV6_MTU and endpoint.manner is not None:
        batch.sysctl(*endpoint.manner, inside=True, if_there=True)


def speak(batch: Batch, endpoint: Endpoint, *, ipv6: bool) -> None:
    """The step that gives a new inner end IPv6, where it needs it: a namespace that was made for
    networks without it keeps new links from having it."""
    if ipv6 and any(address.version == 6 for address in endpoint.addresses):
        name = f"net/ipv6/conf/{endpoint.name}/disable_ipv6"
        batch.sysctl(name, "0", inside=True, if_there=True)


def inner_up(batch: Batch, endpoint: Endpoint, link: int | str, *, ipv6: bool) -> None:
    """The steps that bring the inner end of a veth pair up with its addresses."""
    if ipv6 and endpoint.mtu >= IPV6_MTU:
        # In one message the flags would come first, and with them a link-local address.
        batch.link(link, inside=True, gen_mode=GEN_MODE_NONE)
    batch.link(link, inside=True, up=True)
    for address in endpoint.addresses:
        batch.address(link, address, inside=True)


def failure_text(result: Result) -> str:
    """What failed, in the words of the step and of the kernel."""
    failure = result.failures[0]
    cause = failure.text or os.strerror(failure.errno)
    text = f"{failure.action}: {cause} ({_errno_name(failure.errno)})"
    if failure.errno == errno.EEXIST and failure.action.startswith("add veth"):
        name = failure.action.split()[2]
        text += f"; something still holds its old namespace (find it, or `ip link del {name}`)"
    return text


def _errno_name(code: int) -> str:
    return errno.errorcode.get(code, str(code))
