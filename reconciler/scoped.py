"""A pass over a few containers or networks in a process of its own: `apply NAME`, `add`, `rm`.

Edits of files that go with it are judged and written under the lock, so that what several processes
do at once is done one after the other.
"""

import os
import time
from collections.abc import Collection, Mapping
from typing import NamedTuple

from reconciler.core.errors import RuncnetError, UsageError
from reconciler.core.model import Rejection, Spec
from reconciler.core.report import Report
from reconciler.core.sandbox import HEADER, declares
from reconciler.core.troubles import Mishap, Trouble
from reconciler.host import files as folders
from reconciler.host.record import Record
from reconciler.host.store import Store
from reconciler.load import Shelf
from reconciler.once import done, opened, report_of
from reconciler.prospect import Prospect, Settings
from reconciler.reconcile import Pass
from reconciler.troubles import note_troubles

MODE = 0o644


class RefusedError(RuncnetError):
    """What is to be written is wrong; nothing was written, or it is as it was before."""

    def __init__(self, rejections: Collection[Rejection], edits: Collection[str]) -> None:
        self.rejections = tuple(rejections)
        super().__init__("\n".join(_line(one, edits) for one in rejections))


def _line(one: Rejection, edits: Collection[str]) -> str:
    """A file that was not written has no lines that anybody could look at."""
    return f"{one.path}: {one.message}" if one.place.file in edits else str(one)


class Applied(NamedTuple):
    """What a scoped pass did, and how things stand after it."""

    report: Report
    prospect: Prospect
    """A look after the last change."""
    troubles: Mapping[str, Trouble]
    mishaps: tuple[Mishap, ...]
    """What this pass and those before have left for `status`."""


class Request(NamedTuple):
    """What a scoped pass is to do."""

    names: frozenset[str]
    """Containers and networks."""
    edits: Mapping[str, bytes | None] = {}
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
    with opened(settings, change=True) as (store, record):
        return _whole(settings, request, store, record)


def _whole(settings: Settings, request: Request, store: Store, record: Record) -> Applied:
    """Everything is read and looked at, and these alone are changed."""
    shelf = Shelf(settings.config_dirs)
    memory, doubts = store.memory(), store.trials.doubts()
    loaded = shelf.read(memory, doubts).loaded
    sure = True
    folder = settings.config_dirs[-1]
    edits = {file_of(folder, name): text for name, text in request.edits.items()}
    if edits:
        for name in request.edits:
            _own(name, file_of(folder, name), loaded.spec, shelf)
        before = set(loaded.rejections)
        foreseen = shelf.foresee(edits, memory, doubts)
        loaded, sure = foreseen.loaded, not foreseen.unsure
        fresh = [r for r in loaded.rejections if r not in before]
        waiting = [text for n, text in loaded.waiting.items() if n in request.names]
        if fresh:
            raise RefusedError(fresh, edits)
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
    with Written(edits) as written:
        gone = frozenset(n for n in request.edits if written.there(file_of(folder, n)))
        # What cannot be read might declare what was in no file of ours.
        one.going = frozenset(f"container/{n}" for n in request.going if sure or n in gone)
        one.forced = request.forced
        return carried(one, request, files=edits.keys(), known=gone | request.forced)


def _own(name: str, file: str, spec: Spec, shelf: Shelf) -> None:
    """Raises RuncnetError where that container is somebody else's, or that file holds more than it."""
    declared = spec.containers.get(name)
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
    one: Pass, request: Request, *, files: Collection[str], known: frozenset[str]
) -> Applied:
    """Carry a scoped pass out. `files`: what was edited; `known`: names that need not be anything."""
    started = time.monotonic()
    store = one.store
    with store.transaction():
        old = store.book()
        prospect = one.prospect()
        _known(request.names - known, prospect)
        late = [r for r in prospect.rejections if r.place.file in files]
        if late:  # only the kernel could find fault with it
            raise RefusedError(late, files)
        one.keep_books(prospect, old)
    outcomes = one.settle(prospect)
    report = report_of(prospect, done(outcomes), started, dry=False)
    note_troubles(one.record, report, prospect, scope=one.only, now=time.time())
    after = prospect
    if outcomes:
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
