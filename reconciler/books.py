"""State and record as who stays holds them, and what files said, on its way into the state dir."""

import os
from collections.abc import Collection

import msgspec

from reconciler.core.digests import blake2b
from reconciler.core.memory import Memory, Young
from reconciler.core.wanted import Desired, frame
from reconciler.declared import Declared
from reconciler.host import rtnl
from reconciler.host.record import Record
from reconciler.host.store import Store
from reconciler.prospect import Settings


class Books:
    """State and record, kept open between passes. Others may write to them, or lose them."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._places = (
            os.path.join(settings.state_dir, "state.db"),
            os.path.join(settings.run_dir, "record.db"),
        )
        self._held: tuple[Store, Record] | None = None
        self._opened: list[int | None] = []
        """The inodes of what is open."""
        self._known: list[int] | None = None
        """Their versions when they were last read or written here."""

    @property
    def open(self) -> bool:
        """Whether they are."""
        return self._held is not None

    @property
    def store(self) -> Store:
        """The state."""
        assert self._held is not None  # `renew` has opened it
        return self._held[0]

    @property
    def record(self) -> Record:
        """The record."""
        assert self._held is not None  # `renew` has opened it
        return self._held[1]

    def close(self) -> None:
        """Close them."""
        for book in self._held or ():
            book.close()
        self._held = self._known = None

    def lost(self) -> bool:
        """Whether the files of open ones are gone, or others are in their place."""
        return self._held is not None and self._inodes() != self._opened

    def renew(self) -> bool:
        """Have them open. Answers whether what is known of them is out of date. Raises StoreError."""
        if self.lost():
            self.close()
        if self._held is None:
            store = Store.open(self._settings.state_dir)
            self._held = store, Record.open(self._settings.run_dir, cookie=rtnl.cookie())
            # Now, and not after the pass: who removes them meanwhile is noticed by the next one.
            self._opened = self._inodes()
        return self._known != self._versions()

    def settle(self) -> None:
        """All that is in them is known."""
        self._known = self._versions()

    def _versions(self) -> list[int]:
        return [self.store.version(), self.record.version()]

    def _inodes(self) -> list[int | None]:
        return [_inode(place) for place in self._places]


def _inode(path: str) -> int | None:
    try:
        return os.stat(path).st_ino
    except OSError:
        return None


def write_down(
    store: Store,
    declared: Declared,
    memory: Memory,
    files: Collection[str],
    *,
    forget: Collection[str],
) -> None:
    """Remember what these good files say, and of those just being written that it is not sure yet.

    `memory`: what is remembered of them.
    """
    old = {file: declared.contents[file] for file in files if not declared.restless(file)}
    fresh = {
        file: content
        for file, content in old.items()
        if memory.said.get(file) != content or file in memory.young
    }
    young = {
        file: Young(declared.contents[file], declared.times[file])
        for file in files
        if file not in old and memory.said.get(file) != declared.contents[file]
    }
    if fresh or forget:
        store.remember(fresh, forget=forget)
    young = {file: one for file, one in young.items() if memory.young.get(file) != one}
    if young:
        store.note_young(young)


def digest_of(desired: Desired) -> bytes:
    """A digest of networks as they are resolved."""
    return blake2b(msgspec.json.encode(frame(desired)), digest_size=16).digest()
