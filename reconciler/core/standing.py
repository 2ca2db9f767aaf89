"""What stands in the kernel, as the rest of the core needs it: addresses to keep, specs to spare."""

from collections.abc import Collection, Iterable

import msgspec

from reconciler.core.leases import Book, Key
from reconciler.core.model import PROTOCOL, Address, Rejection, Spec
from reconciler.core.observed import Observed
from reconciler.core.wanted import Desired


def standing_addresses(
    observed: Observed, spec: Spec, book: Book, *, but: Collection[str] = ()
) -> dict[Key, Address]:
    """The addresses that containers of ours carry, by interface and IP version.

    Of those only that matter: containers that are not declared, or of which the book knows less than
    is declared. `but`: containers that go at once, with all they have.
    """
    missed = {
        container.name
        for container in spec.containers.values()
        for interface in container.interfaces
        for version in interface.automatic
        if Key(container.name, interface.network, interface.name, version) not in book.held
    }
    result: dict[Key, Address] = {}
    for seen in observed.containers.values():
        if (
            seen.space is None
            or seen.name in but
            or (seen.name in spec.containers and seen.name not in missed)
        ):
            continue
        by_index: dict[int, list[Address]] = {}
        for row in seen.space.addresses:
            if row.protocol == PROTOCOL and row.scope == 0:
                by_index.setdefault(row.index, []).append(row.address.address)
        for end in seen.ends:
            for address in by_index.get(end.inner.index, ()) if end.inner else ():
                key = Key(seen.name, end.network, end.name, address.version)
                result.setdefault(key, address)
    return result


def renamed_ends(
    desired: Desired, observed: Observed, fine: Iterable[str]
) -> dict[int, tuple[str, str, str]]:
    """Host ends of these containers, which are as wanted, whose interface was renamed in place: by
    ifindex, network, container and the name that it goes by now."""
    result = {}
    for name in fine:
        member, seen = desired.members.get(name), observed.containers.get(name)
        if member is None or seen is None:
            continue
        wanted = {endpoint.host_name: endpoint for endpoint in member.endpoints}
        for end in seen.ends:
            endpoint = wanted.get(end.host.name)
            if (
                endpoint is not None
                and endpoint.network == end.network
                and endpoint.name != end.name
            ):
                result[end.host.index] = (end.network, name, endpoint.name)
    return result


def without(spec: Spec, refused: Iterable[Rejection], problems: Iterable[str]) -> Spec:
    """The spec less the containers that only the kernel could find fault with: they stay as they are."""
    places = {rejection.place for rejection in refused}
    gone = set(problems) | {
        c.name
        for c in spec.containers.values()
        if c.place in places or any(i.place in places for i in c.interfaces)
    }
    if not gone:
        return spec
    kept = {name: c for name, c in spec.containers.items() if name not in gone}
    return msgspec.structs.replace(spec, containers=kept)
