"""Files → what is declared: rejected files stand in with what they said when they last loaded."""

import os
import time
from collections.abc import Mapping, Sequence

import msgspec

from reconciler.core.doubts import Doubts, doubt
from reconciler.core.model import Rejection
from reconciler.core.spec import Candidate, Loaded, Tree, load
from reconciler.host import yamlfile

QUIET_NS = 1_000_000_000
"""How long files must have been left alone before anything is removed: most prefixes of a YAML file
are valid YAML."""


class Declared(msgspec.Struct, frozen=True, kw_only=True):
    """What the folders declare, and the bytes that said so."""

    loaded: Loaded
    contents: dict[str, bytes]
    """Every readable file."""
    newest_ns: int
    """When the last of them changed (nanoseconds since the epoch, at most now)."""

    @property
    def restless_s(self) -> float:
        """How long until the files have been left alone for long enough; 0: they have."""
        return max(0.0, (self.newest_ns + QUIET_NS - time.time_ns()) / 1e9)

    @property
    def unsure(self) -> str:
        """Why it is not known what is declared; empty: it is."""
        lost = sorted(self.loaded.lost)
        if lost:
            return f"{lost[0]} is rejected, and what it declared is not remembered"
        if self.loaded.stuck:
            return self.loaded.stuck
        for name, why in self.loaded.waiting.items():
            return f"{name} cannot be judged: {why}"
        return ""

    @property
    def keep(self) -> str:
        """Why nothing undeclared may be removed; empty: it may."""
        spec = self.loaded.spec
        if not self.unsure and not spec.networks and not spec.containers:
            return "no file declares anything (`runcnet teardown` removes all)"
        return self.unsure


NO_DOUBTS: Doubts = {}


def read_declared(
    folders: Sequence[str], remembered: Mapping[str, bytes], doubts: Doubts = NO_DOUBTS
) -> Declared:
    """Read and resolve every definition file; nothing is raised for what a file says.

    `remembered`: what each said when it last loaded; `doubts`: what was tried and taken back.
    """
    sources = yamlfile.read_folders(folders)
    rejected: dict[str, list[Rejection]] = {}
    for rejection in sources.rejections:
        rejected.setdefault(rejection.place.file, []).append(rejection)
    trees: dict[str, Tree | None] = {}
    contents = {}
    for source in sources.files:
        tree, problems = yamlfile.parse(source.content, source.file)
        trees[source.file] = tree
        contents[source.file] = source.content
        if problems:
            rejected.setdefault(source.file, []).extend(problems)
    for file in rejected:
        trees.setdefault(file, None)
    # A folder that is refused takes its files out of sight; what they said still counts.
    for file in remembered:
        if os.path.dirname(file) in rejected:
            trees.setdefault(file, None)
            rejected.setdefault(file, [])
    stand_ins: dict[str, Tree | None] = {}
    here = {os.path.normpath(folder) for folder in folders}
    for file, reasons in doubts.items():
        content = contents.get(file)
        if content is None and (file in trees or os.path.dirname(file) not in here):
            continue  # out of sight, which does not mean that it is gone
        doubted = doubt(file, content, reasons)
        if doubted is not None:
            trees.setdefault(file, None)
            rejected.setdefault(file, []).append(doubted)
            # What was new in the trial said nothing before it.
            stand_ins[file] = yamlfile.parse(remembered.get(file, b""), file)[0]
    while True:
        loaded = load(
            [
                Candidate(
                    file=file,
                    tree=tree,
                    rejections=tuple(rejected.get(file, ())),
                    remembered=stand_ins.get(file),
                )
                for file, tree in sorted(trees.items(), key=lambda item: _order(item[0], folders))
            ]
        )
        missing = {f for f in loaded.lost if f in remembered and f not in stand_ins}
        if not missing:
            return Declared(loaded=loaded, contents=contents, newest_ns=sources.newest_ns)
        for file in missing:
            stand_ins[file] = yamlfile.parse(remembered[file], file)[0]


def _order(file: str, folders: Sequence[str]) -> tuple[int, bytes]:
    folder = os.path.dirname(file)
    position = next((i for i, f in enumerate(folders) if os.path.normpath(f) == folder), -1)
    return position, os.fsencode(os.path.basename(file))
