"""Doubts: what files say that `runcnet try` took back, because nobody confirmed it.

A doubted file counts as rejected, and what it said before the trial stands in for it, until it says
something else or somebody accepts it.
"""

from collections.abc import Mapping

from reconciler.core.digests import sha256
from reconciler.core.model import Place, Rejection

ABSENT = b""
"""The digest of a file that is not there: its removal is doubted."""

Doubts = Mapping[str, Mapping[bytes, str]]
"""File → digest of what is doubted → why it was taken back."""


def digest(content: bytes | None) -> bytes:
    """What a doubt knows of a file's content; None: the file is not there."""
    return ABSENT if content is None else sha256(content).digest()


def doubt(file: str, content: bytes | None, reasons: Mapping[bytes, str]) -> Rejection | None:
    """The rejection of a file that says again what was taken back; None: it says something else."""
    reason = reasons.get(digest(content))
    if reason is None:
        return None
    what, edit = ("its removal ", "put it back") if content is None else ("", "change the file")
    return Rejection(
        place=Place(file, 1, 1),
        path="",
        message=f"{what}was taken back by `runcnet try`: {reason} ({edit}, run `runcnet apply`, "
        "or run `runcnet try` again and confirm)",
    )


def restored(now: Mapping[str, bytes], tried: Mapping[str, bytes | None]) -> dict[str, bytes]:
    """What was remembered before a trial.

    `now`: what is remembered at its end; `tried`: what was remembered of each file that it changed
    (None: nothing).
    """
    kept = {file: content for file, content in now.items() if file not in tried}
    return kept | {file: content for file, content in tried.items() if content is not None}


def differing(now: Mapping[str, bytes], before: Mapping[str, bytes]) -> dict[str, bytes]:
    """File → digest of what it says now, of each that says something else than before."""
    return {
        file: digest(now.get(file))
        for file in [*now, *(name for name in before if name not in now)]
        if now.get(file) != before.get(file)
    }
