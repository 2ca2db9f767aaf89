"""The looks of a pass at the kernel: at everything, or at what it has touched alone."""

from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from reconciler.core.attached import Attachment
from reconciler.core.model import PING_GROUPS, Spec
from reconciler.core.observed import LOOPBACK, Observed
from reconciler.host.machine import link_number
from reconciler.host.observe import Dumps, dump, dump_part, observe, read_witness
from reconciler.host.record import Record
from reconciler.host.store import Store
from reconciler.settings import Settings

if TYPE_CHECKING:
    from reconciler.hooked import Hooked
    from reconciler.host.ahead import Ahead
    from reconciler.host.fresh import Fresh

SYSCTLS_FACT = "sysctls"
"""Of the state: the names that the last pass read in each namespace."""


def begun(
    settings: Settings, store: Store, record: Record, attached: Iterable[Attachment]
) -> "Ahead[Dumps]":
    """A look at everything, which the kernel answers from now on."""
    from reconciler.host.ahead import Ahead

    # What namespaces are asked for, the last pass says.
    names = tuple((store.get(SYSCTLS_FACT) or PING_GROUPS).split())
    known = tuple(attached)
    return Ahead(partial(dump, settings.netns_dir, names, key=record.key, attached=known))


class Looking:
    """The part of a pass that looks; see `reconcile.py` for the rest."""

    settings: Settings
    store: Store
    record: Record
    changing: bool
    looking: Callable[[Collection[str] | None], None]
    """Called just before each look, with the objects that are looked at (None: all of the pass)."""
    seen: Observed
    """What the last look has shown."""
    hooked: "Hooked"
    _ahead: "Ahead[Dumps] | None"
    """A look that was begun before it was asked for."""
    _fresh: "Fresh | None"
    """What has been looked at since it was made."""

    def observe(self, spec: Spec, *, touched: Mapping[str, str] | None = None) -> Observed:
        """The host and every namespace of the netns dir; where few objects were `touched`, theirs.

        `touched`: object → its file of the netns dir, as far as it has one.
        """
        names = sysctls_of(spec)
        netns_dir = self.settings.netns_dir
        ahead, self._ahead = self._ahead, None
        fresh, self._fresh = self._fresh, None
        dumps = ahead.result() if ahead is not None else None
        containers = None
        if touched is not None:
            containers = {t.partition("/")[2] for t in touched if t.startswith("container/")}
        known = self.hooked.met
        if containers is not None:
            known = {name: known[name] for name in containers & known.keys()}
        witness = read_witness(self.record, containers, known)
        places = known.values()
        expected = [
            c.netns
            for c in spec.containers.values()
            if c.mode in ("network", "none")
            and not c.hooked
            and (containers is None or c.name in containers)
            # What the record does not know was never made.
            and (not witness.present or c.name in witness.spaces)
        ]
        if touched is not None and containers is not None:
            self.looking(touched.keys())
            near = {network for network, _, _ in witness.ends.values()}
            near |= {t.partition("/")[2] for t in touched if t.startswith("network/")}
            for name in containers & spec.containers.keys():
                near |= {i.network for i in spec.containers[name].interfaces}
            links = {LOOPBACK, *witness.ends, *self.external_links(spec, near)}
            links |= {index for network, index in witness.bridges.items() if network in near}
            files = {*(spec.containers[n].netns for n in containers & spec.containers.keys())}
            files |= containers | set(touched.values())
            key = self.record.key
            dumps = dump_part(
                netns_dir, names, key=key, files=files, links=links - {0}, attached=places
            )
        elif dumps is None or dumps.sysctls != names:
            self.looking(None)
            dumps = dump(netns_dir, names, key=self.record.key, attached=places, fresh=fresh)
            if self.changing:
                self.store.put(SYSCTLS_FACT, " ".join(names))
        self.seen = observe(
            dumps,
            netns_dir=netns_dir,
            witness=witness,
            expected=expected,
            ipv6=any(s.version == 6 for n in spec.networks.values() for s in n.subnets),
        )
        return self.seen

    def external_links(self, spec: Spec, near: Collection[str]) -> set[int]:
        """The bridges of others among these networks, by number."""
        bridges = [n.bridge for name, n in spec.networks.items() if name in near and n.external]
        return {index for bridge in bridges if (index := link_number(bridge))}


def sysctls_of(spec: Spec) -> tuple[str, ...]:
    """What is read in each namespace."""
    wanted = {PING_GROUPS}
    for container in spec.containers.values():
        wanted.update(name for name, _ in container.sysctls)
    return tuple(sorted(wanted))
