"""The index of the run dir and a pass: whether it may be believed, and making it anew."""

import msgspec

from reconciler.books import digest_of
from reconciler.core.digests import blake2b
from reconciler.core.known import odd
from reconciler.core.wanted import frame
from reconciler.host.index import VERSION, Index, Known, Stamps, stamps
from reconciler.host.machine import machine_id
from reconciler.host.record import Record
from reconciler.host.store import Store
from reconciler.part import Widen
from reconciler.prospect import Prospect, Settings
from reconciler.reconcile import Pass


def consulted(
    settings: Settings, store: Store, record: Record, index: Index
) -> tuple[Stamps, Known]:
    """The definition files as they are now, and what the index says of them. Raises Widen."""
    trials = store.trials
    if trials.pending() or trials.doubts() or trials.objects():
        raise Widen("what is tried is noted by whole passes")
    found = stamps(settings.config_dirs)
    known = index.known(key_of(settings, store, record), found) if found is not None else None
    if found is None or known is None:
        raise Widen("the index does not speak of these files")
    if record.resolved() not in (None, digest_of(known.resolved)):
        raise Widen("networks were resolved otherwise since")
    return found, known


def key_of(settings: Settings, store: Store, record: Record) -> bytes:
    """All but files that an index is made from."""
    attached = blake2b(store.attached_text().encode()).hexdigest()
    folders = (settings.config_dirs, settings.state_dir, settings.netns_dir, settings.firewall)
    return msgspec.json.encode((VERSION, folders, record.scene, machine_id(), attached))


def learn(index: Index, found: Stamps, prospect: Prospect, one: Pass) -> None:
    """Make the index anew from a look at everything; `found`: the files that were read."""
    loaded = prospect.declared.loaded
    faults = loaded.rejections or loaded.waiting or loaded.stuck or loaded.lost or loaded.orphans
    if faults or one.store.trials.pending() or one.store.trials.doubts():
        index.forget()
        return
    index.learn(
        key_of(one.settings, one.store, one.record),
        found,
        Known(loaded.spec.networks, frame(prospect.desired)),
        loaded.spec.containers,
        odd(prospect.observed, one.record.seals()),
    )
