"""Whose a definition file must be, and who may write to it and to the way that leads to it."""

import os
import stat


def untrusted(found: os.stat_result, path: str) -> str:
    """What is wrong with a file or folder itself; empty: nothing."""
    if found.st_uid not in (0, os.geteuid()):
        return f"{path} is owned by neither root nor the caller: chown root {path}"
    if found.st_mode & 0o022:
        return f"{path} is writable by group or others: chmod go-w {path}"
    return ""


def trusted_way(folder: str) -> str:
    """What is wrong with a folder or one above it: who can rename in it can replace what it holds.

    Empty: nothing."""
    way = os.path.realpath(folder)
    child: os.stat_result | None = None
    while True:
        found = os.stat(way)
        sticky = found.st_mode & stat.S_ISVTX and found.st_uid in (0, os.geteuid())
        if sticky:
            if child is not None and child.st_uid not in (0, os.geteuid()):
                return f"{way} is shared, and the next part belongs to somebody else: chown root"
        else:
            problem = untrusted(found, way)
            if problem:
                return problem
        if way == "/":
            return ""
        child, way = found, os.path.dirname(way)
