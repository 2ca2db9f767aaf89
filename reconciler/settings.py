"""What a pass is told."""

import msgspec

FIREWALLS = ("auto", "iptables", "nftables", "none")


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Where things lie and what is allowed: the options of the command line."""

    config_dirs: tuple[str, ...] = ("/etc/runcnet.d", "/run/runcnet.d")
    state_dir: str = "/var/lib/runcnet"
    run_dir: str = "/run/runcnet"
    netns_dir: str = "/run/netns"
    firewall: str = "auto"
    max_removals: str = "50%"
    no_interrupt: bool = False
    lock_timeout_s: float = 30.0
    firewall_patience_s: float | None = None
    """How long the locks of other programs on the firewall are waited for; None: as usual."""


USUAL = Settings()
