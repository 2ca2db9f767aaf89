"""The state dir: leases, the last good content of each file, trials, small facts. SQLite, WAL, FULL."""

import contextlib
import os
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from msgspec.structs import astuple

from reconciler.core.attached import Attachment
from reconciler.core.errors import StoreError
from reconciler.core.leases import Book, Key
from reconciler.core.memory import Grown, Memory, Young
from reconciler.core.model import Address
from reconciler.host import trials
from reconciler.host.files import own_directory
from reconciler.host.trials import Trial, Trials, packed, unpacked

SCHEMA = """
CREATE TABLE IF NOT EXISTS lease (
    container TEXT, network TEXT, interface TEXT, version INTEGER, address TEXT,
    PRIMARY KEY (container, network, interface, version)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS freed (
    network TEXT, version INTEGER, address TEXT, serial INTEGER,
    PRIMARY KEY (network, version, address)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS file (name TEXT PRIMARY KEY, content BLOB) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS young (
    name TEXT PRIMARY KEY, content BLOB, modified_ns INTEGER) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS fact (name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS attachment (
    name TEXT PRIMARY KEY, body TEXT, boot TEXT, host TEXT, cookie TEXT, pid INTEGER,
    started INTEGER, ip_file TEXT) WITHOUT ROWID;
"""
SCHEMA += trials.SCHEMA
BUSY_MS = 30_000
LOG_PAGES = 128
"""So long the log may become (4 KiB each) before it is moved into the database: whoever opens it after
somebody that did not close it reads it through."""


class Store:
    """An open state dir. Read-only ones hold an empty copy in memory where there is no file."""

    def __init__(self, db: sqlite3.Connection, notes: tuple[str, ...]) -> None:
        self._db = db
        self.notes = notes
        self.trials = Trials(db)

    @classmethod
    def open(cls, directory: str, *, read_only: bool = False) -> "Store":
        """Open `directory`; a damaged database is put aside, and addresses are read back."""
        path = os.path.join(directory, "state.db")
        try:
            if read_only:
                return cls(_read_only(path), ())
            own_directory(directory, 0o700)
            try:
                return cls(_open(path), ())
            except sqlite3.DatabaseError as error:
                from reconciler.host.damage import damaged

                if not damaged(error):
                    raise
                aside = _put_aside(path)
                note = f"{path} was damaged ({error}) and is kept as {aside}"
                return cls(_open(path), (note,))
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"{path}: cannot be opened: {error} (see --state-dir)") from error

    @classmethod
    def attach(cls, directory: str) -> "Store":
        """Open one that is there, as it is, beside whoever holds the lock: to answer a trial."""
        path = os.path.join(directory, "state.db")
        try:
            uri = f"{_uri(path)}?mode=rw"
            db = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=BUSY_MS / 1000)
            db.execute("PRAGMA synchronous=FULL")
            return cls(db, ())
        except sqlite3.Error as error:
            raise StoreError(f"{path}: cannot be opened: {error} (see --state-dir)") from error

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    def trial(self) -> Trial | None:
        """The trial in progress. Raises StoreError where it cannot be read."""
        try:
            return self.trials.current()
        except sqlite3.Error as error:
            raise StoreError(f"the state cannot be read: {error}") from error

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything inside is on disk at its end, or nothing of it."""
        try:
            with _writing():
                self._db.execute("BEGIN IMMEDIATE")
                yield
                self._db.execute("COMMIT")
        finally:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")

    def version(self) -> int:
        """Another number than before: somebody else has written."""
        return int(self._db.execute("PRAGMA data_version").fetchone()[0])

    def book(self) -> Book:
        """All leases."""
        held = {
            Key(container, network, interface, version): Address(version, int(address, 16))
            for container, network, interface, version, address in self._db.execute(
                "SELECT container, network, interface, version, address FROM lease"
            )
        }
        freed = {
            (network, Address(version, int(address, 16))): serial
            for network, version, address, serial in self._db.execute(
                "SELECT network, version, address, serial FROM freed"
            )
        }
        return Book(held=held, freed=freed, serial=self.serial())

    def leases(self, names: Collection[str]) -> dict[Key, Address]:
        """The leases of these containers."""
        marks = ", ".join("?" * len(names))
        rows = self._db.execute(
            "SELECT container, network, interface, version, address FROM lease "
            f"WHERE container IN ({marks})",
            tuple(names),
        )
        return {
            Key(container, network, interface, version): Address(version, int(address, 16))
            for container, network, interface, version, address in rows
        }

    def leases_in(self, network: str) -> dict[Key, Address]:
        """The leases of a network."""
        rows = self._db.execute(
            "SELECT container, interface, version, address FROM lease WHERE network=?", (network,)
        )
        return {
            Key(container, network, interface, version): Address(version, int(address, 16))
            for container, interface, version, address in rows
        }

    def leased(self, network: str, version: int) -> dict[str, str]:
        """The addresses of a network that are held, in hexadecimal, each with its container."""
        query = "SELECT address, container FROM lease WHERE network=? AND version=?"
        return dict(self._db.execute(query, (network, version)))

    def freed(self, network: str, version: int) -> dict[str, int]:
        """The addresses of a network that were held once, in hexadecimal, the one freed longest ago
        first, each with its serial number."""
        query = "SELECT address, serial FROM freed WHERE network=? AND version=? ORDER BY serial"
        return dict(self._db.execute(query, (network, version)))

    def serial(self) -> int:
        """The number of the last release of an address."""
        return int(self.get("serial") or 0)

    def save_book(self, old: Book, new: Book) -> None:
        """Write what differs between the two."""
        if old is new:
            return
        gone = [astuple(key) for key in old.held if key not in new.held]
        self._db.executemany(
            "DELETE FROM lease WHERE container=? AND network=? AND interface=? AND version=?", gone
        )
        self._db.executemany(
            "INSERT OR REPLACE INTO lease VALUES (?, ?, ?, ?, ?)",
            [
                (*astuple(key), f"{a.value:x}")
                for key, a in new.held.items()
                if old.held.get(key) != a
            ],
        )
        self._db.executemany(
            "DELETE FROM freed WHERE network=? AND version=? AND address=?",
            [(n, a.version, f"{a.value:x}") for n, a in old.freed if (n, a) not in new.freed],
        )
        self._db.executemany(
            "INSERT OR REPLACE INTO freed VALUES (?, ?, ?, ?)",
            [
                (n, a.version, f"{a.value:x}", serial)
                for (n, a), serial in new.freed.items()
                if old.freed.get((n, a)) != serial
            ],
        )
        if old.serial != new.serial:
            self.put("serial", str(new.serial))

    def remembered(self, names: Collection[str] | None = None) -> dict[str, bytes]:
        """The last good content of each definition file; of these alone, where given."""
        rows = self._files("SELECT name, content FROM file", names)
        return {name: unpacked(content) for name, content in rows}

    def memory(self, names: Collection[str] | None = None) -> Memory:
        """What files said when they last loaded, as far as it is known."""
        rows = self._files("SELECT name, content, modified_ns FROM young", names)
        young = {name: Young(unpacked(content), ns) for name, content, ns in rows}
        return Memory(self.remembered(names), young)

    def _files(self, query: str, names: Collection[str] | None) -> Iterator[Any]:
        if names is None:
            yield from self._db.execute(query)
        for name in names or ():
            yield from self._db.execute(f"{query} WHERE name=?", (name,))

    def settle(self, found: Grown) -> None:
        """Take over what has become of what was young."""
        self._db.executemany(
            "INSERT OR REPLACE INTO file VALUES (?, ?)",
            [(name, packed(content)) for name, content in found.kept.items()],
        )
        self._drop_young([*found.kept, *found.dropped])

    def note_young(self, young: Mapping[str, Young]) -> None:
        """Keep what files say that are still being written, maybe."""
        self.trials.note_files(young)
        self._db.executemany(
            "INSERT OR REPLACE INTO young VALUES (?, ?, ?)",
            [(name, packed(one.content), one.modified_ns) for name, one in young.items()],
        )

    def _drop_young(self, names: Iterable[str]) -> None:
        self._db.executemany("DELETE FROM young WHERE name=?", [(name,) for name in names])

    def remember(self, contents: Mapping[str, bytes], *, forget: Iterable[str]) -> None:
        """Keep the content of good files that were left alone, and drop that of files that are gone."""
        forget = list(forget)
        self.trials.note_files([*contents, *forget])
        self._drop_young([*contents, *forget])
        self._db.executemany("DELETE FROM file WHERE name=?", [(name,) for name in forget])
        self._db.executemany(
            "INSERT OR REPLACE INTO file VALUES (?, ?)",
            [(name, packed(content)) for name, content in contents.items()],
        )

    def attachments(self, names: Collection[str] | None = None) -> dict[str, Attachment]:
        """What hooks attached, by container; of these alone, where given."""
        rows = self._files(
            "SELECT name, body, boot, host, cookie, pid, started, ip_file FROM attachment", names
        )
        return {
            name: Attachment(
                name=name,
                body=body,
                boot=boot,
                host=int(host),  # cookies are 64 bits wide and unsigned
                cookie=int(cookie),
                pid=pid,
                started=started,
                ip_file=ip_file,
            )
            for name, body, boot, host, cookie, pid, started, ip_file in rows
        }

    def attached_as(self, cookie: int) -> list[str]:
        """The attachments of the namespace of that cookie."""
        rows = self._db.execute("SELECT name FROM attachment WHERE cookie=?", (str(cookie),))
        return [name for (name,) in rows]

    def attached_text(self) -> str:
        """All that is kept of attachments; equal texts, equal attachments."""
        columns = ("name", "body", "boot", "host", "cookie", "pid", "started", "ip_file")
        row = " || ',' || ".join(f"quote({column})" for column in columns)
        rows = "(SELECT * FROM attachment ORDER BY name)"
        (text,) = self._db.execute(f"SELECT group_concat({row}) FROM {rows}").fetchone()
        return text or ""

    def save_attachment(self, one: Attachment) -> None:
        """Keep an attachment."""
        row = (one.name, one.body, one.boot, str(one.host), str(one.cookie), one.pid, one.started)
        with _writing():
            self._db.execute(
                "INSERT OR REPLACE INTO attachment VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (*row, one.ip_file),
            )

    def drop_attachments(self, names: Iterable[str]) -> None:
        """Drop attachments."""
        with _writing():
            self._db.executemany("DELETE FROM attachment WHERE name=?", [(n,) for n in names])

    def get(self, name: str) -> str | None:
        """A small fact."""
        row = self._db.execute("SELECT value FROM fact WHERE name=?", (name,)).fetchone()
        return row[0] if row else None

    def put(self, name: str, value: str) -> None:
        """Write a small fact."""
        with _writing():
            self._db.execute("INSERT OR REPLACE INTO fact VALUES (?, ?)", (name, value))


@contextlib.contextmanager
def _writing() -> Iterator[None]:
    """What SQLite says of a disk that is full, or broken, in our words."""
    try:
        yield
    except sqlite3.Error as error:
        raise StoreError(f"the state cannot be written: {error}") from error


def _open(path: str) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, timeout=BUSY_MS / 1000)
    try:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        db.execute(f"PRAGMA wal_autocheckpoint={LOG_PAGES}")
        if db.execute("PRAGMA quick_check").fetchone() != ("ok",):
            raise sqlite3.DatabaseError("quick_check failed")
        db.executescript(SCHEMA)
    except BaseException:
        db.close()
        raise
    return db


def _uri(path: str) -> str:
    return "file:" + path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")


def _read_only(path: str) -> sqlite3.Connection:
    """A copy in memory: a reader of a WAL database would otherwise write its -shm file."""
    memory = sqlite3.connect(":memory:", isolation_level=None)
    if os.path.exists(path):
        uri = f"{_uri(path)}?mode=ro"
        with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=5)) as source:
            try:
                source.backup(memory)
            except sqlite3.DatabaseError:
                memory.close()
                memory = sqlite3.connect(":memory:", isolation_level=None)
    memory.executescript(SCHEMA)
    return memory


def _put_aside(path: str) -> str:
    number = 1
    while os.path.exists(f"{path}.broken-{number}"):
        number += 1
    aside = f"{path}.broken-{number}"
    with contextlib.suppress(FileNotFoundError):
        os.rename(f"{path}-wal", f"{aside}-wal")  # what was written last is in there
    os.rename(path, aside)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(f"{path}-shm")
    return aside
