"""The store's part of `runcnet try`: the trial in progress, and what was taken back."""

from collections.abc import Iterable, Mapping
from sqlite3 import Connection

import msgspec

from reconciler.host import procs
from reconciler.host.machine import boot_id

SCHEMA = """
CREATE TABLE IF NOT EXISTS trial (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    pid INTEGER, started INTEGER, boot TEXT, deadline REAL, answer TEXT);
CREATE TABLE IF NOT EXISTS tried (name TEXT PRIMARY KEY, content BLOB) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS tried_lease (
    container TEXT, network TEXT, interface TEXT, version INTEGER, address TEXT,
    PRIMARY KEY (container, network, interface, version)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS tried_object (name TEXT PRIMARY KEY, made INTEGER) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS doubt (
    name TEXT, digest BLOB, reason TEXT, PRIMARY KEY (name, digest)) WITHOUT ROWID;
"""
CONFIRM, TAKE_BACK = "confirm", "take back"
SERIAL = "trials"


def packed(content: bytes) -> bytes:
    """What a file says, as it is kept."""
    import zlib

    return zlib.compress(content, 1)


def unpacked(content: bytes) -> bytes:
    """What a file said. Raises zlib.error."""
    import zlib

    return zlib.decompress(content)


class Trial(msgspec.Struct, frozen=True):
    """A trial in progress: whose it is, and how it stands."""

    pid: int
    started: int
    """When that process began (clock ticks since the boot): pids come again."""
    boot: str
    deadline: float | None = None
    """Of the monotonic clock, in seconds; None: nobody waits for an answer yet."""
    answer: str | None = None
    """CONFIRM, TAKE_BACK, or None: there is none yet."""

    @property
    def alive(self) -> bool:
        """Whether its process still runs."""
        return self.boot == boot_id() and procs.started(self.pid) == self.started

    def same(self, other: "Trial | None") -> bool:
        """Whether both are of one process."""
        return other is not None and (
            (self.pid, self.started, self.boot) == (other.pid, other.started, other.boot)
        )


class Trials:
    """The trial in progress, of which there is one at most, and all doubts.

    All that is written is written inside a transaction of the store.
    """

    def __init__(self, db: Connection) -> None:
        self._db = db

    def serial(self) -> int:
        """Changes whenever a trial opens or ends and whenever doubts do: files are to be judged again."""
        row = self._db.execute("SELECT value FROM fact WHERE name=?", (SERIAL,)).fetchone()
        return int(row[0]) if row else 0

    def _changed(self) -> None:
        self._db.execute(
            "INSERT OR REPLACE INTO fact VALUES (?, ?)", (SERIAL, str(self.serial() + 1))
        )

    # -- the trial --------------------------------------------------------------------------

    def current(self) -> Trial | None:
        """The trial in progress."""
        row = self._db.execute("SELECT pid, started, boot, deadline, answer FROM trial").fetchone()
        return Trial(*row) if row else None

    def pending(self) -> bool:
        """Whether there is a trial that nobody has confirmed."""
        current = self.current()
        return current is not None and current.answer != CONFIRM

    def open(self, trial: Trial) -> None:
        """Begin a trial; the addresses that are held now are kept for its end."""
        self.end()
        self._db.execute(
            "INSERT INTO trial VALUES (1, ?, ?, ?, ?, ?)", msgspec.structs.astuple(trial)
        )
        self._db.execute("INSERT INTO tried_lease SELECT * FROM lease")
        self._changed()

    def set_deadline(self, deadline: float) -> None:
        """When the trial in progress is taken back."""
        self._db.execute("UPDATE trial SET deadline=?", (deadline,))

    def answer(self, answer: str) -> bool:
        """Answer the trial in progress, CONFIRM or TAKE_BACK; False: it has its answer."""
        found = self._db.execute("UPDATE trial SET answer=? WHERE answer IS NULL", (answer,))
        return found.rowcount == 1

    def end(self) -> None:
        """The trial is over, and what was tried is what holds."""
        for table in ("trial", "tried", "tried_lease", "tried_object"):
            self._db.execute(f"DELETE FROM {table}")
        self._changed()

    def undo(self) -> None:
        """The trial is over; leases and the content of files are again what they were before."""
        self._db.execute("DELETE FROM young WHERE name IN (SELECT name FROM tried)")
        self._db.execute(
            "DELETE FROM file WHERE name IN (SELECT name FROM tried WHERE content IS NULL)"
        )
        self._db.execute("INSERT OR REPLACE INTO file SELECT * FROM tried WHERE content NOT NULL")
        self._db.execute(
            "DELETE FROM lease WHERE (network, version, address) IN "
            "(SELECT network, version, address FROM tried_lease)"
        )
        self._db.execute("INSERT OR REPLACE INTO lease SELECT * FROM tried_lease")
        for table in ("trial", "tried", "tried_lease"):
            self._db.execute(f"DELETE FROM {table}")
        self._changed()

    def note_files(self, names: Iterable[str]) -> None:
        """While a trial is pending: keep what is remembered of files about to be remembered anew."""
        if self.pending():
            self._db.executemany(
                "INSERT OR IGNORE INTO tried VALUES (?1, (SELECT content FROM file WHERE name=?1))",
                [(name,) for name in names],
            )

    def files(self) -> dict[str, bytes | None]:
        """What was remembered of each file that the trial changed; None: nothing."""
        return {
            name: None if content is None else unpacked(content)
            for name, content in self._db.execute("SELECT name, content FROM tried")
        }

    # -- what a trial worked on ---------------------------------------------------------------

    def note_objects(self, objects: Mapping[str, bool]) -> None:
        """Objects that the trial changes, and whether it makes them."""
        self._db.executemany("INSERT OR IGNORE INTO tried_object VALUES (?, ?)", objects.items())

    def objects(self) -> dict[str, bool]:
        """Objects that the trial changed, and whether it made them; outlives the trial."""
        return {n: bool(made) for n, made in self._db.execute("SELECT * FROM tried_object")}

    def forget_objects(self, names: Iterable[str]) -> None:
        """Objects that are as they were before the trial."""
        self._db.executemany("DELETE FROM tried_object WHERE name=?", [(n,) for n in names])

    # -- doubts -------------------------------------------------------------------------------

    def doubts(self) -> dict[str, dict[bytes, str]]:
        """File → digest of what is doubted → why it was taken back."""
        found: dict[str, dict[bytes, str]] = {}
        for name, digest, reason in self._db.execute("SELECT name, digest, reason FROM doubt"):
            found.setdefault(name, {})[digest] = reason
        return found

    def doubt(self, digests: Iterable[tuple[str, bytes]], reason: str) -> None:
        """From now on these files are rejected where they say this."""
        self._db.executemany(
            "INSERT OR REPLACE INTO doubt VALUES (?, ?, ?)",
            [(name, digest, reason) for name, digest in digests],
        )
        self._changed()

    def drop_doubts(self, names: Iterable[str]) -> None:
        """These files are taken at their word again."""
        self._db.executemany("DELETE FROM doubt WHERE name=?", [(name,) for name in names])
        self._changed()
