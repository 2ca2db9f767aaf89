"""Operations: one frozen type for each kind of change. The dry run prints what apply carries out.

`object` is what a report calls the thing changed, `describe()` the line for people, `commands()`
the same change as `ip(8)` and `sysctl(8)` lines.
"""

from reconciler.core.entries import (
    CONNECTED_METRIC,
    AddAddress,
    AddNeighbour,
    AddRoute,
    AddRule,
    Operation,
    RemoveAddress,
    RemoveNeighbour,
    RemoveRoute,
    RemoveRule,
    SetSysctl,
    TellBridge,
    accept_ra,
    address_line,
    other_mtu,
    route_words,
    rule_words,
    shell,
)
from reconciler.core.links import (
    MakeEndpoint,
    RemoveEndpoint,
    SetLink,
    carried,
    endpoint_commands,
    endpoint_entries,
    no_noise,
)
from reconciler.core.model import Address, InterfaceAddress
from reconciler.core.names import container_alias, mac_text, network_alias
from reconciler.core.rows import NeighbourRow
from reconciler.core.wanted import Bridge, Member

__all__ = [
    "CONNECTED_METRIC",
    "AddAddress",
    "AddNeighbour",
    "AddRoute",
    "AddRule",
    "MakeBridge",
    "MakeContainer",
    "MakeEndpoint",
    "MakeGateway",
    "MoveLease",
    "Operation",
    "Rebind",
    "RemoveAddress",
    "RemoveBridge",
    "RemoveContainer",
    "RemoveEndpoint",
    "RemoveGateway",
    "RemoveNeighbour",
    "RemoveRoute",
    "RemoveRule",
    "ReplaceFirewall",
    "SetLink",
    "SetSysctl",
    "TellBridge",
    "WireBundle",
    "WriteDns",
    "accept_ra",
    "endpoint_entries",
    "other_mtu",
]


class MakeBridge(Operation, frozen=True, kw_only=True):
    """A network's bridge, with all that it carries."""

    bridge: Bridge

    @property
    def action(self) -> str:
        return "create"

    def describe(self) -> str:
        carried = " ".join(str(a) for a in self.bridge.addresses) or "no address"
        return f"bridge {self.bridge.name}  {carried} mtu {self.bridge.mtu}"

    def commands(self) -> list[str]:
        name = self.bridge.name
        mac = mac_text(self.bridge.mac)
        return [
            self._ip("link", "add", name, "address", mac, "type", "bridge"),
            self._ip("link", "set", name, "alias", network_alias(self.bridge.network)),
            # A bridge keeps its MTU only once it was changed: first another value.
            self._ip("link", "set", name, "mtu", other_mtu(self.bridge.mtu)),
            self._ip("link", "set", name, "mtu", self.bridge.mtu),
            *no_noise(self, name, self.bridge.mtu, host=True),
            self._ip("link", "set", name, "up"),
            *(address_line(self, name, a, "add") for a in self.bridge.addresses),
        ]


class RemoveBridge(Operation, frozen=True, kw_only=True):
    """A network's bridge goes."""

    link: str
    index: int

    @property
    def action(self) -> str:
        return "remove"

    def describe(self) -> str:
        return f"bridge {self.link}"

    def commands(self) -> list[str]:
        return [self._ip("link", "del", self.link)]


class MakeGateway(Operation, frozen=True, kw_only=True):
    """A routed network's gateways, on the host's `lo`."""

    addresses: tuple[InterfaceAddress, ...]

    @property
    def action(self) -> str:
        return "create"

    def describe(self) -> str:
        return f"gateway {' '.join(str(a) for a in self.addresses)} on lo"

    def commands(self) -> list[str]:
        return [address_line(self, "lo", a, "add") for a in self.addresses]


class RemoveGateway(Operation, frozen=True, kw_only=True):
    """A gateway on the host's `lo` that no routed network declares any more."""

    address: InterfaceAddress
    whole: bool
    """Whether its network goes, and does not only change its gateway."""

    @property
    def action(self) -> str:
        return "remove" if self.whole else "update"

    def describe(self) -> str:
        return f"gateway {self.address} on lo"

    def commands(self) -> list[str]:
        return [self._ip("address", "del", self.address, "dev", "lo")]


class MakeContainer(Operation, frozen=True, kw_only=True):
    """A whole container: its namespace appears at its path complete or not at all."""

    member: Member

    @property
    def action(self) -> str:
        return "create"

    def describe(self) -> str:
        if not self.member.endpoints:
            return "lo only"
        return ", ".join(carried(e) for e in self.member.endpoints)

    def commands(self) -> list[str]:
        member = self.member
        lines = [shell(["ip", "netns", "add", member.netns])]
        lines.append(self._ip("link", "set", "lo", "alias", container_alias(member.name)))
        lines.append(self._ip("link", "set", "lo", "up"))
        lines += [self._sysctl(*member.manner)] if member.manner is not None else []
        for endpoint in member.endpoints:
            lines += endpoint_commands(self, endpoint)
        lines += [self._ip(*route_words("add", r)) for r in member.routes]
        lines += [self._ip(*rule_words("add", r)) for r in member.rules]
        lines += [self._sysctl(name, value) for name, value in member.sysctls]
        return lines


class RemoveContainer(Operation, frozen=True, kw_only=True):
    """A container goes: its path is unmounted, the kernel reaps the rest in its own batches."""

    name: str
    path: str
    """Its file in the netns dir; empty where only host ends are left."""
    ends: tuple[int, ...]
    """Its host ends."""
    neighbours: tuple[NeighbourRow, ...] = ()
    """The host's entries for it that do not go with a link of their own."""
    forced: bool = False
    """Whether host ends that the kernel does not reap are taken away by hand."""
    in_use: bool = False
    """Whether processes keep the namespace alive: nothing is reaped then, or waited for."""

    @property
    def action(self) -> str:
        return "remove"

    def describe(self) -> str:
        return f"namespace {self.path or '(already gone)'}"

    def commands(self) -> list[str]:
        return [shell(["ip", "netns", "del", self.netns])] if self.netns else []


class Rebind(Operation, frozen=True, kw_only=True):
    """The living namespace of a running container is bound to its path again."""

    source: str
    """`/proc/PID/ns/net` of a process inside."""
    path: str

    def describe(self) -> str:
        return f"bind {self.path} again to the namespace of {self.source}"

    def commands(self) -> list[str]:
        pid = self.source.split("/")[2]
        return [shell(["ip", "netns", "attach", self.netns, pid])]


class ReplaceFirewall(Operation, frozen=True, kw_only=True):
    """Chains that differ are replaced whole, in one commit a table."""

    differences: tuple[str, ...]
    lines: tuple[str, ...] = ()

    def describe(self) -> str:
        shown = "; ".join(self.differences[:3])
        more = len(self.differences) - 3
        return f"{shown}; and {more} more" if more > 0 else shown

    def commands(self) -> list[str]:
        return list(self.lines)


class WireBundle(Operation, frozen=True, kw_only=True):
    """A bundle's config.json is pointed at the container's namespace."""

    bundle: str

    def describe(self) -> str:
        return f"wire {self.bundle}/config.json (it counts from the next start on)"


class WriteDns(Operation, frozen=True, kw_only=True):
    """A container's resolv.conf and hosts are written."""

    files: tuple[str, ...]

    def describe(self) -> str:
        return f"write {' and '.join(self.files)}"


class MoveLease(Operation, frozen=True, kw_only=True):
    """A kept address gives way; the address itself changes by other operations."""

    old: Address
    new: Address
    reason: str

    def describe(self) -> str:
        return f"lease {self.old} becomes {self.new}: {self.reason}"
