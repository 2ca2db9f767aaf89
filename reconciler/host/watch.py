"""The definition folders: hearing that a file in one of them has changed.

An event is a doorbell and nothing more. The folder is watched, never a file; a folder that was removed
and made again, renamed or covered by a mount is told by its device and inode, and watched anew.
"""

import contextlib
import logging
import os
from collections import deque
from collections.abc import Callable, Collection, Sequence

from watchdog.events import (
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
from watchdog.observers.polling import PollingObserver

from reconciler.host.yamlfile import is_definition

HEARD: list[type[FileSystemEvent]] = [
    FileCreatedEvent, FileClosedEvent, FileDeletedEvent, FileMovedEvent, FileAttribEvent,
    DirCreatedEvent, DirDeletedEvent, DirMovedEvent,
]  # fmt: skip
"""Our own reading makes events too: opened, and closed without writing."""
POLL_S = 1.0

Identity = tuple[int, int]


class Watch(FileSystemEventHandler):
    """Watches folders; to be polled for reading. `changed` then says what has rung."""

    def __init__(self, folders: Sequence[str], say: Callable[[str], None]) -> None:
        """`say` is told where events cannot be had."""
        self._folders = {os.path.normpath(folder): _identity(folder) for folder in folders}
        self._say = say
        self._heard: deque[str] = deque()
        self._bell, self._button = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._log = _Overflow(self)
        logging.getLogger("watchdog").addHandler(self._log)
        self._observer: BaseObserver
        self._heed = list(HEARD)
        self._watches: dict[str, ObservedWatch] = {}
        self._beyond: set[str] = set()
        """Folders that links in the watched ones lead to."""
        self._begin()

    def fileno(self) -> int:
        """For poll(2)."""
        return self._bell

    # -- called in threads of watchdog's ------------------------------------------------------

    def dispatch(self, event: FileSystemEvent) -> None:
        """Note what has changed, and ring. Nothing here may raise: it would end the thread."""
        for path in {event.src_path, event.dest_path} - {"", b""}:
            self.ring(os.fsdecode(path))

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
            if folder in self._folders and is_definition(name):
                files.add(path)
            elif folder in self._folders and os.path.lexists(path) and _leads_on(path):
                all_ = True  # `..data` and the like: what files are links to
            elif path in self._folders:
                replaced.add(path)
            elif not path or folder in self._beyond:
                all_ = True
        return None if self._renew(replaced) or all_ else frozenset(files)

    def follow(self, files: Collection[str]) -> None:
        """Watch as well where those of these files that are links lead to."""
        beyond = {os.path.dirname(os.path.realpath(f)) for f in files if os.path.islink(f)}
        beyond -= self._folders.keys()
        for folder in beyond - self._beyond:
            self._watch(folder)
        for folder in self._beyond - beyond - self._above():
            self._unwatch(folder)
        self._beyond = beyond

    def close(self) -> None:
        """Stop to listen."""
        logging.getLogger("watchdog").removeHandler(self._log)
        self._observer.stop()
        self._observer.join(2)
        os.close(self._bell)
        os.close(self._button)

    def _above(self) -> set[str]:
        return {os.path.dirname(folder) for folder in self._folders}

    def _begin(self) -> None:
        try:
            self._start(Observer())
        except OSError as error:
            self._say(
                f"no inotify ({error.strerror}): the folders are looked at every {POLL_S:g} s "
                "(raise fs.inotify.max_user_instances and fs.inotify.max_user_watches)"
            )
            self._heed.append(FileModifiedEvent)  # who polls does not see that a file was closed
            self._start(PollingObserver(timeout=POLL_S))

    def _start(self, observer: BaseObserver) -> None:
        self._observer = observer
        self._watches = {}
        observer.start()
        try:
            self._watch_all()
        except OSError:
            observer.stop()
            raise

    def _watch_all(self) -> None:
        for folder in self._folders:
            self._watch(folder)
            # From above it is heard that the folder comes, goes or is replaced.
            self._watch(os.path.dirname(folder))

    def _watch(self, folder: str) -> None:
        if folder in self._watches or not os.path.isdir(folder):
            return
        with contextlib.suppress(FileNotFoundError):  # it went just now
            self._watches[folder] = self._observer.schedule(
                self, folder, event_filter=self._heed, follow_symlink=True
            )

    def _unwatch(self, folder: str) -> None:
        watch = self._watches.pop(folder, None)
        if watch is not None:
            # The kernel may have taken it away with the folder.
            with contextlib.suppress(KeyError, OSError):
                self._observer.unschedule(watch)

    def _renew(self, replaced: Collection[str]) -> bool:
        """Watch folders anew that are others than they were; whether there were such.

        Those of which it was heard that they came or went are: an inode number is soon used again.
        """
        different = False
        for folder, known in self._folders.items():
            now = _identity(folder)
            if now == known and folder not in replaced:
                continue
            different = True
            self._folders[folder] = now
            self._unwatch(folder)
            try:
                self._watch(folder)
            except OSError as error:
                self._say(f"{folder}: cannot be watched: {error.strerror}")
        return different


class _Overflow(logging.Handler):
    """The only way in which watchdog tells that events were lost."""

    def __init__(self, watch: Watch) -> None:
        super().__init__(logging.WARNING)
        self._watch = watch

    def emit(self, record: logging.LogRecord) -> None:
        self._watch.ring("")


def _identity(folder: str) -> Identity | None:
    try:
        found = os.stat(folder)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _leads_on(path: str) -> bool:
    return os.path.islink(path) or os.path.isdir(path)
