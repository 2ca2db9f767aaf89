"""The front door: `runcnet-reconcile` and `runcnet`.

A container's start waits for a hook: what the other commands need is not loaded for it.
"""

import gc
import os
import sys
from collections.abc import Sequence
from typing import NoReturn


def reconcile_main(argv: Sequence[str] | None = None) -> int:
    """`runcnet-reconcile`, up to its exit code."""
    from reconciler import verbs

    return verbs.reconcile(sys.argv[1:] if argv is None else argv)


def reconcile_entry() -> NoReturn:
    """`runcnet-reconcile` as a program: what it holds is freed at once by the kernel, where Python
    would take thousands of containers apart piece by piece."""
    gc.disable()  # a pass makes many objects, hardly one in a cycle, and ends
    leave(reconcile_main())


def entry() -> NoReturn:
    """`runcnet` as a program, ended in the same way."""
    if sys.argv[1:2] == ["hook"]:
        gc.disable()  # it lives for a moment, and what is loaded in it stays to the end
    leave(main())


def leave(code: int) -> NoReturn:
    """End the process."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            break
    os._exit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """`runcnet`, up to its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["hook"]:
        from reconciler import hook

        return hook.main(words[1:])
    from reconciler import verbs

    return verbs.main(words)


if __name__ == "__main__":
    raise SystemExit(main())
