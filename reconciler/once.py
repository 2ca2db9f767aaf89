"""A pass that opens what it needs, and says what came of it: `runcnet-reconcile --once`."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from reconciler.host import lock, rtnl
from reconciler.host.record import Record
from reconciler.host.store import Store
from reconciler.looking import begun
from reconciler.settings import Settings

if TYPE_CHECKING:
    from reconciler.core.report import Done, Report
    from reconciler.host.removal import Outcome
    from reconciler.prospect import Prospect

_LEFT: list[Store | Record] = []
"""What is left open: an object that nobody holds any more would close its database."""


@contextlib.contextmanager
def opened(
    settings: Settings, *, change: bool, leaving: bool = False
) -> Iterator[tuple[Store, Record]]:
    """The state and run dirs, under the lock where something is to be changed.

    `leaving`: the process ends after it, and with it what it has open. To close a database would move
    its log into it, for which the disk is waited for; whoever opens it next reads the log as well.
    """
    with contextlib.ExitStack() as stack:
        if change:
            stack.enter_context(
                lock.hold(
                    settings.run_dir,
                    settings.state_dir,
                    timeout_s=settings.lock_timeout_s,
                )
            )
        store = Store.open(settings.state_dir, read_only=not change)
        if leaving:
            _LEFT.append(store)
        else:
            stack.callback(store.close)
        if store.trial() is not None:
            from reconciler import trial

            trial.settle(store, settings.config_dirs)
        record = Record.open(settings.run_dir, cookie=rtnl.cookie(), read_only=not change)
        if leaving:
            _LEFT.append(record)
        else:
            stack.callback(record.close)
        yield store, record


def reconcile(
    settings: Settings,
    *,
    dry_run: bool = False,
    only: frozenset[str] | None = None,
    stop: Callable[[], bool] = lambda: False,
    begin: Callable[[int], Callable[[int], None]] = lambda total: lambda count: None,
    first: Callable[[Store], None] = lambda store: None,
    decide: "Callable[[Store, Prospect], None]" = lambda store, prospect: None,
) -> "Report":
    """One pass. `begin` is told how many operations there are and answers with a progress callback.

    `first` and `decide` are called inside its transaction, before anything is read and before the
    kernel is changed; where one raises Declined, nothing is changed and the plan is the report.

    Raises LockedError, StoreError and ObjectError for what stops the whole pass.
    """
    started = time.monotonic()
    with opened(settings, change=not dry_run) as (store, record):
        # The kernel answers while the rest of the program is loaded.
        ahead = begun(settings, store, record, store.attachments().values())
        from reconciler.core.report import Done
        from reconciler.prospect import Declined
        from reconciler.reconcile import Pass
        from reconciler.troubles import note_troubles

        one = Pass(
            settings,
            store=store,
            record=record,
            changing=not dry_run,
            only=only,
            stop=stop,
            ahead=ahead,
        )
        try:
            with store.transaction():
                first(store)
                old = store.book()
                prospect = one.prospect()
                if dry_run:
                    raise Declined
                one.keep_books(prospect, old)
                decide(store, prospect)
        except Declined:
            planned = [Done(operation=op, ok=None) for op in prospect.operations]
            return report_of(prospect, planned, started, dry=True)
        total = len(prospect.operations)
        one.progress = begin(total)
        outcomes = one.settle(prospect)
        stopped = len(outcomes) < total
        report = report_of(prospect, done(outcomes), started, dry=False, stopped=stopped)
        note_troubles(record, report, prospect, scope=only, now=time.time())
        return report


def done(outcomes: "Iterable[Outcome]") -> "list[Done]":
    """Outcomes as a report has them."""
    from reconciler.core.report import Done

    return [Done(operation=o.operation, ok=o.error is None, error=o.error) for o in outcomes]


def report_of(
    prospect: "Prospect",
    done: "list[Done]",
    started: float,
    *,
    dry: bool,
    stopped: bool = False,
) -> "Report":
    from reconciler.core.report import Report
    from reconciler.prospect import held_once

    declared = {f"network/{name}" for name in prospect.spec.networks}
    declared |= {f"container/{name}" for name in prospect.spec.containers}
    return Report(
        operations=tuple(done),
        problems=prospect.problems,
        held=held_once(prospect.plan.held),
        rejections=prospect.rejections,
        notes=tuple(dict.fromkeys([*prospect.notes, *prospect.wall.notes])),
        declared=frozenset(declared),
        duration_s=time.monotonic() - started,
        dry=dry,
        stopped=stopped,
    )
