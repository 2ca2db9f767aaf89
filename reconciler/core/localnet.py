"""Which links of the host must carry packets from 127.0.0.0/8: those behind which ports are published.

The kernel refuses to route such packets unless the link says `route_localnet` (ip-sysctl). It is set
only after the rule that drops 127.0.0.0/8 from everybody else, and taken back before that rule goes
(CVE-2020-8558).
"""

from collections.abc import Iterable, Mapping

from reconciler.core import ops
from reconciler.core.policy import Publication
from reconciler.core.wanted import Desired


def sysctl(link: str) -> str:
    """The sysctl of a link."""
    return f"net/ipv4/conf/{link}/route_localnet"


def links(desired: Desired, publications: Iterable[Publication]) -> dict[str, str]:
    """Link → the container or network that needs it; for ports that are published, whose rules guard it."""
    found: dict[str, str] = {}
    looped: dict[str, set[str]] = {}
    for port in publications:
        if port.looped:
            looped.setdefault(port.container, set()).add(port.network)
    for name, networks in looped.items():
        member = desired.members[name]
        for endpoint in member.endpoints:
            if endpoint.network in networks:
                owner = f"network/{endpoint.network}" if endpoint.bridge else member.object
                found[endpoint.host_link] = owner
    return found


def edits(
    wanted: Mapping[str, str], values: Mapping[str, str | None], once: Iterable[str]
) -> tuple[list[ops.SetSysctl], list[ops.SetSysctl]]:
    """What is to be switched on and off; `values` by sysctl, `once`: links that may have it from us."""
    on = [
        ops.SetSysctl(object=owner, name=sysctl(link), value="1")
        for link, owner in sorted(wanted.items())
        if values.get(sysctl(link)) != "1"
    ]
    off = [
        ops.SetSysctl(object="host", name=sysctl(link), value="0", if_there=True)
        for link in sorted(set(once) - wanted.keys())
        if values.get(sysctl(link)) == "1"
    ]
    return on, off
