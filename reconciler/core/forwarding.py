"""The host's forwarding sysctls: set where a network needs them, never set back."""

from reconciler.core import ops
from reconciler.core.model import FORWARDING, NEIGHBOURS
from reconciler.core.observed import Observed
from reconciler.core.ops import Operation
from reconciler.core.wanted import Desired

SHARE = {1: 1, 2: 4, 3: 8}
"""Neighbours for each interface: itself by its peers, its gateway, and a few of its fellows.
Permanent entries do not count, but what members look up themselves does."""


def neighbour_sysctls(desired: Desired, observed: Observed) -> list[Operation]:
    """Room in the kernel's neighbour table for thousands of members; raised, never lowered."""
    count = sum(len(member.endpoints) for member in desired.members.values())
    result: list[Operation] = []
    for name in reversed(NEIGHBOURS):
        now = observed.sysctls.get(name)
        wanted = 1 << (count * SHARE[int(name[-1])] - 1).bit_length() if count else 0
        if now is not None and now.isdigit() and int(now) < wanted:
            result.append(ops.SetSysctl(object="host", name=name, value=str(wanted)))
    return result


def host_sysctls(desired: Desired, observed: Observed) -> list[Operation]:
    """Forwarding where a network needs it; before IPv6's, accept_ra 2 for who listens to routers.

    Forwarding 1 makes the kernel drop a default route that it learned from a router advertisement,
    unless accept_ra is 2 (ip-sysctl).
    """
    result: list[Operation] = []
    for version in desired.forwarding:
        name = FORWARDING[version]
        if observed.sysctls.get(name) in (None, "1"):
            continue
        if version == 6:
            result += [
                ops.SetSysctl(object="host", name=key, value="2")
                for key, value in observed.sysctls.items()
                if key.endswith("/accept_ra") and value == "1"
            ]
        result.append(ops.SetSysctl(object="host", name=name, value="1"))
    return result
