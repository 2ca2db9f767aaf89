"""`runcnet validate`: judge files without touching anything; any user may."""

from collections.abc import Sequence

from reconciler.core.model import Place, Rejection
from reconciler.core.spec import Candidate, load
from reconciler.host import yamlfile


def validate(files: Sequence[str], folders: Sequence[str]) -> tuple[list[Rejection], int]:
    """The errors of `files` (of the folders where none is given), and how many files were judged.

    What `files` refer to and do not declare is looked up in the folders.
    """
    sources = yamlfile.read_folders(folders)
    if not files:
        candidates = [_candidate(s.content, s.file) for s in sources.files]
        loaded = load(candidates)
        return [*sources.rejections, *loaded.rejections], len(candidates)
    candidates, broken = [], []
    for file in files:
        try:
            candidates.append(_candidate(yamlfile.read_file(file).content, file))
        except OSError as error:
            broken.append(_rejection(file, f"cannot be read: {error.strerror}"))
        except ValueError as error:
            broken.append(_rejection(file, str(error)))
    alone = load(candidates)
    if alone.rejections and sources.files:
        # With the folders' files as a backdrop: theirs count only for what is declared nowhere else.
        mine = {(k, n) for c in candidates if c.tree for k, n in _names(c)}
        backdrop = [_candidate(s.content, s.file) for s in sources.files if s.file not in files]
        backdrop = [c for c in backdrop if c.tree and not mine & set(_names(c))]
        alone = load([*backdrop, *candidates])
    judged = set(files)
    return broken + [r for r in alone.rejections if r.place.file in judged], len(files)


def _names(candidate: Candidate) -> list[tuple[str, str]]:
    root = candidate.tree.root if candidate.tree else None
    if not isinstance(root, dict):
        return []
    sections = [(k, root.get(k)) for k in ("networks", "containers")]
    return [(kind, name) for kind, part in sections if isinstance(part, dict) for name in part]


def _candidate(content: bytes, file: str) -> Candidate:
    tree, rejections = yamlfile.parse(content, file)
    return Candidate(file=file, tree=tree, rejections=rejections)


def _rejection(file: str, message: str) -> Rejection:
    return Rejection(place=Place(file, 1, 1), path="", message=message)
