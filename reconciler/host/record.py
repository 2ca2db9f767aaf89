"""The run dir's record of what runcnet made: the first witness of ownership, gone at a reboot.

What is about to be made is written down before it is made (cookie or ifindex 0), so that a kill
leaves nothing that nobody answers for.
"""

import contextlib
import os
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from reconciler.core.errors import StoreError
from reconciler.core.troubles import Mishap, News, Trouble
from reconciler.host.files import own_directory
from reconciler.host.machine import boot_id

SCHEMA = """
CREATE TABLE IF NOT EXISTS space (container TEXT PRIMARY KEY, cookie INTEGER) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS end (
    ifindex INTEGER PRIMARY KEY, network TEXT, container TEXT, interface TEXT);
CREATE INDEX IF NOT EXISTS end_of ON end (container);
CREATE TABLE IF NOT EXISTS bridge (network TEXT PRIMARY KEY, ifindex INTEGER) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS gateway (address TEXT PRIMARY KEY, network TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS seal (container TEXT PRIMARY KEY, wanted BLOB, seen INTEGER) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS secret (key BLOB);
CREATE TABLE IF NOT EXISTS leaving (path TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS point (path TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS scene (boot TEXT, cookie INTEGER);
CREATE TABLE IF NOT EXISTS trouble (object TEXT PRIMARY KEY, since REAL, text TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS resolved (digest BLOB);
CREATE TABLE IF NOT EXISTS mishap (serial INTEGER PRIMARY KEY, time REAL, object TEXT, text TEXT);
"""
LOG_PAGES = 128  # see `Store`
MISHAPS = 100
"""So many of the last ones are kept."""


class Record:
    """An open record. `present`: it was there before, and speaks of this network namespace."""

    def __init__(self, db: sqlite3.Connection, *, present: bool, scene: tuple[str, int]) -> None:
        self._db = db
        self.scene = scene
        """The boot id, and the cookie of the host's network namespace."""
        self.present = present
        self.key = _key(db)
        """16 bytes that whoever acts inside a namespace cannot know: the secret of the digests."""

    @classmethod
    def open(cls, directory: str, *, cookie: int, read_only: bool = False) -> "Record":
        """Open the record of the host whose network namespace has that cookie."""
        path = os.path.join(directory, "record.db")
        scene = (boot_id(), cookie)
        try:
            if read_only:
                db, present = _read_only(path, scene)
                return cls(db, present=present, scene=scene)
            own_directory(directory, 0o755)
            db, present = _open(path, scene)
            return cls(db, present=present, scene=scene)
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"{path}: cannot be opened: {error} (see --run-dir)") from error

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    def version(self) -> int:
        """Another number than before: somebody else has written."""
        return int(self._db.execute("PRAGMA data_version").fetchone()[0])

    def spaces(self, names: Collection[str] | None = None) -> dict[str, int]:
        """Container → cookie of its namespace; of these containers (None: of all)."""
        return dict(self._rows("SELECT container, cookie FROM space", names))

    def container_at(self, cookie: int) -> list[str]:
        """The containers whose namespace has that cookie."""
        rows = self._db.execute("SELECT container FROM space WHERE cookie=?", (cookie,))
        return [name for (name,) in rows]

    def ends(self, names: Collection[str] | None = None) -> dict[int, tuple[str, str, str]]:
        """Ifindex of a host end → network, container, interface."""
        rows = self._rows("SELECT ifindex, network, container, interface FROM end", names)
        return {index: (network, container, name) for index, network, container, name in rows}

    def _rows(self, query: str, names: Collection[str] | None) -> Iterable[Any]:
        if names is None:
            return self._db.execute(query)
        marks = ", ".join("?" * len(names))
        return self._db.execute(f"{query} WHERE container IN ({marks})", tuple(names))

    def resolved(self) -> bytes | None:
        """A digest of networks as the last whole pass resolved them; None: there was none."""
        row = self._db.execute("SELECT digest FROM resolved").fetchone()
        return row[0] if row else None

    def note_resolved(self, digest: bytes) -> None:
        """Write it down."""
        if self.resolved() != digest:
            with self._transaction():
                self._db.execute("DELETE FROM resolved")
                self._db.execute("INSERT INTO resolved VALUES (?)", (digest,))

    def last_end(self) -> int:
        """The highest ifindex on record."""
        return int(self._db.execute("SELECT max(ifindex) FROM end").fetchone()[0] or 0)

    def bridges(self) -> dict[str, int]:
        """Network → ifindex of its bridge."""
        return dict(self._db.execute("SELECT network, ifindex FROM bridge"))

    def gateways(self) -> dict[str, str]:
        """Gateway on the host's `lo` → routed network."""
        return dict(self._db.execute("SELECT address, network FROM gateway"))

    def note_gateways(self, gateways: Mapping[str, str]) -> None:
        """Write down gateways."""
        self._write("INSERT OR REPLACE INTO gateway VALUES (?, ?)", gateways.items())

    def seals(self, names: Collection[str] | None = None) -> dict[str, tuple[bytes, int]]:
        """Container → what was wanted and what was seen when nothing differed."""
        rows = self._rows("SELECT container, wanted, seen FROM seal", names)
        return {container: (wanted, seen) for container, wanted, seen in rows}

    def note_seals(self, seals: Mapping[str, tuple[bytes, int]], gone: Iterable[str]) -> None:
        """Write down what was found to be as wanted; strike out what is `gone`."""
        rows = [(container, *seal) for container, seal in seals.items()]
        self._write("INSERT OR REPLACE INTO seal VALUES (?, ?, ?)", rows)
        self._write("DELETE FROM seal WHERE container=?", [(name,) for name in gone])

    def troubles(self) -> dict[str, Trouble]:
        """Object → since when it is not as declared, and why."""
        rows = self._db.execute("SELECT object, since, text FROM trouble")
        return {name: Trouble(since=since, text=text) for name, since, text in rows}

    def mishaps(self) -> list[Mishap]:
        """What went wrong lately, the last one last."""
        rows = self._db.execute("SELECT time, object, text FROM mishap ORDER BY serial")
        return [Mishap(time=time, object=name, text=text) for time, name, text in rows]

    def note_news(self, news: News) -> None:
        """Write down what a pass found new, all of it at once; nothing where nothing is."""
        if not news:
            return
        with self._transaction():
            self._db.executemany(
                "INSERT OR REPLACE INTO trouble VALUES (?, ?, ?)",
                [(name, one.since, one.text) for name, one in news.troubles.items()],
            )
            self._db.executemany(
                "DELETE FROM trouble WHERE object=?", [(name,) for name in news.mended]
            )
            self._db.executemany(
                "INSERT INTO mishap (time, object, text) VALUES (?, ?, ?)",
                [(one.time, one.object, one.text) for one in news.mishaps],
            )
            self._db.execute(
                "DELETE FROM mishap WHERE serial <= (SELECT max(serial) FROM mishap) - ?",
                (MISHAPS,),
            )

    def adopt(
        self,
        spaces: Mapping[str, int],
        ends: Mapping[int, tuple[str, str, str]],
        bridges: Mapping[str, int],
    ) -> None:
        """Begin anew with what the marks say is ours; from here on the record is believed first."""
        with self._transaction():
            rows = [(index, *end) for index, end in ends.items()]
            self._db.executemany("INSERT OR REPLACE INTO space VALUES (?, ?)", spaces.items())
            self._db.executemany("INSERT OR REPLACE INTO end VALUES (?, ?, ?, ?)", rows)
            self._db.executemany("INSERT OR REPLACE INTO bridge VALUES (?, ?)", bridges.items())
            self._db.execute("INSERT INTO scene VALUES (?, ?)", self.scene)
        self.present = True

    def _write(self, statement: str, rows: Iterable[tuple[object, ...]]) -> None:
        rows = list(rows)
        if not rows:
            return
        with self._transaction():
            self._db.executemany(statement, rows)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """Everything inside is written at its end, or nothing of it. Raises StoreError."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            raise StoreError(f"the record cannot be written: {error} (see --run-dir)") from error
        finally:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")

    def leaving(self) -> list[str]:
        """Paths whose removal was begun; a kill may have left their mount points."""
        return [path for (path,) in self._db.execute("SELECT path FROM leaving")]

    def note_leaving(self, paths: Iterable[str]) -> None:
        """Write down which paths are about to be removed."""
        self._write("INSERT OR REPLACE INTO leaving VALUES (?)", [(path,) for path in paths])

    def note_left(self, paths: Iterable[str]) -> None:
        """Strike out paths that are gone."""
        rows = [(path,) for path in paths]
        self._write("DELETE FROM leaving WHERE path=?", rows)
        self._write("DELETE FROM point WHERE path=?", rows)

    def points(self) -> list[str]:
        """Paths whose mount points were made here."""
        return [path for (path,) in self._db.execute("SELECT path FROM point")]

    def note_points(self, paths: Iterable[str]) -> None:
        """Write down paths where a namespace is about to be bound."""
        self._write("INSERT OR IGNORE INTO point VALUES (?)", [(path,) for path in paths])

    def note_spaces(self, spaces: Mapping[str, int]) -> None:
        """Write down namespaces."""
        self._write("INSERT OR REPLACE INTO space VALUES (?, ?)", spaces.items())

    def note_ends(self, ends: Mapping[int, tuple[str, str, str]]) -> None:
        """Write down host ends."""
        self._write(
            "INSERT OR REPLACE INTO end VALUES (?, ?, ?, ?)",
            [(index, *end) for index, end in ends.items()],
        )

    def note_bridges(self, bridges: Mapping[str, int]) -> None:
        """Write down bridges."""
        self._write("INSERT OR REPLACE INTO bridge VALUES (?, ?)", bridges.items())

    def forget(
        self,
        *,
        containers: Iterable[str] = (),
        ends: Iterable[int] = (),
        bridges: Iterable[str] = (),
        gateways: Iterable[str] = (),
    ) -> None:
        """Strike out what is gone."""
        self._write("DELETE FROM space WHERE container=?", [(name,) for name in containers])
        self._write("DELETE FROM end WHERE ifindex=?", [(index,) for index in ends])
        self._write("DELETE FROM bridge WHERE network=?", [(name,) for name in bridges])
        self._write("DELETE FROM gateway WHERE address=?", [(address,) for address in gateways])


def _key(db: sqlite3.Connection) -> bytes:
    db.execute("BEGIN IMMEDIATE")
    known = db.execute("SELECT key FROM secret").fetchone()
    if known is None:
        known = (os.urandom(16),)
        db.execute("INSERT INTO secret VALUES (?)", known)
    db.execute("COMMIT")
    return bytes(known[0])


def _matches(db: sqlite3.Connection, scene: tuple[str, int]) -> bool:
    try:
        return bool(db.execute("SELECT boot, cookie FROM scene").fetchone() == scene)
    except sqlite3.DatabaseError:
        return False


def _open(path: str, scene: tuple[str, int]) -> tuple[sqlite3.Connection, bool]:
    for _ in range(2):
        # Nobody else need know the secret in it; its companions get the same mode.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        os.chmod(path, 0o600)
        db = sqlite3.connect(path, isolation_level=None, timeout=30)
        try:
            # What is lost with the power is lost with the objects it speaks of.
            db.execute("PRAGMA synchronous=OFF")
            db.execute("PRAGMA journal_mode=WAL")
            db.execute(f"PRAGMA wal_autocheckpoint={LOG_PAGES}")
            db.executescript(SCHEMA)
            if _matches(db, scene):
                return db, True
            if db.execute("SELECT count(*) FROM scene").fetchone() == (0,):
                return db, False
        except sqlite3.DatabaseError as error:
            from reconciler.host.damage import damaged

            if not damaged(error):
                db.close()
                raise
        db.close()
        # It is damaged, or speaks of another start or another network namespace.
        for tail in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path + tail)
    raise sqlite3.DatabaseError("it cannot be made")


def _read_only(path: str, scene: tuple[str, int]) -> tuple[sqlite3.Connection, bool]:
    memory = sqlite3.connect(":memory:", isolation_level=None)
    if os.path.exists(path):
        source = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        with contextlib.closing(source), contextlib.suppress(sqlite3.DatabaseError):
            source.backup(memory)
    if _matches(memory, scene):
        memory.executescript(SCHEMA)  # an older release made fewer tables
        return memory, True
    memory.close()
    memory = sqlite3.connect(":memory:", isolation_level=None)
    memory.executescript(SCHEMA)
    return memory, False
