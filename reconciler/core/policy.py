"""What the firewall is asked for: the traffic policy of every network, free of any backend."""

import msgspec

from reconciler.core.model import Subnet


class NetworkPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """How packets may enter and leave one network."""

    name: str
    link: str
    """The network's link on the host: its bridge; empty: it is routed."""
    subnets: tuple[Subnet, ...]
    uplinks: tuple[str, ...]
    """Links that lead out; empty: every link that is no runcnet network's."""
    masquerade: tuple[int, ...]
    """IP versions translated on the way out."""
    inbound: str
    """`established`: only replies enter; `open`: what comes from an uplink enters too."""
    internal: bool
    isolate_members: bool
    group: int = 0
    """The device group of a routed network's host ends; 0: it has a bridge."""


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """All that the firewall is asked for. A policy without networks and guards asks for no chains."""

    networks: tuple[NetworkPolicy, ...] = ()
    """In the order of their names."""
    guards: tuple[int, ...] = ()
    """IP versions for which runcnet turned forwarding on: what neither comes from nor goes to one of
    its networks is dropped by the last forward rule."""
    kept: frozenset[str] = frozenset()
    """Networks whose declaration is unreadable and not remembered: their rules in the kernel stay
    as they are, in their place."""
