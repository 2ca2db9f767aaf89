"""Files → what is declared: rejected files stand in with what they said when they last loaded."""

import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial

import msgspec

from reconciler.core.amend import Standing
from reconciler.core.attached import Attached, Attachment, file_of
from reconciler.core.doubts import Doubts, doubt
from reconciler.core.memory import QUIET_NS, Grown, Memory, Now, grown
from reconciler.core.model import Loaded, Rejection
from reconciler.core.spec import Candidate, load
from reconciler.core.tree import Tree
from reconciler.declared import Declared
from reconciler.host import yamlfile
from reconciler.host.yamlfile import SourceFile

NO_DOUBTS: Doubts = {}
NO_MEMORY = Memory()
NOBODY: Attached = {}


class _Parsed(msgspec.Struct, frozen=True):
    """A file's bytes and what they came to."""

    source: SourceFile
    tree: Tree | None
    problems: tuple[Rejection, ...]


class Shelf:
    """The definition files as they were last read. What has not changed is not parsed again."""

    def __init__(self, folders: Sequence[str]) -> None:
        self.folders = folders
        self._parsed: dict[str, _Parsed] = {}
        self._refused: tuple[Rejection, ...] = ()
        self._hooks: dict[str, Attachment] = {}
        """What hooks attached, by what stands for a file."""
        self.newcomer = ""
        """An attachment that is judged after everything else: it gives way, not those who are there."""
        self._standing: Standing | None = None
        self._ahead: dict[tuple[str, int], float] = {}
        """File or folder and its time, which is still to come → when it was first seen so (seconds
        of the monotonic clock)."""

    def read(
        self,
        memory: Memory = NO_MEMORY,
        doubts: Doubts = NO_DOUBTS,
        attached: Attached = NOBODY,
    ) -> Declared:
        """Read every file, and judge all together. Nothing is raised for what a file says.

        `memory`: what each said when it last loaded; `doubts`: what was tried and taken back;
        `attached`: what hooks attached, which is declared as if by files that come first.
        """
        hooks_before = self._hooks
        self._hooks = {one.file: one for one in attached.values()}
        sources = yamlfile.read_folders(self.folders)
        before = self._parsed
        self._refused = sources.rejections
        self._parsed = {s.file: self._parse(s) for s in sources.files}
        same = before.keys() == self._parsed.keys() and all(
            before[file].source.content == parsed.source.content
            for file, parsed in self._parsed.items()
        )
        same = same and _bodies(hooks_before) == _bodies(self._hooks)
        standing = self._standing
        sound = standing is not None and standing.usable and not self._refused and not doubts
        if same and sound and standing is not None:
            return self._declared(standing.loaded, memory)
        return self._judged(memory, doubts)

    def read_again(
        self,
        files: Collection[str],
        memory: Callable[[], Memory],
        attached: Mapping[str, Attachment | None] = NOBODY,
    ) -> Declared:
        """Read these files again; the others are taken as they were. Not while anything is doubted.

        `attached`: containers that a hook attached, or took away (None).
        """
        self._refused = tuple(r for r in self._refused if r.place.file not in files)
        changed: dict[str, Tree | None] = {}
        for name, one in attached.items():
            self._hooks.pop(file_of(name), None)
            if one is not None:
                self._hooks[one.file] = one
            changed[file_of(name)] = one.tree() if one is not None else None
        for file in sorted(files):
            before = self._parsed.pop(file, None)
            found = yamlfile.read_one(file)
            if isinstance(found, Rejection):
                self._refused += (found,)
            elif found is not None:
                self._parsed[file] = (before and _same(before, found)) or self._parse(found)
            now = self._parsed.get(file)
            if now is None or before is None or now.source.content != before.source.content:
                changed[file] = now.tree if now is not None else None
        if not changed and self._standing is not None and self._standing.usable:
            return self._declared(self._standing.loaded)
        sound = not self._refused and not any(
            self._parsed[file].problems for file in changed if file in self._parsed
        )
        if sound and self._standing is not None:
            loaded = self._standing.amended(changed)
            if loaded is not None:
                return self._declared(loaded)
        return self._judged(memory(), NO_DOUBTS)

    def foresee(
        self, edits: Mapping[str, bytes | None], memory: Memory, doubts: Doubts
    ) -> Declared:
        """What would be declared if these files said this (None: were gone), judged with all others as
        they were last read. Nothing is kept of it."""
        before, refused = self._parsed, self._refused
        try:
            self._refused = tuple(r for r in refused if r.place.file not in edits)
            self._parsed = {f: parsed for f, parsed in before.items() if f not in edits}
            for file, content in edits.items():
                if content is not None:
                    self._parsed[file] = self._parse(SourceFile(file, content, time.time_ns()))
            return self._judged(memory, doubts)
        finally:
            self._parsed, self._refused = before, refused

    def parsed(self, file: str) -> tuple[bytes, Tree | None] | None:
        """What a file said when it was last read, and its tree where it has one; None: no such file."""
        found = self._parsed.get(file)
        return (found.source.content, found.tree) if found is not None else None

    def stand(self, loaded: Loaded) -> None:
        """Be ready to amend what is declared; takes a moment, and is worth it for who stays."""
        if self._standing is None or self._standing.loaded is not loaded:
            self._standing = Standing(loaded, partial(order, folders=self.folders))

    def _rest(self, remembered: Collection[str]) -> dict[str, float]:
        """What changed a moment ago, and when it will have been left alone for long enough."""
        times = {file: parsed.source.modified_ns for file, parsed in self._parsed.items()}
        for folder in map(os.path.normpath, self.folders):
            found = yamlfile.changed_ns(folder)
            if found is None and any(os.path.dirname(file) == folder for file in remembered):
                # It is gone with all that it held: the folder above says when.
                found = yamlfile.changed_ns(os.path.dirname(folder))
            if found is not None:
                times[folder] = found
        now_ns, now = time.time_ns(), time.monotonic()
        ahead, self._ahead = self._ahead, {}
        rest = {}
        recent = [(path, ns) for path, ns in times.items() if ns > now_ns - QUIET_NS]
        for path, changed_ns in recent:
            age_ns = now_ns - changed_ns
            if age_ns < 0:
                # Somebody's clock is or was ahead: such a time says nothing but that it is the same.
                seen = self._ahead[path, changed_ns] = ahead.get((path, changed_ns), now)
                age_ns = int((now - seen) * 1e9)
            if age_ns < QUIET_NS:
                rest[path] = now + (QUIET_NS - age_ns) / 1e9
        return rest

    def _now(self, file: str) -> Now:
        parsed = self._parsed.get(file)
        if parsed is not None:
            return Now(parsed.source.content, parsed.source.modified_ns)
        return Now(None, yamlfile.changed_ns(file))

    def _parse(self, source: SourceFile) -> _Parsed:
        known = self._parsed.get(source.file)
        if known is not None and known.source.content == source.content:
            return _Parsed(source, known.tree, known.problems)
        return _Parsed(source, *yamlfile.parse(source.content, source.file))

    def _declared(
        self, loaded: Loaded, memory: Memory = NO_MEMORY, told: Grown | None = None
    ) -> Declared:
        rest = self._rest(memory.said.keys() | loaded.accepted)
        told = told or grown(memory.young, self._now, restless=rest.__contains__)
        left = memory.young.keys() - told.kept.keys() - told.dropped
        return Declared(
            loaded=loaded,
            contents={file: parsed.source.content for file, parsed in self._parsed.items()},
            times={file: parsed.source.modified_ns for file, parsed in self._parsed.items()},
            rest=rest,
            grown=told,
            memory=Memory(
                {**memory.said, **told.kept}, {file: memory.young[file] for file in left}
            ),
        )

    def _judged(self, memory: Memory, doubts: Doubts) -> Declared:
        told = grown(memory.young, self._now, restless=self._rest(memory.said).__contains__)
        remembered = {**memory.said, **told.kept}
        rejected: dict[str, list[Rejection]] = {}
        for rejection in self._refused:
            rejected.setdefault(rejection.place.file, []).append(rejection)
        trees: dict[str, Tree | None] = {}
        for file, parsed in self._parsed.items():
            trees[file] = parsed.tree
            if parsed.problems:
                rejected.setdefault(file, []).extend(parsed.problems)
        for file in rejected:
            trees.setdefault(file, None)
        # A folder that is refused takes its files out of sight; what they said still counts.
        for file in remembered:
            if os.path.dirname(file) in rejected:
                trees.setdefault(file, None)
                rejected.setdefault(file, [])
        stand_ins: dict[str, Tree | None] = {}
        here = {os.path.normpath(folder) for folder in self.folders}
        for file, reasons in doubts.items():
            found = self._parsed.get(file)
            if found is None and (file in trees or os.path.dirname(file) not in here):
                continue  # out of sight, which does not mean that it is gone
            doubted = doubt(file, found.source.content if found else None, reasons)
            if doubted is not None:
                trees.setdefault(file, None)
                rejected.setdefault(file, []).append(doubted)
                # What was new in the trial said nothing before it.
                stand_ins[file] = yamlfile.parse(remembered.get(file, b""), file)[0]
        self._standing = None
        trees.update((file, one.tree()) for file, one in self._hooks.items())
        late = file_of(self.newcomer)
        while True:
            loaded = load(
                [
                    Candidate(
                        file=file,
                        tree=tree,
                        rejections=tuple(rejected.get(file, ())),
                        remembered=stand_ins.get(file),
                    )
                    for file, tree in sorted(
                        trees.items(),
                        key=lambda item: (item[0] == late, order(item[0], self.folders)),
                    )
                ]
            )
            missing = {f for f in loaded.lost if f in remembered and f not in stand_ins}
            if not missing:
                return self._declared(loaded, memory, told)
            for file in missing:
                stand_ins[file] = yamlfile.parse(remembered[file], file)[0]


def read_declared(folders: Sequence[str]) -> Declared:
    """Read and resolve every definition file once, as `Shelf.read` does."""
    return Shelf(folders).read()


def _bodies(hooks: Mapping[str, Attachment]) -> dict[str, str]:
    return {file: one.body for file, one in hooks.items()}


def _same(before: _Parsed, now: SourceFile) -> _Parsed | None:
    if before.source.content != now.content:
        return None
    return _Parsed(now, before.tree, before.problems)


def order(file: str, folders: Sequence[str]) -> tuple[int, bytes]:
    """Where a file stands among all: folder by folder, in byte order of names."""
    folder = os.path.dirname(file)
    position = next((i for i, f in enumerate(folders) if os.path.normpath(f) == folder), -1)
    return position, os.fsencode(os.path.basename(file))
