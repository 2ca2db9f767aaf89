"""Attaching a runtime's namespace, and taking it away again, in a process of its own.

A small pass where the index of the run dir tells enough, a look at everything where it does not; the
latter makes the index anew, so that the next hook is quick.
"""

import contextlib
import sys
import time
from collections.abc import Sequence

from reconciler.alone import Alone, Edit, Glimpse
from reconciler.attaching import (
    attachment_of,
    check_free,
    failure,
    first_address,
    holder,
    refusal,
    scope,
)
from reconciler.core.attached import Attachment
from reconciler.core.errors import ObjectError, RuncnetError
from reconciler.core.report import MOTION, Report
from reconciler.core.request import Request
from reconciler.host.index import Index, settled_stamps, stamps
from reconciler.host.observe import adopt
from reconciler.host.removal import Outcome
from reconciler.indexed import consulted, key_of, learn
from reconciler.once import done, opened, report_of
from reconciler.part import Widen
from reconciler.prospect import Prospect, Settings
from reconciler.reconcile import Pass
from reconciler.troubles import note_troubles


def attach(settings: Settings, request: Request) -> None:
    """Join a namespace to networks as if it were declared. Raises RuncnetError; nothing is left then."""
    one = attachment_of(request)
    with Joining(settings, leaving=True) as joining:
        joining.attach(one)


def detach(settings: Settings, request: Request) -> None:
    """Take an attachment away; content where there is none. Raises RuncnetError."""
    with Joining(settings) as joining:
        joining.detach(request.name)


class _HalfDoneError(RuncnetError):
    """Something was made, and it is not whole."""


class Joining:
    """State, record and index while one attachment is made or taken away, under the lock."""

    def __init__(self, settings: Settings, *, leaving: bool = False) -> None:
        """`leaving`: see `opened`."""
        self._settings = settings
        self._opened = opened(settings, change=True, leaving=leaving)

    def __enter__(self) -> "Joining":
        self._store, self._record = self._opened.__enter__()
        try:
            self._index = Index.open(self._settings.run_dir)
        except BaseException:
            self._opened.__exit__(*sys.exc_info())
            raise
        return self

    def __exit__(self, *raised: object) -> None:
        if self._index is not None:
            self._index.close()
        self._opened.__exit__(*raised)  # type: ignore[arg-type]

    def attach(self, one: Attachment) -> None:
        """Make it. Raises RuncnetError; nothing is left then."""
        check_free(one, self._store, self._record)
        if not self._record.present:
            # Whose is whose is read back before a newcomer is among them.
            current = self._pass(None)
            _, spec, _ = current.read()
            adopt(self._record, current.observe(spec), netns_dir=self._settings.netns_dir)
        before = self._store.attachments([one.name]).get(one.name)
        try:
            try:
                address = self._small(one, leaving=False)
            except Widen:
                address = self._whole(one)
            if one.ip_file:
                from reconciler.host import ipfile

                ipfile.write(one.ip_file, address)
        except BaseException as error:
            # Who was refused is in no book; what was there before stays then.
            now = self._store.attachments([one.name]).get(one.name)
            if isinstance(error, _HalfDoneError | ObjectError) or now == one != before:
                with contextlib.suppress(RuncnetError):  # the next pass finds that it has ended
                    self.detach(one.name)
            if isinstance(error, _HalfDoneError):
                raise RuncnetError(str(error)) from error
            raise

    def detach(self, name: str) -> None:
        """Take it away; content where there is none. Raises RuncnetError."""
        one = self._store.attachments([name]).get(name)
        if one is None:
            return
        try:
            self._small(one, leaving=True)
        except Widen:
            self._store.save_attachment(one)
            self._leave(one)

    # -- where the index tells enough -------------------------------------------------------------

    def _small(self, one: Attachment, *, leaving: bool) -> str:
        """Answers with the first address, if any. Raises Widen, RuncnetError and _HalfDoneError."""
        started = time.monotonic()
        settings, store, record, index = self._settings, self._store, self._record, self._index
        if index is None:
            raise Widen("there is no index")
        files, known = consulted(settings, store, record, index)
        edit = Edit(one.file, None, None if leaving else one.tree())
        with store.transaction():
            held = "" if leaving else holder(one, store, record, settings.netns_dir)
            if not leaving:
                store.save_attachment(one)
            world = Glimpse(known, index, store, record, frozenset({one.name}), {one.name: edit})
            # Where its end is gone already, what it leaves is in the networks.
            only = scope(one) - {"host"} if leaving else scope(one)
            current = Alone(settings, store=store, record=record, world=world, only=only)
            if leaving:
                current.hooked.leave(one.name)
            prospect = current.look()
            why = "" if leaving else refusal(prospect, one, lambda: prospect.declared.loaded)
            if why or held:
                raise Widen(why or held)  # it is refused by who has looked at everything
            old, world.book = world.book, prospect.assignment.book
            current.keep_books(prospect, old)
        if not leaving:
            record.note_spaces({one.name: one.cookie})
        report = self._carried(current, prospect, started)
        if report.operations:
            world.renew_hosts(settings.run_dir, prospect.assignment.addresses)
        if report.held or report.failed:
            index.forget()  # what stands there is not what is declared
        else:
            index.change(key_of(settings, store, record), [one.name], world.fresh.values(), files)
        return self._outcome(one, prospect, report, leaving=leaving)

    # -- where it does not --------------------------------------------------------------------------

    def _whole(self, one: Attachment) -> str:
        """Answers with the first address."""
        from reconciler.load import Shelf

        started = time.monotonic()
        store = self._store
        found = stamps(self._settings.config_dirs)
        with store.transaction():
            old = store.book()
            held = holder(one, store, self._record, self._settings.netns_dir)
            store.save_attachment(one)
            current = self._pass(scope(one))
            current.shelf.newcomer = one.name
            prospect = current.look()
            if prospect.declared.restless_s:
                prospect = current.look(restless=MOTION)
            known = current.hooked.known
            others = {name: other for name, other in known.items() if name != one.name}
            memory, doubts = store.memory(), store.trials.doubts()
            folders = self._settings.config_dirs
            why = refusal(prospect, one, lambda: Shelf(folders).read(memory, doubts, others).loaded)
            if why or held:
                raise RuncnetError(f"{one.name}: {why or held}")
            current.keep_books(prospect, old)
        self._record.note_spaces({one.name: one.cookie})
        report = self._carried(current, prospect, started)
        if self._index is not None and found is not None:
            learn(self._index, settled_stamps(found), prospect, current)
        return self._outcome(one, prospect, report, leaving=False)

    def _leave(self, one: Attachment) -> None:
        started = time.monotonic()
        found = stamps(self._settings.config_dirs)
        with self._store.transaction():
            old = self._store.book()
            current = self._pass(frozenset({f"container/{one.name}"}))
            current.hooked.leave(one.name)
            prospect = current.look(restless="a hook takes away what is its own alone")
            current.keep_books(prospect, old)
        report = self._carried(current, prospect, started)
        if self._index is not None and found is not None:
            learn(self._index, settled_stamps(found), prospect, current)
        self._outcome(one, prospect, report, leaving=True)

    def _pass(self, only: frozenset[str] | None) -> Pass:
        store, record = self._store, self._record
        return Pass(self._settings, store=store, record=record, changing=True, only=only)

    # -- both -----------------------------------------------------------------------------------------

    def _carried(self, current: Pass, prospect: Prospect, started: float) -> Report:
        outcomes: Sequence[Outcome] = current.settle(prospect)
        report = report_of(prospect, done(outcomes), started, dry=False)
        note_troubles(self._record, report, prospect, scope=current.only, now=time.time())
        return report

    def _outcome(
        self, one: Attachment, prospect: Prospect, report: Report, *, leaving: bool
    ) -> str:
        """The first address of what was attached. Raises where something went wrong."""
        if not leaving:
            wrong = failure(report, one)
            if wrong:
                raise _HalfDoneError(wrong)
            return first_address(prospect, one)
        failed = next((d for d in report.operations if d.ok is False), None)
        if failed is not None:
            raise RuncnetError(f"{one.name}: {failed.operation.describe()}: {failed.error}")
        return ""
