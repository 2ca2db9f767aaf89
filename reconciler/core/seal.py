"""Seals: which containers need no second look.

When a pass finds that a container is as wanted, it writes down a digest of what was wanted and one
of what the kernel showed. As long as both come out the same, nothing can differ, and the rows of
that namespace are not even decoded. The record in the run dir keeps them: gone at a reboot. What is
seen is chosen by workloads in part, so its digests are keyed with a secret of the record.
"""

from collections.abc import Iterable, Mapping

from reconciler.core.observed import Observed, SeenContainer
from reconciler.core.wanted import Desired

Seal = tuple[bytes, int]
MASK = (1 << 63) - 1


def seen_digest(seen: SeenContainer) -> int:
    """A number for all that the kernel shows of a container but routes and neighbours of the host."""
    digest = seen.space.digest if seen.space is not None else 0
    for end in seen.ends:
        digest = digest * 1000003 ^ end.host.digest ^ end.host.index << 32
    return digest & MASK


def settled(desired: Desired, observed: Observed, seals: Mapping[str, Seal]) -> frozenset[str]:
    """Containers whose seals are whole, at their own path."""
    found = set()
    for name, (wanted, digest) in seals.items():
        member = desired.members.get(name)
        seen = observed.containers.get(name)
        if member is None or seen is None or seen.space is None or not member.key:
            continue
        whole = member.key == wanted and seen.netns == member.netns
        if whole and seen_digest(seen) == digest:
            found.add(name)
    return frozenset(found)


def fresh_seals(
    desired: Desired, observed: Observed, names: Iterable[str], old: Mapping[str, Seal]
) -> dict[str, Seal]:
    """The seals of these containers, as far as they are not on record."""
    result = {}
    for name in names:
        member, seen = desired.members.get(name), observed.containers.get(name)
        if member is None or seen is None or seen.space is None or not member.key:
            continue
        seal = (member.key, seen_digest(seen))
        if seen.netns == member.netns and old.get(name) != seal:
            result[name] = seal
    return result
