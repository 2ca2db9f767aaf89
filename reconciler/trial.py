"""What a pass has to do with `runcnet try`: it notes what a trial changes, and takes it back.

A trial that is taken back leaves doubts: what it tried counts as rejected from then on, and what
the files said before stands in for it. So the pass that undoes it is a pass like any other, and so
are those that come after it. Nobody's files are written.
"""

import os
from collections.abc import Sequence

from reconciler.core.model import Spec
from reconciler.core.observed import Observed
from reconciler.declared import Declared
from reconciler.host.store import Store
from reconciler.host.trials import CONFIRM
from reconciler.prospect import Prospect

KILLED = "its process ended without an answer"


def settle(store: Store, folders: Sequence[str]) -> None:
    """Take a trial back of which the process is gone. Every pass, and every look, begins with it."""
    found = store.trial()
    if found is None or found.alive:
        return
    with store.transaction():
        if found.answer == CONFIRM:
            store.trials.end()
            return
        files = take_back(store, folders, KILLED)
    store.notes += (
        f"pid {found.pid}, a `runcnet try`, ended without an answer; "
        f"what it tried is taken back: {', '.join(files) or 'nothing'}",
    )


def take_back(store: Store, folders: Sequence[str], reason: str) -> list[str]:
    """Turn the trial in progress into doubts, inside a transaction; the files that are doubted.

    Everything that differs from what was remembered before it is doubted: what it tried, and what
    was edited while it was open. Leases are as before again.
    """
    from reconciler.core.doubts import differing, digest, restored
    from reconciler.core.memory import Now, grown
    from reconciler.host import yamlfile

    trials = store.trials
    tried = trials.files()
    sources = yamlfile.read_folders(folders)
    now = {source.file: source.content for source in sources.files}
    times = {source.file: source.modified_ns for source in sources.files}
    # What was written just before the trial was there before it.
    young = {file: one for file, one in store.memory().young.items() if file not in tried}
    store.settle(
        grown(
            young,
            lambda file: Now(now.get(file), times.get(file) or yamlfile.changed_ns(file)),
            restless=lambda file: False,
        )
    )
    last = store.remembered()
    before = restored(last, tried)
    unseen = {rejection.place.file for rejection in sources.rejections}
    here = {os.path.normpath(folder) for folder in folders}
    doubts = {(f, digest(last.get(f))) for f in tried if last.get(f) != before.get(f)}
    doubts |= {
        (file, found)
        for file, found in differing(now, before).items()
        if file in now
        or (os.path.dirname(file) in here and not unseen & {file, os.path.dirname(file)})
    }
    trials.undo()
    trials.doubt(doubts, reason)
    return sorted({file for file, _ in doubts})


def accept(store: Store) -> None:
    """Take every file at its word again, inside a transaction."""
    if store.trials.doubts():
        store.trials.drop_doubts(list(store.trials.doubts()))
        store.trials.forget_objects(list(store.trials.objects()))


def expected(store: Store, declared: Declared) -> frozenset[str]:
    """Objects whose removal nobody wonders at: a trial that was taken back made or changed them.

    Not while something that is declared cannot be read: it might be one of them.
    """
    found = store.trials.objects()
    if not found or declared.unsure or store.trials.pending():
        return frozenset()
    names = objects(declared.loaded.spec)
    return frozenset(name for name, made in found.items() if made or name in names)


def objects(spec: Spec) -> set[str]:
    """Every declared object."""
    return {f"network/{n}" for n in spec.networks} | {f"container/{n}" for n in spec.containers}


def standing(observed: Observed) -> set[str]:
    """Every object of ours that the kernel has."""
    names = {f"container/{s.name}" for s in observed.containers.values() if s.space is not None}
    return names | {f"network/{n}" for n in [*observed.bridges, *observed.gateways.values()]}


def keep(store: Store, prospect: Prospect) -> None:
    """Write down what a pending trial is about to change; without one, drop doubts that are over.

    Inside the pass's transaction, before the kernel is changed.
    """
    trials = store.trials
    if trials.pending():
        there = standing(prospect.observed)
        trials.note_objects({op.object: op.object not in there for op in prospect.operations})
        return
    doubts = trials.doubts()
    loaded = prospect.declared.loaded
    judged = loaded.remembered | loaded.lost
    declares = bool(loaded.spec.networks or loaded.spec.containers)
    # A file that is gone has changed, too; but if nothing is declared, the folder may be gone.
    over = {f for f in doubts if f in loaded.accepted or (declares and f not in judged)}
    if over:
        trials.drop_doubts(over)
    worked_on = trials.objects()
    if worked_on:
        trials.forget_objects(objects(loaded.spec) if doubts.keys() - over else worked_on)
