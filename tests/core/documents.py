"""Loading text in tests."""

from reconciler.core.model import Loaded
from reconciler.core.spec import Candidate, load
from reconciler.host.yamlfile import parse


def loaded(**files: str | bytes) -> Loaded:
    """Load files given as name=text, in that order."""
    candidates = []
    for name, text in files.items():
        tree, rejections = parse(text.encode() if isinstance(text, str) else text, name)
        candidates.append(Candidate(file=name, tree=tree, rejections=rejections))
    return load(candidates)


def messages(result: Loaded) -> list[str]:
    """All errors as people see them."""
    return [str(r) for r in result.rejections]
