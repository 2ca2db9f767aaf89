"""The seam to the firewall: what every backend offers, and which one `--firewall` names.

Nothing of a backend is imported before it is asked for.
"""

from typing import Protocol

import msgspec

from reconciler.core.errors import UsageError
from reconciler.core.policy import Lead, Policy, Sender


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What the kernel shows, held against a policy."""

    differences: tuple[str, ...]
    """One line each; none: the kernel matches."""
    networks: frozenset[str]
    """Networks that own rules in the kernel now."""
    guards: frozenset[int]
    """IP versions whose router guard stands in the kernel."""
    ports: dict[str, tuple[Lead, ...]]
    """`NETWORK/CONTAINER` → the published ports that lead there now. For a long name its stand-in
    may be there (names.py)."""
    notes: tuple[str, ...]
    senders: frozenset[str] = frozenset()
    """Containers whose addresses are checked now, or stand-ins."""


class Backend(Protocol):
    """One way to carry a policy out."""

    name: str

    def look(self, policy: Policy) -> Seen:
        """Compare the kernel with the policy. Changes nothing, creates nothing."""

    def differences(self, policy: Policy) -> tuple[str, ...]:
        """Those of `look` alone, which costs less."""

    def replace(self, policy: Policy) -> tuple[str, ...]:
        """Make the kernel match, one commit a table, none where nothing differs; notes on it."""

    def admit(self, policy: Policy, senders: tuple[Sender, ...]) -> None:
        """Let these send, at once: all of `policy` stands but for them. Raises FirewallError."""

    def dismiss(self, senders: tuple[Sender, ...]) -> None:
        """Let these send no longer, at once. Raises FirewallError."""

    def stand_by(self, *, wanted: bool) -> None:
        """Whether a change is to be expected: what takes long to begin with then begins, and waits
        for it. Raises FirewallError."""

    def remove(self) -> None:
        """Take all that is runcnet's away, but not what the administrator wrote."""

    def commands(self, policy: Policy) -> tuple[str, ...]:
        """Command lines that bring the policy about from the present state."""

    def warnings(self, policy: Policy) -> tuple[str, ...]:
        """Other firewalls on this host that will drop this traffic, a sentence each."""

    def told(self, policy: Policy) -> tuple[str, ...]:
        """Which firewall this is, why, and what else is to be known of it, a sentence each."""


class Waiting(Backend, Protocol):
    """A backend that may have to wait for the locks of other programs."""

    lock_timeout_s: float


class Ear(Protocol):
    """Hears of changes of the rules; to be polled for reading."""

    def fileno(self) -> int:
        """For poll(2)."""

    def rang(self) -> bool:
        """Whether the rules may have changed since the last time."""

    def close(self) -> None:
        """Stop to listen."""


def ear(name: str) -> Ear | None:
    """An ear for what the kernel says about our rules; None where it says nothing."""
    if name == "none":
        return None
    from reconciler.host.firewall.bell import Bell

    try:
        return Bell()
    except OSError:
        return None  # this kernel has no nftables


def backend(name: str) -> Waiting | None:
    """The backend that `--firewall` names; None for `none`.

    `auto` is decided anew at each look, from what the kernel shows.
    """
    if name == "none":
        return None
    if name not in ("auto", "iptables", "nftables"):
        raise UsageError(f"--firewall {name}: unknown (auto, iptables, nftables, none)")
    from reconciler.host.firewall.choice import Chosen

    return Chosen(name)
