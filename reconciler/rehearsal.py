"""`runcnet try`: a pass that is taken back unless somebody confirms it in time.

It is for those whom the change may cut off. So nothing that can wait for a terminal stands between
the change and the end of its time: what is printed meanwhile is printed while the alarm is armed,
and the question goes through a description of the terminal that never blocks.
"""

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from reconciler import trial
from reconciler.core.errors import LockedError, RuncnetError
from reconciler.core.model import Spec
from reconciler.core.report import Report
from reconciler.host.machine import boot_id
from reconciler.host.procs import started
from reconciler.host.store import Store
from reconciler.host.trials import CONFIRM, TAKE_BACK, Trial
from reconciler.once import opened, reconcile
from reconciler.prompt import Prompt, Rung, Signals
from reconciler.prospect import Declined, Prospect, Settings
from reconciler.reconcile import Pass

PAUSE_S = 0.15
"""How often the store is asked whether another process has answered."""
PATIENCE_S = 300.0
"""How long the take-back waits for another run at least."""
NO_MEMORY = (
    "nothing can be tried: what the files said before is not remembered, and so could not be taken "
    "back to (run `runcnet apply` once)"
)
ANSWERED = "it was answered with `runcnet try --take-back`"
CONFIRMED, TAKEN_BACK, NOTHING = "confirmed", "taken back", "nothing to try"
REJECTED, ENDED = "rejected", "ended"


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """How a trial ended."""

    outcome: str
    """CONFIRMED, TAKEN_BACK, NOTHING, REJECTED, or ENDED: by another command, without us."""
    reason: str = ""
    tried: Report | None = None
    """None: it never came to a pass."""
    back: Report | None = None
    """The pass that took it back."""

    @property
    def exit_code(self) -> int:
        """0 confirmed and converged, 1 taken back or not converged, 2 a file was rejected."""
        if self.outcome == REJECTED:
            return 2
        if self.outcome in (CONFIRMED, NOTHING) and self.tried is not None:
            return self.tried.exit_code
        return 1

    def as_json(self) -> dict[str, Any]:
        """The last line that `--json` prints."""
        back = self.back.as_json() if self.back else None
        return {"version": 1, "outcome": self.outcome, "reason": self.reason, "taken_back": back}


class Rehearsal:
    """One run of `runcnet try`."""

    def __init__(self, settings: Settings, signals: Signals, *, timeout_s: float) -> None:
        self.settings = settings
        self.signals = signals
        self.timeout_s = timeout_s
        pid = os.getpid()
        self.me = Trial(pid=pid, started=started(pid) or 0, boot=boot_id())
        self.open = False
        self.known = True
        """Whether it is remembered what the files said before."""

    def run(self, command: Sequence[str], tell: Callable[[Report, bool], None]) -> Verdict:
        """Begin the trial, run a command in it where one is given, make a pass, wait for the answer.

        `tell` shows the report of the pass, and hears whether an answer is waited for.
        """
        if command:
            self._begin()
            reason = self._edit(command)
            if reason:
                return self._concluded(reason, None)
        try:
            report = reconcile(
                self.settings,
                stop=lambda: bool(self.signals.number),
                first=self._first,
                decide=self._decide,
            )
        except BaseException:
            # Whatever it was: who cannot go on takes back what was begun, and then says why.
            if self.open:
                self._concluded("its pass failed", None)
            raise
        if report.dry:
            tell(report, False)
            return self._rejected(report)
        if not self.open:
            tell(report, False)
            return Verdict(outcome=NOTHING, tried=report)
        try:
            self.signals.stay()
            with self.signals.armed(self.timeout_s), self._attached() as store:
                deadline = time.monotonic() + self.timeout_s
                with store.transaction():
                    store.trials.set_deadline(deadline)
                tell(report, True)
                reason = self._wait(store, deadline)
        except Rung as rung:
            reason = rung.reason
        except OSError as error:
            reason = f"its terminal is gone ({error.strerror})"
        except RuncnetError as error:
            reason = str(error)
        return self._concluded(reason, report)

    # -- beginning ----------------------------------------------------------------------------

    def _begin(self) -> None:
        """Open the trial before anything is edited."""
        with opened(self.settings, change=True) as (store, record):
            with store.transaction():
                self._first(store)
            if not self.known:
                look = Pass(self.settings, store=store, record=record, changing=False)
                if trial.standing(look.observe(Spec(networks={}, containers={}))):
                    with store.transaction():
                        store.trials.end()
                    raise RuncnetError(NO_MEMORY)
        self.open = True

    def _edit(self, command: Sequence[str]) -> str:
        """Run the command; why its edits are to be taken back, or nothing."""
        try:
            with self.signals.armed():
                code = subprocess.run(command, check=False).returncode
        except Rung as rung:
            return rung.reason
        except OSError as error:
            return f"{command[0]} could not be run: {error.strerror}"
        return f"{command[0]} ended with {code}" if code else ""

    def _first(self, store: Store) -> None:
        """In the pass's transaction, before anything is read."""
        found = store.trials.current()
        if self.me.same(found):
            return
        if found is not None:
            left = ""
            if found.deadline is not None:
                left = f" for {max(0.0, found.deadline - time.monotonic()):.0f} s"
            raise RuncnetError(
                f"a trial of pid {found.pid} is open{left} (answer it first: `runcnet try "
                "--confirm` or `runcnet try --take-back`)"
            )
        memory = store.memory()
        self.known = bool(memory.said or memory.young)
        trial.accept(store)
        store.trials.open(self.me)

    def _decide(self, store: Store, prospect: Prospect) -> None:
        """In the pass's transaction, before the kernel is changed."""
        if prospect.rejections:
            raise Declined
        if not self.known and not self.open and trial.standing(prospect.observed):
            raise RuncnetError(NO_MEMORY)
        trials = store.trials
        self.open = bool(trials.files()) and bool(trials.objects() or prospect.plan.held)
        if not self.open:
            trials.end()

    # -- waiting ------------------------------------------------------------------------------

    def _wait(self, store: Store, deadline: float) -> str:
        """Wait for an answer, on the terminal or from another process; why it is no, or nothing."""
        with contextlib.ExitStack() as stack:
            prompt = Prompt.find()
            if prompt is not None:
                stack.callback(prompt.close)
            while True:
                found = store.trial()
                if found is None or not self.me.same(found) or found.answer == CONFIRM:
                    return ""
                if found.answer == TAKE_BACK:
                    return ANSWERED
                if prompt is None:
                    time.sleep(PAUSE_S)
                    continue
                prompt.show(max(0.0, deadline - time.monotonic()))
                said = prompt.answer(PAUSE_S)
                if said is not None:
                    return "" if said else "it was answered with no"

    # -- ending -------------------------------------------------------------------------------

    def _concluded(self, reason: str, report: Report | None) -> Verdict:
        """Carry the answer out: why it is no, or nothing. What another process answered counts more.

        The decision comes first and needs no lock; then the pass, which anybody may make.
        """
        with self._attached() as store, store.transaction():
            found = store.trials.current()
            if found is None or not self.me.same(found):
                why = "another command ended it, or the state dir is not what it was"
                return Verdict(outcome=ENDED, reason=why, tried=report)
            if found.answer == CONFIRM or not (reason or found.answer):
                store.trials.end()
                return Verdict(outcome=CONFIRMED, tried=report)
            reason = reason or ANSWERED
            trial.take_back(store, self.settings.config_dirs, reason)
        patience_s = max(PATIENCE_S, self.settings.lock_timeout_s)
        try:
            back = reconcile(msgspec.structs.replace(self.settings, lock_timeout_s=patience_s))
        except LockedError as error:
            raise LockedError(f"{error}; the next pass of anybody takes the trial back") from None
        return Verdict(outcome=TAKEN_BACK, reason=reason, tried=report, back=back)

    def _rejected(self, report: Report) -> Verdict:
        back = self._concluded("a file was rejected", None).back if self.open else None
        return Verdict(outcome=REJECTED, reason="a file was rejected", tried=report, back=back)

    @contextlib.contextmanager
    def _attached(self) -> Iterator[Store]:
        store = Store.attach(self.settings.state_dir)
        try:
            yield store
        finally:
            store.close()


def rehearse(
    settings: Settings,
    *,
    timeout_s: float,
    command: Sequence[str],
    tell: Callable[[Report, bool], None],
) -> Verdict:
    """Make a pass and take it back unless it is confirmed within `timeout_s`; see `Rehearsal.run`."""
    with Signals() as signals:
        return Rehearsal(settings, signals, timeout_s=timeout_s).run(command, tell)


def answer(settings: Settings, answer: str, *, wait_s: float) -> int:
    """Answer the trial in progress, CONFIRM or TAKE_BACK, and wait for its process; its pid.

    Raises RuncnetError where there is none, or where it has the other answer.
    """
    nothing = RuncnetError("there is no trial to answer")
    if not os.path.exists(os.path.join(settings.state_dir, "state.db")):
        raise nothing
    store = Store.attach(settings.state_dir)
    try:
        with store.transaction():
            found = store.trials.current()
            if found is None:
                raise nothing
            if not found.alive:
                raise RuncnetError(
                    f"the trial of pid {found.pid} ended without an answer, and the next pass takes "
                    "it back (`runcnet apply` keeps what the files say)"
                )
            if answer == CONFIRM and found.deadline is None:
                raise RuncnetError(f"the trial of pid {found.pid} is still at work (wait for it)")
            if not store.trials.answer(answer) and found.answer != answer:
                raise RuncnetError(f"the trial of pid {found.pid} has its answer: {found.answer}")
    finally:
        store.close()
    deadline = time.monotonic() + wait_s
    while found.alive and time.monotonic() < deadline:
        time.sleep(PAUSE_S / 3)
    return found.pid
