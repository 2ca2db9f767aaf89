"""Hooks served by the daemon: attaching and taking away by a small pass, where that does."""

import time
from collections.abc import Sequence
from typing import NoReturn

from reconciler.attaching import (
    attachment_of,
    check_free,
    failure,
    first_address,
    holder,
    refusal,
    scope,
)
from reconciler.core.agenda import ALL
from reconciler.core.attached import Attachment
from reconciler.core.errors import LockedError, RuncnetError
from reconciler.core.model import Loaded
from reconciler.core.request import ATTACHING, Request
from reconciler.hook import asked, called, options_for, plain
from reconciler.host import ipfile, lock
from reconciler.keeper import Keeper
from reconciler.options import Parser, common
from reconciler.part import Widen
from reconciler.prospect import Settings


class ElsewhereError(Exception):
    """The call is meant for other folders than this daemon's."""


def understood(words: Sequence[str], stdin: bytes, settings: Settings) -> Request:
    """The call that a command line `hook STAGE ...` makes.

    Raises RuncnetError, and ElsewhereError where this daemon is not the one to serve it.
    """
    if not words or words[0] != "hook":
        raise ElsewhereError
    call = plain(words[1:])
    if call is None:
        parser = Quiet(prog="runcnet hook", parents=[common()])
        options_for(parser)
        call = called(parser.parse_args(words[1:]))
    theirs = call.settings
    firewall = settings.firewall if theirs.firewall == "auto" else theirs.firewall
    mine = (settings.config_dirs, settings.state_dir, settings.netns_dir, settings.run_dir)
    if mine != (theirs.config_dirs, theirs.state_dir, theirs.netns_dir, theirs.run_dir) or (
        firewall != settings.firewall
    ):
        raise ElsewhereError
    return asked(call, stdin)


class Quiet(Parser):
    """Leaves it to the caller's own process to say what is wrong with a command line."""

    def error(self, message: str) -> NoReturn:
        raise ElsewhereError

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        raise ElsewhereError


class Guests:
    """Attachments, as the daemon makes and ends them."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper

    def serve(self, request: Request) -> None:
        """Do it. Raises RuncnetError, and LockedError at once where somebody else is at work."""
        settings = self._keeper.settings
        with lock.hold(settings.run_dir, settings.state_dir, timeout_s=0):
            self._catch_up()
            try:
                if request.stage in ATTACHING:
                    self._attach(request)
                else:
                    self._detach(request.name)
            finally:
                self._keeper.shelf.newcomer = ""
                self._keeper.books.settle()

    def _catch_up(self) -> None:
        """Know what is declared and what stands, before anything is decided by it."""
        k = self._keeper
        stale = k.books.renew()
        stale = k.settled_trial() or stale
        if stale or k.world is None or ALL in k.agenda.due(time.monotonic()):
            k.whole()
        if k.world is None:
            raise LockedError("files are changing")  # it is tried again

    def _attach(self, request: Request) -> None:
        k = self._keeper
        store, record = k.books.store, k.books.record
        one = attachment_of(request)
        check_free(one, store, record)
        why = self._declared(one.name) or holder(one, store, record, k.settings.netns_dir)
        if why:
            # Before the books know it: they would take what is the other's for its own.
            raise RuncnetError(f"{one.name}: {why}")
        before = store.attachments([one.name]).get(one.name)
        k.shelf.newcomer = one.name
        store.save_attachment(one)
        record.note_spaces({one.name: one.cookie})
        try:
            why = self._join(one)
            if not why and one.ip_file:
                assert k.last is not None  # a pass was made
                ipfile.write(one.ip_file, first_address(k.last[0], one))
        except BaseException:
            self._detach(one.name)
            raise
        if why and before is not None and before.cookie == one.cookie:
            # It was attached already, and stays as it was.
            store.save_attachment(before)
            self._join(before)
        elif why:
            self._detach(one.name)
        if why:
            raise RuncnetError(f"{one.name}: {why}")

    def _declared(self, name: str) -> str:
        """Where a file declares it; empty: nowhere."""
        assert self._keeper.world is not None  # we have caught up
        found = self._keeper.world.declared.loaded.spec.containers.get(name)
        if found is None or found.hooked:
            return ""
        return f"container {name} is declared at {found.place.file}:{found.place.line} already"

    def _join(self, one: Attachment) -> str:
        """Make it; answers why it is not as it should be."""
        if self._declare(one.name, one):
            try:
                self._keeper.part(frozenset({f"container/{one.name}"}))
            except Widen:
                pass
            else:
                if not self._verdict(one):
                    return ""
        # What is refused is refused by who has looked at everything.
        self._whole()
        return self._verdict(one)

    def _whole(self, *, leaving: str = "") -> None:
        self._keeper.last = None
        self._keeper.whole(leaving=leaving)
        if self._keeper.last is None:
            raise LockedError("files are changing")  # it is tried again

    def _declare(self, name: str, one: Attachment | None) -> bool:
        """Take it into what is declared, or out again; whether a small pass will do."""
        k = self._keeper
        assert k.world is not None  # we have caught up
        if k.books.store.trials.pending() or k.books.store.trials.doubts():
            return False
        declared = k.shelf.read_again((), k.books.store.memory, {name: one})
        names = k.world.differing(declared)
        if names is None:
            return False
        k.world.declare(declared, names)
        return True

    def _verdict(self, one: Attachment) -> str:
        k = self._keeper
        assert k.last is not None  # a pass was made
        prospect, report = k.last

        def alone() -> Loaded:
            memory = k.books.store.memory
            found = k.shelf.read_again((), memory, {one.name: None}).loaded
            k.shelf.read_again((), memory, {one.name: one})
            return found

        return refusal(prospect, one, alone) or failure(report, one)

    def _detach(self, name: str) -> None:
        k = self._keeper
        one = k.books.store.attachments([name]).get(name)
        if one is None:
            return
        small = self._declare(name, None)
        try:
            if not small:
                raise Widen("what else is declared is to be judged again")
            # Where its end is gone already, what it leaves is in the networks.
            k.part(scope(one) - {"host"}, leaving=name)
        except Widen:
            k.books.store.save_attachment(one)
            self._whole(leaving=name)
        assert k.last is not None  # a pass was made
        wrong = failure(k.last[1], one)
        if wrong:
            raise RuncnetError(f"{name}: {wrong}")
