"""A pass over a few containers or networks in a process of its own: `apply NAME`, `add`, `rm`.

Edits of files that go with it are judged and written under the lock, so that what several processes
do at once is done one after the other.
"""

import os
import time
from collections.abc import Collection, Mapping

import msgspec

from reconciler.alone import Alone, Edit, Glimpse
from reconciler.attachment import renew_hosts
from reconciler.core.errors import RuncnetError, UsageError
from reconciler.core.model import Rejection, Spec
from reconciler.core.report import Report
from reconciler.core.resolver import Hosts
from reconciler.core.sandbox import HEADER, declaration, declares, tree
from reconciler.core.schema import RawContainer
from reconciler.core.troubles import Mishap, Trouble
from reconciler.host import dnsfiles
from reconciler.host import files as folders
from reconciler.host.index import Index, settled_stamps, stamp, stamps
from reconciler.host.record import Record
from reconciler.host.store import Store
from reconciler.indexed import consulted, key_of, learn
from reconciler.load import Shelf
from reconciler.once import done, opened, report_of
from reconciler.part import Widen
from reconciler.prospect import Prospect, Settings
from reconciler.reconcile import Pass
from reconciler.troubles import note_troubles

MODE = 0o644
NOTHING: Mapping[str, bytes | None] = {}


class RefusedError(RuncnetError):
    """What is to be written is wrong; nothing was written, or it is as it was before."""

    def __init__(self, rejections: Collection[Rejection], edits: Collection[str]) -> None:
        self.rejections = tuple(rejections)
        super().__init__("\n".join(_line(one, edits) for one in rejections))


def _line(one: Rejection, edits: Collection[str]) -> str:
    """A file that was not written has no lines that anybody could look at."""
    return f"{one.path}: {one.message}" if one.place.file in edits else str(one)


class Applied(msgspec.Struct, frozen=True):
    """What a scoped pass did, and how things stand after it."""

    report: Report
    prospect: Prospect
    """A look after the last change."""
    troubles: Mapping[str, Trouble]
    mishaps: tuple[Mishap, ...]
    """What this pass and those before have left for `status`."""
    widened: str = ""
    """Why everything was looked at; empty: it was not."""


class Request(msgspec.Struct, frozen=True):
    """What a scoped pass is to do."""

    names: frozenset[str]
    """Containers and networks."""
    edits: Mapping[str, RawContainer | None] = {}
    """Container → what its own definition file (`file_of`) is to say; None: it is to go."""
    going: frozenset[str] = frozenset()
    """Containers that are to go now if no file declares them (any more)."""
    forced: frozenset[str] = frozenset()
    """Those of them that go also while processes live in them."""


def file_of(folder: str, name: str) -> str:
    """Where a container is declared that comes and goes."""
    return os.path.join(os.path.normpath(folder), f"{name}.yaml")


def apply_names(settings: Settings, request: Request) -> Applied:
    """Make these containers and networks as they are declared, and leave all else alone.

    Raises RefusedError where the edits are wrong, UsageError for a name that nothing has, and what
    `reconcile` raises.
    """
    folder = settings.config_dirs[-1]
    edits = {name: _edit(folder, name, body) for name, body in request.edits.items()}
    with opened(settings, change=True) as (store, record):
        index = Index.open(settings.run_dir)
        widened = "there is no index"
        try:
            if index is not None:
                try:
                    return _small(settings, request, edits, store, record, index)
                except Widen as reason:
                    widened = str(reason)
            applied = _whole(settings, request, edits, store, record, index)
            return msgspec.structs.replace(applied, widened=widened)
        finally:
            if index is not None:
                index.close()


def _edit(folder: str, name: str, body: RawContainer | None) -> Edit:
    file = file_of(folder, name)
    if body is None:
        return Edit(file, None, None)
    return Edit(file, declaration(name, body).encode(), tree(file, name, body))


def _small(
    settings: Settings,
    request: Request,
    edits: Mapping[str, Edit],
    store: Store,
    record: Record,
    index: Index,
) -> Applied:
    """As `_whole`, where the index tells enough. Raises Widen."""
    found, known = consulted(settings, store, record, index)
    world = Glimpse(known, index, store, record, request.names, edits)
    for name, edit in edits.items():
        if edit.file in found and name not in world.before:
            raise Widen(f"{edit.file} is not of our making")
    one = Alone(
        settings,
        store=store,
        record=record,
        world=world,
        only=scope_of(request.names, world.declared.loaded.spec),
    )
    one.going = frozenset(f"container/{name}" for name in request.going)
    one.forced = request.forced
    contents = {edit.file: edit.content for edit in edits.values()}
    applied = carried(one, request, files=contents, known=request.names, write=contents)
    if applied.report.operations:
        world.renew_hosts(settings.run_dir, applied.prospect.assignment.addresses)
    if edits:
        for file in contents:
            now = stamp(file)
            found.pop(file, None)
            if now is not None:
                found[file] = now
        key = key_of(settings, store, record)
        index.change(key, edits.keys(), world.fresh.values(), found)
        if applied.report.held or applied.report.failed:
            index.forget()  # what stands there is not what is declared
    return applied


def _whole(
    settings: Settings,
    request: Request,
    edits: Mapping[str, Edit],
    store: Store,
    record: Record,
    index: Index | None,
) -> Applied:
    """Everything is read and looked at, and these alone are changed."""
    found = stamps(settings.config_dirs)
    shelf = Shelf(settings.config_dirs)
    memory, doubts = store.memory(), store.trials.doubts()
    loaded = shelf.read(memory, doubts, store.attachments()).loaded
    sure = True
    before_spec = loaded.spec
    contents = {edit.file: edit.content for edit in edits.values()}
    if edits:
        for name, edit in edits.items():
            _own(name, edit.file, loaded.spec, shelf)
        before, attached = set(loaded.rejections), loaded.orphans
        foreseen = shelf.foresee(contents, memory, doubts)
        loaded, sure = foreseen.loaded, not foreseen.unsure
        fresh = [r for r in loaded.rejections if r not in before]
        waiting = [text for n, text in loaded.waiting.items() if n in request.names]
        orphans = [text for n, text in loaded.orphans.items() if n not in attached]
        if orphans:  # it takes something from what a hook attached
            raise RuncnetError(orphans[0])
        if fresh:
            raise RefusedError(fresh, contents)
        if waiting:
            raise RuncnetError(f"{waiting[0]} (mend that file first)")
    one = Pass(
        settings,
        store=store,
        record=record,
        changing=True,
        only=scope_of(request.names, loaded.spec),
        shelf=shelf,
    )
    with Written(contents) as written:
        gone = frozenset(name for name, edit in edits.items() if written.there(edit.file))
        # What cannot be read might declare what was in no file of ours.
        one.going = frozenset(f"container/{n}" for n in request.going if sure or n in gone)
        one.forced = request.forced
        applied = carried(one, request, files=contents, known=gone | request.forced)
    if applied.report.operations:
        spec, near = applied.prospect.spec, networks_of(request.names, before_spec, loaded.spec)
        readers = [c for c in spec.containers.values() if near & networks_of([c.name], spec)]
        hosts = Hosts(spec, applied.prospect.assignment.addresses)
        renew_hosts(settings.run_dir, hosts, readers)
    if index is not None and found is not None:
        found = settled_stamps(found)
        for file in contents:
            now = stamp(file)
            found.pop(file, None)
            if now is not None:
                found[file] = now
        learn(index, found, applied.prospect, one)
    return applied


def networks_of(names: Collection[str], *specs: Spec) -> set[str]:
    """The networks in which any of these containers is, by any of these specs."""
    found = [s.containers[n] for s in specs for n in names if n in s.containers]
    return {i.network for c in found for i in c.interfaces}


def _own(name: str, file: str, spec: Spec, shelf: Shelf) -> None:
    """Raises RuncnetError where that container is somebody else's, or that file holds more than it."""
    declared = spec.containers.get(name)
    if declared is not None and declared.hooked:
        raise RuncnetError(f"container {name} was attached by a hook (its runtime takes it away)")
    if declared is not None and declared.place.file != file:
        raise RuncnetError(f"container {name} is declared at {declared.place} (edit it there)")
    found = shelf.parsed(file)
    if found is None:
        return
    content, tree = found
    if tree is None and not content.startswith(HEADER.encode()):
        raise RuncnetError(f"{file}:1 is broken, and not written by `runcnet add` (mend it)")
    if tree is not None and set(declares(tree)) - {("containers", name)}:
        raise RuncnetError(f"{file}:1 declares more than container {name} (edit it there)")


def scope_of(names: Collection[str], spec: Spec) -> frozenset[str]:
    """The objects that these names stand for, the networks that the containers are in, and that the
    host forwards for them."""
    only = {f"network/{n}" for n in names if n in spec.networks}
    only |= {f"container/{n}" for n in names if n in spec.containers or n not in spec.networks}
    for name in names:
        if name in spec.containers:
            only |= {f"network/{i.network}" for i in spec.containers[name].interfaces}
    if any(name.startswith("network/") for name in only):
        only.add("host")
    return frozenset(only)


def carried(
    one: Pass,
    request: Request,
    *,
    files: Collection[str],
    known: frozenset[str],
    write: Mapping[str, bytes | None] = NOTHING,
) -> Applied:
    """Carry a scoped pass out. `files`: what is edited; `known`: names that need not be anything;
    `write`: edits that are written only once it is decided what is to be done."""
    started = time.monotonic()
    store = one.store
    with store.transaction():
        # A small pass knows the leases that it needs once it has looked.
        old = None if isinstance(one, Alone) else store.book()
        prospect = one.prospect()
        _known(request.names - known, prospect)
        late = [r for r in prospect.rejections if r.place.file in files]
        if late:  # only the kernel could find fault with it
            raise RefusedError(late, files)
        for file, content in write.items():
            put(file, content)
        if isinstance(one, Alone):
            old, one.world.book = one.world.book, prospect.assignment.book
        assert old is not None  # one of the two has set it
        one.keep_books(prospect, old)
    outcomes = one.settle(prospect)
    for name in request.edits.keys() - prospect.spec.containers.keys():
        dnsfiles.remove(one.settings.run_dir, name)
    report = report_of(prospect, done(outcomes), started, dry=False)
    note_troubles(one.record, report, prospect, scope=one.only, now=time.time())
    found = one.after(prospect) if isinstance(one, Alone) and not report.failed else None
    after = found or prospect
    if outcomes and found is None:
        after = one.look()
        with store.transaction():
            # Leases are free once nothing is left of whoever had them.
            store.save_book(prospect.assignment.book, after.assignment.book)
    return Applied(report, after, one.record.troubles(), tuple(one.record.mishaps()))


def _known(names: Collection[str], prospect: Prospect) -> None:
    spec = prospect.spec
    known = {*spec.networks, *spec.containers, *prospect.observed.containers}
    for name in names:
        if name not in known:
            from reconciler.core.schema import unknown

            raise UsageError(unknown("name", name, known))


class Written:
    """The edits, written; as before again where what is done under them is refused."""

    def __init__(self, edits: Mapping[str, bytes | None]) -> None:
        self._edits = edits
        self._old: dict[str, bytes | None] = {}

    def __enter__(self) -> "Written":
        for file, content in self._edits.items():
            self._old[file] = put(file, content)
        return self

    def there(self, file: str) -> bool:
        """Whether there was such a file before."""
        return self._old[file] is not None

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is not None and issubclass(kind, RefusedError):
            for file, content in self._old.items():
                put(file, content)


def put(file: str, content: bytes | None) -> bytes | None:
    """Write a definition file whole, or take it away; answers with what it said before."""
    folder, name = os.path.split(file)
    if content is not None:
        folders.own_directory(folder, 0o755)
    try:
        with folders.folder(folder) as fd:
            try:
                old, _ = folders.read_at(fd, name, folders.ANY_SIZE)
            except FileNotFoundError:
                old = None
            if content is None:
                folders.remove_at(fd, name)
            elif content != old:
                folders.write_at(fd, name, content, MODE)
            return old
    except FileNotFoundError:
        return None
