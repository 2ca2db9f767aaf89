"""Calls of hooks, as they come in through the daemon's door, in turn."""

import select
import time
import traceback

from reconciler.core.agenda import ALL
from reconciler.core.errors import LockedError, RuncnetError, StoreError, UsageError
from reconciler.guests import ElsewhereError, Guests, understood
from reconciler.host.door import ELSEWHERE, Door, Request
from reconciler.keeper import Keeper
from reconciler.running import FAILED, LOCKED, OK, USAGE
from reconciler.terminal import Terminal


class Reception:
    """Who calls is answered in the order of the calls."""

    def __init__(self, keeper: Keeper, poll: select.poll, *, terminal: Terminal) -> None:
        self._keeper = keeper
        self._terminal = terminal
        self._guests = Guests(keeper)
        self._door = Door(keeper.settings.run_dir, poll)
        self._calls: list[Request] = []

    def close(self) -> None:
        """Whoever still waits does it himself."""
        self._door.close()

    @property
    def called(self) -> bool:
        """Whether somebody waits for an answer."""
        return bool(self._calls)

    def hear(self, fd: int) -> bool:
        """Take in what that descriptor has brought; whether it is one of the door's."""
        if not self._door.knows(fd):
            return False
        call = self._door.hear(fd)
        self._calls += [call] if call is not None else []
        return True

    def sweep(self, now: float) -> None:
        """Send those off who do not say what they want; be there for the next ones."""
        self._door.renew()
        self._door.sweep(now)

    def serve(self) -> None:
        """Answer the next call. Raises LockedError where that has to wait for somebody else's work."""
        call = self._calls[0]
        if not self._door.waits(call):
            # A start that was given up: the process may be another by now that has its number.
            self._calls.pop(0)
            self._door.leave(call)
            return
        try:
            code, text = self._answer(call)
        except LockedError as error:
            if time.monotonic() - call.since <= self._keeper.settings.lock_timeout_s:
                raise
            code, text = LOCKED, str(error)
        self._calls.pop(0)
        self._door.answer(call, code, text)

    def _answer(self, call: Request) -> tuple[int, str]:
        """What a call comes to: an exit code, and what is to be said."""
        try:
            self._guests.serve(understood(call.words, call.stdin, self._keeper.settings))
        except ElsewhereError:
            return ELSEWHERE, ""
        except LockedError:
            raise
        except UsageError as error:
            return USAGE, str(error)
        except (StoreError, OSError) as error:
            # It may have ended between the books and what is known of them.
            self._keeper.agenda.mark([ALL], time.monotonic())
            return FAILED, str(error)
        except RuncnetError as error:
            return FAILED, str(error)
        except Exception:  # a mistake of ours: whoever asks can do it himself
            self._terminal.log("error", traceback.format_exc())
            self._keeper.close()
            self._keeper.agenda.mark([ALL], time.monotonic())
            return ELSEWHERE, ""
        return OK, ""
