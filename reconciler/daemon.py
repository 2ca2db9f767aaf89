"""The daemon: hears what changes in files and kernel, and looks there again.

One thread and one poll(2). Everything that is heard is a doorbell: it marks names in the agenda, and a
pass over what is due looks for itself.
"""

import contextlib
import gc
import os
import random
import select
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial

import msgspec

from reconciler.core.agenda import ALL, RULES, Agenda
from reconciler.core.errors import LockedError, RuncnetError, StoreError, UsageError
from reconciler.core.meter import Meter
from reconciler.core.room import room
from reconciler.host import firewall, lock, netns
from reconciler.host.events import Events
from reconciler.host.mounts import Mounts
from reconciler.host.pidfds import Waiting
from reconciler.host.propagation import hidden
from reconciler.host.service import Service
from reconciler.host.watch import Watch
from reconciler.keeper import Keeper
from reconciler.prospect import Settings
from reconciler.reception import Reception
from reconciler.terminal import Terminal

CHECK_S = 10.0
"""How often what the kernel does not announce is looked at: sysctls, legacy rules."""
CHECK_SHARE = 0.003
RESYNC_SHARE = 0.005
"""The parts of the time that checks and whole passes without a cause may take."""
PAUSE_S = 1.0
"""How long the loop rests after a turn that was broken off."""
LOCKED_S = 0.05
"""After so long it is tried again to take a lock that somebody holds."""
FILES_QUIET_S = 0.001
FILES_PATIENCE_S = 0.1
"""A burst of files is one reading: how long nothing new may come, and how long the first one waits."""
FIREWALL_PATIENCE_S = 1.0
"""How long a pass waits where another program works on the firewall."""
PATIENT_S = 5.0
"""A lock that is held for longer than this is worth a word."""


class Watchfulness(msgspec.Struct, frozen=True, kw_only=True):
    """How a daemon is to watch, beside the settings of its passes."""

    resync_s: float = 60.0
    private_mounts: bool = False
    """It is meant that other mount namespaces do not see the netns dir."""


class Daemon:
    """Stays until SIGTERM or SIGINT. `run` answers with the exit code."""

    def __init__(
        self,
        settings: Settings,
        how: Watchfulness,
        *,
        terminal: Terminal,
        meter: Meter,
        service: Service,
    ) -> None:
        # Nobody is heard meanwhile, and there is always another pass.
        settings = msgspec.structs.replace(settings, firewall_patience_s=FIREWALL_PATIENCE_S)
        self.settings = settings
        self.how = how
        self.terminal = terminal
        self.meter = meter
        self.service = service
        self.agenda = Agenda(random.random)
        self.keeper = Keeper(
            settings,
            self.agenda,
            resync_s=how.resync_s,
            terminal=terminal,
            meter=meter,
            hear=self._hear,
            alive=lambda: service.alive(time.monotonic()),
            stop=lambda: self._stopping,
        )
        self._stopping = False
        self._reload = False
        self._reloading = False
        """The service manager waits for word that a reload is over."""
        self._files: set[str] = set()
        self._files_since: float | None = None
        self._files_latest = 0.0
        self._whole_after = 0.0
        self._locked_since: float | None = None
        self._locked_until = 0.0
        self._mounts_rang = False
        self._said = ""
        """What last stopped a pass."""
        self._next_check = 0.0
        self._next_resync = 0.0

    def run(self) -> int:
        """Serve. Raises LockedError where another daemon does, UsageError where it would be in vain."""
        if not self.how.private_mounts:
            problem = hidden(self.settings.netns_dir)
            if problem:
                raise UsageError(problem)  # to try again would be in vain
        timeout_s = self.settings.lock_timeout_s
        with contextlib.ExitStack() as stack:
            self.lock = lock.DaemonLock(self.settings.run_dir, timeout_s)
            stack.callback(self.lock.close)
            woken = stack.enter_context(self._signals())
            netns.prepare(self.settings.netns_dir)
            # Ears first: what changes while the first pass looks is heard.
            self.events = Events()
            stack.callback(self.events.close)
            self.rules = firewall.ear(self.settings.firewall)
            self.mounts = Mounts(self.settings.netns_dir)
            stack.callback(self.mounts.close)
            self.watch = Watch(
                self.settings.config_dirs, lambda text: self.terminal.log("warning", text)
            )
            stack.callback(self.watch.close)
            stack.callback(self.keeper.close)
            self.poll = select.poll()
            self.poll.register(woken, select.POLLIN)
            self.poll.register(self.events.fileno(), select.POLLIN)
            self.poll.register(self.mounts.fileno(), select.POLLPRI)
            if self.rules is not None:
                stack.callback(self.rules.close)
                self.poll.register(self.rules.fileno(), select.POLLIN)
            self.poll.register(self.watch.fileno(), select.POLLIN)
            self.waiting = Waiting(self.poll)
            stack.callback(self.waiting.close)
            self._woken = woken
            self.reception = Reception(self.keeper, self.poll, terminal=self.terminal)
            stack.callback(self.reception.close)
            self._begin(time.monotonic() + timeout_s)
            while not self._stopping:
                if not self._guarded(self._turn) and not self._stopping:
                    self._pause()
            self.service.stopping()
        self.terminal.log("info", "stopped; containers and networks stay as they are")
        return 0

    @contextlib.contextmanager
    def _signals(self) -> Iterator[int]:
        def note(number: int, _: object) -> None:
            if number == signal.SIGHUP:
                self._reload = True
            else:
                self._stopping = True

        ours, theirs = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        before = {n: signal.signal(n, note) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        old = signal.set_wakeup_fd(theirs, warn_on_full_buffer=False)
        try:
            yield ours
        finally:
            signal.set_wakeup_fd(old)
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(ours)
            os.close(theirs)

    def _begin(self, deadline: float) -> None:
        """The first whole pass; who depends on us waits for it."""
        tries = 3
        while self.keeper.world is None and not self._stopping:
            try:
                self.keeper.work(frozenset({ALL}), whole=True)
            except LockedError:
                if time.monotonic() > deadline:
                    raise
            except StoreError:
                # They may have been lost while they were being opened: another look makes them anew.
                self.keeper.close()
                tries -= 1
                if not tries:
                    raise
            if self.keeper.world is None:
                self.poll.poll(LOCKED_S * 1000)
                self._drain_signals()
        if self.keeper.world is None:
            return
        self._after_pass()
        now = time.monotonic()
        self._next_check = now + CHECK_S
        self.terminal.log("info", f"watching {', '.join(self.settings.config_dirs)}")
        self.service.ready(self._summary())
        # What stands now stays: to look for garbage in it again and again would be in vain.
        gc.collect()
        gc.freeze()

    def _pause(self) -> None:
        """After a turn that was broken off: what broke it may be there still."""
        one = select.poll()
        one.register(self._woken, select.POLLIN)
        one.poll(PAUSE_S * 1000)
        self._drain_signals()

    # -- one turn of the loop ---------------------------------------------------------------------

    def _turn(self) -> None:
        now = time.monotonic()
        ready = self.poll.poll(max(0.0, self._until(now) - now) * 1000)
        now = time.monotonic()
        self._drain_signals()
        self.lock.renew()
        for fd, _ in ready:
            if fd == self.watch.fileno():
                self._hear_files(now)
            elif fd == self.mounts.fileno():
                self._mounts_rang = True
            elif self.reception.hear(fd):
                continue
            elif (name := self.waiting.ended(fd)) is not None:
                # A process that a container was held back for.
                self.agenda.wake([name])
                self.agenda.mark([name], now)
        self._hear()
        self.service.alive(now)
        if self._reload:
            self._reload = False
            self._reloading = True
            self.service.reloading()
            self._files_since, self._files = None, set()
            self.agenda.mark([ALL], now)
            self._whole_after = 0.0
        if self._files_since is not None and now >= self._files_due():
            self._read_files(now)
        if now >= self._next_check:
            self._guarded(self.keeper.check)
            spent = time.monotonic() - now
            self._next_check = now + max(CHECK_S, spent / CHECK_SHARE)
        if now >= self._next_resync:
            self._hear_files(now)  # a folder that went deaf is found here
            self.agenda.mark([ALL], now)
            self._next_resync = now + self.how.resync_s
        self._work(now)

    def _until(self, now: float) -> float:
        """When there is something to do, if nothing is heard."""
        times = [self._next_check, self._next_resync]
        if self.reception.called:
            times.append(self._locked_until)
        if self._files_since is not None:
            times.append(self._files_due())
        due = self.agenda.next(now)
        if due is not None:
            waits = self._whole_after if self._only_all(now) else 0.0
            times.append(max(due, self._locked_until, waits))
        keep_alive_s = self.service.keep_alive_s
        if keep_alive_s is not None:
            times.append(now + keep_alive_s)
        return min(times)

    def _only_all(self, now: float) -> bool:
        return self.agenda.due(now) == {ALL}

    def _drain_signals(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(self._woken, 64):
                pass

    # -- hearing ------------------------------------------------------------------------------------

    def _hear(self) -> None:
        """Take what the kernel has said into the agenda."""
        heard, lost = self.events.read()
        now = time.monotonic()
        world = self.keeper.world
        if lost:
            self.agenda.mark([ALL], now)
        if heard and world is not None:
            self.agenda.mark(world.concerned(heard), now)
        if heard or lost:
            self.meter.events(len(heard), lost)
        if self.rules is not None and self.rules.rang():
            self.agenda.mark([RULES], now)
        if self._mounts_rang or self.mounts.rang():
            self._mounts_rang = False
            changed = self.mounts.changed()
            if changed and world is not None:
                self.agenda.mark(world.behind_files(changed), now)
            # A folder may have been covered by a mount.
            self._hear_files(now)

    def _hear_files(self, now: float) -> None:
        changed = self.watch.changed()
        if changed is None:
            self.agenda.mark([ALL], now)
        elif changed:
            self._files |= changed
            self._files_latest = now
            if self._files_since is None:
                self._files_since = now

    def _files_due(self) -> float:
        assert self._files_since is not None  # callers have looked
        return min(self._files_latest + FILES_QUIET_S, self._files_since + FILES_PATIENCE_S)

    def _read_files(self, now: float) -> None:
        since, self._files_since = self._files_since, None
        files, self._files = self._files, set()
        names = self.keeper.read_again(files)
        if names is None:
            self.agenda.wake([ALL])
            self.agenda.mark([ALL], since or now)
        else:
            self.agenda.wake(names)
            self.agenda.mark(names, since or now)

    # -- working ------------------------------------------------------------------------------------

    def _work(self, now: float) -> None:
        self._serve(now)
        due = self.agenda.due(now)
        if not due or now < self._locked_until or self._stopping:
            return
        whole = now >= self._whole_after
        if due == {ALL} and not whole:
            return
        try:
            done = self._guarded(partial(self.keeper.work, due, whole=whole))
        except LockedError:
            self._locked(now)
            return
        self._locked_since = None
        if done:
            self._after_pass()

    def _serve(self, now: float) -> None:
        """What hooks ask comes first: a container's start waits for it."""
        self.reception.sweep(now)
        while self.reception.called and now >= self._locked_until and not self._stopping:
            self._hear_files(now)
            if self._files_since is not None:
                self._read_files(now)
            try:
                self.reception.serve()
            except LockedError:
                self._locked(now)
                return
            self._locked_since = None
            self._after_pass()
            now = time.monotonic()

    def _guarded(self, work: Callable[[], None]) -> bool:
        """Do it; whatever stops it is said, and everything looked at again after a rest."""
        try:
            work()
            if work != self._turn:
                self._said = ""
            return True
        except LockedError:
            raise
        except (RuncnetError, OSError) as error:
            text = str(error)
        except (
            Exception
        ):  # a mistake of ours: what stands is served on, and the next look is a fresh one
            text = traceback.format_exc()
        if text != self._said:
            self.terminal.log("error", text)
            self._said = text
        self.keeper.close()
        self.agenda.seen(None)
        self.agenda.failed([ALL], time.monotonic())
        if self._reloading:
            # The files were read again; that something is wrong is said where all else is.
            self._reloading = False
            self.service.ready(self._summary())
        return False

    def _locked(self, now: float) -> None:
        self._locked_until = now + LOCKED_S
        if self._locked_since is None:
            self._locked_since = now
        elif 0 < now - self._locked_since > PATIENT_S:
            self.terminal.log("warning", "another run holds the lock; what is due waits for it")
            self._locked_since = now + 1e9  # said once

    def _after_pass(self) -> None:
        now = time.monotonic()
        world = self.keeper.world
        if world is None:
            return
        if self.keeper.last_whole_s is not None:
            spent, self.keeper.last_whole_s = self.keeper.last_whole_s, None
            # Whatever rings: other things get their turn between two whole passes.
            self._whole_after = now + 2 * spent
            # What it made or mended is not to be done again: the next one costs its look.
            look_s = self.keeper.last_look_s
            self._next_resync = now + max(self.how.resync_s, look_s / RESYNC_SHARE)
            self.watch.follow(world.declared.contents.keys())
            self._reloading = False
            self.service.ready(self._summary())
            self.meter.rejected(len({r.place.file for r in world.declared.loaded.rejections}))
            self.meter.leases(*room(world.declared.loaded.spec, world.ledger.excerpt()))
        late = self.waiting.follow(self.keeper.guarded)
        self.agenda.postpone(late, now + 1.0)
        self.service.status(self._summary())
        self.meter.containers(world.container_states())

    def _summary(self) -> str:
        world = self.keeper.world
        assert world is not None  # callers have looked
        states = world.container_states()
        others = states.total() - states["ok"]
        rest = f", {others} not" if others else ""
        return f"{states['ok']} containers are as declared{rest}"
