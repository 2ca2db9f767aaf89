"""Taking containers away: unmount all, let the kernel reap them together, look that it did."""

import errno
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import msgspec

from reconciler.core import ops
from reconciler.core.observed import FileState
from reconciler.core.ops import Operation
from reconciler.host import netns, rtnl, steps
from reconciler.host.batch import Batch
from reconciler.host.record import Record

REMOVED = 16384
"""Containers removed before their links are waited for: the kernel reaps them together."""
PROBE = 64
"""Links asked for at once while they are waited for."""
STALL_S, STALL_EACH_S = 3.0, 0.005
"""How long the kernel may reap nothing before namespaces count as held by somebody; and for each of
them, for it takes many through each step of their end together, and their links go last."""


class Outcome(msgspec.Struct, frozen=True):
    """What became of an operation; `error` None: it was carried out."""

    operation: Operation
    error: str | None


def clear_points(record: Record, netns_dir: str, files: Mapping[str, FileState]) -> None:
    """Take away mount points that were made here, where nothing is mounted and nothing is to be: somebody
    unmounted them before their container went. `files`: of the netns dir, those that nobody is to have."""
    gone = [
        path
        for path in record.points()
        if files.get(path.removeprefix(f"{netns_dir}/")) is FileState.PLACEHOLDER
    ]
    for path in gone:
        netns.clear(path)
    record.note_left(gone)


class Removals:
    """The part of carrying out that removes; see `apply.py` for the rest."""

    record: Record
    stop: Callable[[], bool]

    def finish_removals(self) -> None:
        """Take away the mount points that a kill between unmounting and unlinking has left."""
        paths = self.record.leaving()
        for path in paths:
            netns.clear(path)
        self.record.note_left(paths)

    def remove(self, removals: Sequence[Operation]) -> Iterator[Outcome]:
        """Take containers away: unmount all, let the kernel reap them together, look that it did."""
        for start in range(0, len(removals), REMOVED):
            if self.stop():
                return
            part = [
                o for o in removals[start : start + REMOVED] if isinstance(o, ops.RemoveContainer)
            ]
            bound = [op for op in part if op.path]
            self.record.note_leaving(op.path for op in bound)
            codes = dict(
                zip((op.path for op in bound), rtnl.unbind([o.path for o in bound]), strict=True)
            )
            self.record.note_left(path for path, code in codes.items() if not code)
            left = {i for op in part if not codes.get(op.path) for i in op.ends}
            gone = (
                self._reap({op: op.ends for op in part if not codes.get(op.path)}) if left else {}
            )
            self._forget_neighbours([op for op in part if not codes.get(op.path)])
            clean = [op for op in part if not codes.get(op.path) and not gone.get(op)]
            self.record.forget(
                containers=[op.name for op in clean], ends=[i for op in clean for i in op.ends]
            )
            for op in part:
                code = codes.get(op.path, 0)
                error = f"unmount {op.path}: {os.strerror(code)}" if code else gone.get(op)
                yield Outcome(op, error)

    def _forget_neighbours(self, removed: Sequence[ops.RemoveContainer]) -> None:
        """What is gone already is no failure, hence a job for each."""
        batch = Batch()
        for op in removed:
            if op.neighbours:
                batch.host()
                steps.forget_neighbours(batch, op.neighbours)
        batch.run()

    def _reap(self, ends: dict[ops.RemoveContainer, tuple[int, ...]]) -> dict[Operation, str]:
        """Wait for host ends to go with their namespaces; answers with the ops that left some.

        Where the path was gone before, nothing will reap the ends, nor where processes live behind
        them: these are deleted. Whoever came into the namespace meanwhile keeps them, but by force.
        """
        failed: dict[Operation, str] = {}
        waiting = {i for op, indexes in ends.items() if op.path and not op.in_use for i in indexes}
        waiting = self._wait_gone(waiting)
        standing = _standing({i for indexes in ends.values() for i in indexes})
        batch = Batch()
        jobs: list[Operation] = []
        for op, indexes in ends.items():
            if waiting.intersection(indexes) and not op.forced:
                failed[op] = "something still lives in its namespace (the next pass looks again)"
                continue
            for index in indexes:
                if index in standing:
                    batch.host()
                    batch.delete_link(index, inside=False)
                    jobs.append(op)
        for job, result in zip(jobs, batch.run() if jobs else [], strict=True):
            # It may have gone with its namespace in the meantime.
            if result.failures and result.failures[0].errno != errno.ENODEV:
                failed[job] = steps.failure_text(result)
        return failed

    def _wait_gone(self, waiting: set[int]) -> set[int]:
        """Wait for links to go, a few at a time; those that are left when nothing moves any more."""
        left = sorted(waiting)
        patience_s = STALL_S + STALL_EACH_S * len(left)
        deadline = time.monotonic() + patience_s
        while left:
            some = left[:PROBE]
            standing = _standing(some)
            if len(standing) < len(some):
                left = sorted(standing) + left[PROBE:]
                deadline = time.monotonic() + patience_s
            elif time.monotonic() > deadline:
                # The first ones stay; others may have gone behind them.
                return _standing(left)
            else:
                time.sleep(0.005)
        return set()


def _standing(indexes: Collection[int]) -> set[int]:
    """Which of the host's links are still there."""
    found = rtnl.scan_host(links=tuple(indexes), links_only=True).links if indexes else ()
    return {link.index for link in found}
