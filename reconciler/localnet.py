"""The part of a pass that lets ports published on 127.0.0.1 answer, and only as long as there are any."""

from collections.abc import Set

from reconciler.core import ops
from reconciler.core.observed import Observed
from reconciler.core.policy import Publication
from reconciler.core.wanted import Desired
from reconciler.host import rtnl
from reconciler.host.machine import boot_id
from reconciler.host.store import Store


class Localnet:
    """One pass's view of `route_localnet`. `look` first; `off` goes before the firewall, `on` last."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.on: list[ops.SetSysctl] = []
        self.off: list[ops.SetSysctl] = []
        self._fact = ""
        self._noted: set[str] = set()
        self._standing: set[str] = set()
        self._wanted: dict[str, str] = {}

    def look(
        self,
        desired: Desired,
        publications: tuple[Publication, ...],
        observed: Observed,
        *,
        whole: bool,
        kept: Set[str],
        going: Set[str],
    ) -> None:
        """Compare. `publications`: those that the rules lead on; `whole`: all containers are in sight;
        `kept`: networks whose links stay as they are; `going`: containers whose links go in this
        pass."""
        from reconciler.core import localnet

        self._fact = f"localnet:{boot_id()}:{observed.host.cookie}"
        self._wanted = localnet.links(desired, publications)
        self._noted = set((self.store.get(self._fact) or "").split())
        once: set[str] = set()
        if whole:
            # A bridge is ours whole, also where it is not noted who has switched it on.
            once = self._noted | {link.name for link in observed.bridges.values()}
            once -= {link.name for network, link in observed.bridges.items() if network in kept}
            once -= {
                end.host.name
                for seen in observed.containers.values()
                for end in (seen.ends if self._noted else ())
                if end.network in kept or seen.name in going
            }
        self._standing = {link.name for link in observed.host.links} if self._noted else set()
        names = [localnet.sysctl(link) for link in sorted(self._wanted.keys() | once)]
        self.on, self.off = localnet.edits(self._wanted, rtnl.host_sysctls(names), once)

    def note(self) -> None:
        """Write down which links are about to be switched on; before they are."""
        links = (self._noted & self._standing) | self._wanted.keys()
        if self.on and links != self._noted:
            self.store.put(self._fact, " ".join(sorted(links)))

    def forget(self) -> None:
        """Write down that the others are switched off."""
        gone = {op.name.split("/")[3] for op in self.off}
        if gone & self._noted:
            self._noted -= gone
            self.store.put(self._fact, " ".join(sorted(self._noted)))
