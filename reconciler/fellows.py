"""Hosts files of those whose fellow members come and go, kept current by the daemon without passes."""

import time
from collections.abc import Collection

from reconciler.attachment import renew_hosts
from reconciler.core.resolver import Hosts
from reconciler.declared import Declared
from reconciler.world import World

FELLOWS_S = 0.2
"""How long hosts files lag behind, at least."""
SHARE = 10
"""How many times as long as they take to write they are then left alone: they may be thousands."""


class Fellows:
    """Networks of which members have come or gone since hosts files were written."""

    def __init__(self, run_dir: str) -> None:
        self._run_dir = run_dir
        self._networks: set[str] = set()
        self.pause_s = FELLOWS_S
        """How long it is to be until they are written."""

    def note(self, declared: Declared, names: Collection[str]) -> None:
        """These containers, as they are declared here, have come, gone or changed."""
        found = declared.loaded.spec.containers
        for name in names & found.keys():
            self._networks |= {i.network for i in found[name].interfaces}

    def clear(self) -> None:
        """A whole pass has written all."""
        self._networks.clear()

    def renew(self, world: World) -> None:
        """Write them."""
        started = time.monotonic()
        networks, self._networks = self._networks, set()
        spec = world.declared.loaded.spec
        readers = [
            c for c in spec.containers.values() if any(i.network in networks for i in c.interfaces)
        ]
        renew_hosts(self._run_dir, Hosts(spec, world.addresses), readers)
        self.pause_s = max(FELLOWS_S, SHARE * (time.monotonic() - started))
