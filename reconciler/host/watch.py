"""The definition folders: hearing that a file in one of them has changed.

An event is a doorbell and nothing more. Folders are watched, never a file, and so is each folder on the
way to them: it is heard there that one comes, goes or is replaced. One that was removed and made again,
renamed or covered by a mount is told by its device and inode, and watched anew.
"""

import contextlib
import logging
import os
import stat
from collections import deque
from collections.abc import Callable, Collection, Sequence

from watchdog.events import (
    DirAttribEvent,
    DirCreatedEvent,
    DirDeletedEvent,
    DirMovedEvent,
    FileAttribEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileModifiedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver, ObservedWatch
from watchdog.observers.inotify_move_event_grouper import InotifyMoveEventGrouper
from watchdog.observers.polling import PollingObserver

from reconciler.host.yamlfile import is_definition, readable

HEARD_ON_THE_WAY: list[type[FileSystemEvent]] = [
    FileCreatedEvent, FileDeletedEvent, FileMovedEvent, DirCreatedEvent, DirDeletedEvent, DirMovedEvent,
]  # fmt: skip
"""Folders and links to them come and go."""
HEARD: list[type[FileSystemEvent]] = [
    *HEARD_ON_THE_WAY, FileClosedEvent, FileAttribEvent, DirAttribEvent, FileModifiedEvent,
]  # fmt: skip
"""In the folders themselves. Our own reading makes events too: opened, and closed without writing. Only
with the last of these does watchdog ask for attributes, and so for chmod(1)."""
POLL_S = 1.0

# Who moves a file out of a folder is heard of only when nothing in it says, for so long, where it went: it is
# held back, and so is all that comes after it. Here nobody asks where.
InotifyMoveEventGrouper.delay = 0.0

Identity = tuple[int, int, int, int]
"""Device and inode; mode and owner too, for only trusted folders are read."""


class Watch(FileSystemEventHandler):
    """Watches folders; to be polled for reading. `changed` then says what has rung."""

    def __init__(self, folders: Sequence[str], say: Callable[[str], None]) -> None:
        """`say` is told where events cannot be had."""
        self._folders = frozenset(map(os.path.normpath, folders))
        self._beyond: frozenset[str] = frozenset()
        """Folders that links in the watched ones lead to."""
        self._way = _ways(self._folders)
        """All these folders, and those on the way to them."""
        self._say = say
        self._heard: deque[str] = deque()
        self._bell, self._button = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._log = _Overflow(self)
        logging.getLogger("watchdog").addHandler(self._log)
        self._observer: BaseObserver
        self._polling = False
        self._watches: dict[str, tuple[Identity, ObservedWatch]] = {}
        self._known: dict[str, Identity | None] = {}
        """Each folder of the way as it was when it was last looked at."""
        self._begin()

    def fileno(self) -> int:
        """For poll(2)."""
        return self._bell

    # -- called in threads of watchdog's ------------------------------------------------------

    def dispatch(self, event: FileSystemEvent) -> None:
        """Note what has changed, and ring. Nothing here may raise: it would end the thread."""
        if isinstance(event, FileModifiedEvent) and not self._polling:
            return  # that it was closed will be heard; who polls does not hear of that
        for path in {event.src_path, event.dest_path} - {"", b""}:
            name = os.fsdecode(path)
            if isinstance(event, DirAttribEvent):
                if name in self._way:
                    self.ring(f"{name}/")  # it is the same; who may write to it may have changed
                continue
            # On the way nothing counts but the way: /run and /etc are lively places.
            if name in self._way or os.path.dirname(name) in self._folders | self._beyond:
                self.ring(name)

    def ring(self, path: str) -> None:
        """Something at `path` has changed; empty: anything may have."""
        self._heard.append(path)
        with contextlib.suppress(BlockingIOError):  # it is ringing already
            os.write(self._button, b"!")

    # -- called by who listens ----------------------------------------------------------------

    def changed(self) -> frozenset[str] | None:
        """Definition files about which something was heard; None: all are to be looked at."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self._bell, 4096):
                pass
        files, all_, replaced = set(), False, set()
        while self._heard:
            path = self._heard.popleft()
            folder, name = os.path.split(path)
            if path.endswith("/"):
                continue  # below it is looked whether that folder is another one now
            if path in self._way:
                replaced.add(path)
            elif folder in self._folders and is_definition(name):
                files.add(path)
                all_ |= readable(path) != path  # it goes by another name from here on
            elif folder in self._folders and os.path.lexists(path) and _leads_on(path):
                all_ = True  # `..data` and the like: what files are links to
            elif not path or folder in self._beyond:
                all_ = True
        return None if self._renew(replaced) or all_ else frozenset(files)

    def follow(self, files: Collection[str]) -> None:
        """Watch as well where those of these files that are links lead to."""
        found = {os.path.dirname(os.path.realpath(f)) for f in files if os.path.islink(f)}
        beyond = frozenset(found - self._folders)
        if beyond != self._beyond:
            self._beyond = beyond
            self._way = _ways(self._folders | beyond)
            self._renew(())

    def close(self) -> None:
        """Stop to listen."""
        logging.getLogger("watchdog").removeHandler(self._log)
        self._observer.stop()
        self._observer.join(2)
        os.close(self._bell)
        os.close(self._button)

    def _begin(self) -> None:
        try:
            self._start(Observer())
        except OSError as error:
            self._say(
                f"no inotify ({error.strerror}): the folders are looked at every {POLL_S:g} s "
                "(raise fs.inotify.max_user_instances and fs.inotify.max_user_watches)"
            )
            self._polling = True
            self._start(PollingObserver(timeout=POLL_S))

    def _start(self, observer: BaseObserver) -> None:
        self._observer = observer
        self._watches = {}
        observer.start()
        try:
            for folder in sorted(self._way):
                self._watch(folder)
        except OSError:
            observer.stop()
            raise

    def _watch(self, folder: str) -> None:
        known = self._known[folder] = _identity(folder)
        if known is None or folder in self._watches:
            return
        inside = folder in self._folders | self._beyond
        try:
            watch = self._observer.schedule(
                self,
                folder,
                event_filter=HEARD if inside else HEARD_ON_THE_WAY,
                follow_symlink=True,
            )
        except (FileNotFoundError, NotADirectoryError):  # it went just now
            return
        except PermissionError:
            if inside:
                raise
            return  # it may be passed through and not be read: what happens there is not heard
        self._watches[folder] = known, watch

    def _unwatch(self, folder: str) -> None:
        _, watch = self._watches.pop(folder, (None, None))
        if watch is not None:
            # The kernel may have taken it away with the folder.
            with contextlib.suppress(KeyError, OSError):
                self._observer.unschedule(watch)

    def _renew(self, replaced: Collection[str]) -> bool:
        """Watch folders anew that are others than they were; whether there were such that count.

        Those of which it was heard that they came or went are: an inode number is soon used again.
        """
        for folder in self._watches.keys() - self._way:
            self._unwatch(folder)
            self._known.pop(folder, None)
        different = False
        for folder in sorted(self._way):
            now = _identity(folder)
            watched = self._watches.get(folder, (None, None))[0]
            if now == watched and folder not in replaced:
                continue
            fresh = now != self._known.get(folder, now) or folder in replaced
            different |= fresh
            self._unwatch(folder)
            try:
                self._watch(folder)
            except OSError as error:
                if fresh or folder not in self._known:
                    self._say(f"{folder}: cannot be watched: {error.strerror}")
        return different


class _Overflow(logging.Handler):
    """The only way in which watchdog tells that events were lost."""

    def __init__(self, watch: Watch) -> None:
        super().__init__(logging.WARNING)
        self._watch = watch

    def emit(self, record: logging.LogRecord) -> None:
        self._watch.ring("")


def _ways(folders: Collection[str]) -> frozenset[str]:
    """These folders, and all above them."""
    found = set(folders)
    for folder in folders:
        while folder != (folder := os.path.dirname(folder)):
            found.add(folder)
    return frozenset(found)


def _identity(folder: str) -> Identity | None:
    """Which folder that is; None: there is none."""
    try:
        found = os.stat(folder)
    except OSError:
        return None
    if not stat.S_ISDIR(found.st_mode):
        return None
    return found.st_dev, found.st_ino, found.st_mode, found.st_uid


def _leads_on(path: str) -> bool:
    return os.path.islink(path) or os.path.isdir(path)
