"""Whose a definition file must be, and who may write to it and to the way that leads to it."""

import os
import stat

from reconciler.host.userns import from_outside, is_ours


def untrusted(found: os.stat_result, path: str) -> str:
    """What is wrong with a file or folder itself; empty: nothing."""
    if from_outside(found.st_uid):
        return (
            f"{path} is owned by an id that this user namespace does not know: copy it into a folder "
            "of your own, and give that as --config-dir"
        )
    if not is_ours(found.st_uid):
        return f"{path} is owned by neither root nor the caller: chown root {path}"
    if found.st_mode & 0o022:
        return f"{path} is writable by group or others: chmod go-w {path}"
    return ""


def trusted_way(folder: str) -> str:
    """What is wrong with a folder or one above it: who can rename in it can replace what it holds.

    In a user namespace the machine's root cannot be told from others that are not known there. Above
    a folder of the caller's own it is taken for granted: /, /home.
    """
    way = os.path.realpath(folder)
    child: os.stat_result | None = None
    while True:
        found = os.stat(way)
        above = child is not None and from_outside(found.st_uid)
        sticky = found.st_mode & stat.S_ISVTX and (above or is_ours(found.st_uid))
        if sticky:
            if child is not None and not (is_ours(child.st_uid) or from_outside(child.st_uid)):
                return f"{way} is shared, and the next part belongs to somebody else: chown root"
        elif above:
            if found.st_mode & 0o022:
                return untrusted(found, way)
        else:
            problem = untrusted(found, way)
            if problem:
                return problem
        if way == "/":
            return ""
        child, way = found, os.path.dirname(way)
