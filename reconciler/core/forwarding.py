"""The host's forwarding sysctls: set where a network needs them, never set back."""

from reconciler.core import ops
from reconciler.core.desired import Desired
from reconciler.core.observed import Observed
from reconciler.core.ops import Operation

FORWARDING = {4: "net/ipv4/ip_forward", 6: "net/ipv6/conf/all/forwarding"}


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
