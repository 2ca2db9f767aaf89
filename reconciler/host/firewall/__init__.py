"""The seam: what a firewall backend answers. `backend()` chooses one; none may be chosen too."""

from typing import Protocol

import msgspec

from reconciler.core.errors import UsageError
from reconciler.core.policy import Policy

CHOICES = ("auto", "iptables", "nftables", "none")


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """How the kernel's rules compare with a policy."""

    differences: tuple[str, ...]
    """One line for each chain that differs; empty: the kernel matches."""
    networks: frozenset[str] = frozenset()
    """Networks that own rules in the kernel."""
    guards: frozenset[int] = frozenset()
    """IP versions whose router guard stands in the kernel."""


class Backend(Protocol):
    """A firewall that can be read and replaced. Every method may raise FirewallError."""

    name: str

    def look(self, policy: Policy) -> Seen:
        """Compare; reads only, and makes the kernel create nothing."""

    def replace(self, policy: Policy) -> tuple[str, ...]:
        """Make it so, one commit for each table that differs. Answers with notes for people."""

    def remove(self) -> None:
        """Take away all that is ours."""

    def commands(self, policy: Policy) -> tuple[str, ...]:
        """The same by hand."""

    def warnings(self, policy: Policy) -> tuple[str, ...]:
        """Other stacks that will drop what the policy lets pass."""


def backend(name: str) -> Backend | None:
    """The backend of that name. Raises UsageError for one that is not built."""
    if name == "none":
        return None
    if name not in CHOICES:
        raise UsageError(f"--firewall {name}: unknown ({', '.join(CHOICES)})")
    if name == "nftables":
        raise UsageError("--firewall nftables: reserved, not built yet (iptables or none)")
    from reconciler.host.firewall.iptables import Iptables

    return Iptables()
