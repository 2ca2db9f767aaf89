"""What all files said when everything was last looked at, by what is asked of it: the run dir's index.

It spares a process of its own the reading of thousands of files for one container. It is believed
only as long as every file is the same (its place, number, size, times, mode and owner), and so is
all else that it was made from (`key`). Whoever finds it not to be so looks at everything, and
makes it anew. Used under the lock alone.
"""

import contextlib
import os
import sqlite3
import time
from collections.abc import Collection, Iterable, Mapping, Sequence

import msgspec
from msgspec.structs import asdict

from reconciler.core.known import Count, claims_of
from reconciler.core.model import Container, Network
from reconciler.core.policy import NetworkPolicy
from reconciler.core.wanted import Bridge, Desired, Routed
from reconciler.host.trust import trusted_way

VERSION = 1
SCHEMA = """
CREATE TABLE IF NOT EXISTS fact (name TEXT PRIMARY KEY, value BLOB) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS container (
    name TEXT PRIMARY KEY, file TEXT, target TEXT, body BLOB) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS in_file ON container (file);
CREATE INDEX IF NOT EXISTS joined ON container (target) WHERE target IS NOT NULL;
CREATE TABLE IF NOT EXISTS claim (
    what TEXT, holder TEXT, PRIMARY KEY (what, holder)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS held ON claim (holder);
CREATE TABLE IF NOT EXISTS member (
    network TEXT, container TEXT, interface TEXT, reads INTEGER,
    wanted4 INTEGER, wanted6 INTEGER, given4 INTEGER, given6 INTEGER,
    PRIMARY KEY (network, container, interface)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS of_container ON member (container);
"""
FRESH_NS = 50_000_000
"""What was changed so short before it was looked at may change again within one tick of the file
system's clock, and look the same."""

Stamps = dict[str, tuple[int, ...]]
"""Definition file → device, inode, size, times of change in nanoseconds, mode, owner."""


class _Frame(msgspec.Struct):
    """What is read back of `Known.resolved`: types that nothing is read into need not be learnt."""

    bridges: dict[str, Bridge]
    routed: dict[str, Routed]
    policies: tuple[NetworkPolicy, ...]
    forwarding: tuple[int, ...]
    problems: dict[str, str]


class Known(msgspec.Struct, frozen=True):
    """What an index says of everything."""

    networks: dict[str, Network]
    resolved: Desired
    """Networks as the last look at everything resolved them; without members."""


def stamps(folders: Sequence[str]) -> Stamps | None:
    """Every definition file of the folders; None: only a closer look can tell what counts."""
    found: Stamps = {}
    for folder in map(os.path.normpath, folders):
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    name = entry.name
                    if name[-5:] != ".yaml" and name[-4:] != ".yml":
                        continue
                    if not entry.is_file(follow_symlinks=False):
                        return None
                    found[entry.path] = _stamp(entry.stat(follow_symlinks=False))
        except FileNotFoundError:
            continue
        if trusted_way(folder):
            return None
    return found


def stamp(file: str) -> tuple[int, ...] | None:
    """That of one file; None: there is none."""
    try:
        return _stamp(os.lstat(file))
    except FileNotFoundError:
        return None


def _stamp(s: os.stat_result) -> tuple[int, ...]:
    return (s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_mode, s.st_uid)


def settled_stamps(found: Stamps) -> Stamps:
    """The same, but what was changed just now matches nothing."""
    now = time.time_ns()
    return {f: s if now - s[4] > FRESH_NS else (*s[:4], 0, *s[5:]) for f, s in found.items()}


class Index:
    """An open index."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    @classmethod
    def open(cls, run_dir: str) -> "Index | None":
        """The index of a run dir; None: it cannot be used."""
        path = os.path.join(run_dir, "index.db")
        for _ in range(2):
            try:
                os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
                db = sqlite3.connect(path, isolation_level=None, timeout=5)
            except (OSError, sqlite3.Error):
                return None
            try:
                # It is made anew where it is lost.
                db.execute("PRAGMA synchronous=OFF")
                if not db.execute("PRAGMA user_version").fetchone()[0]:
                    db.executescript(SCHEMA)
                    db.execute(f"PRAGMA user_version={VERSION}")
                return cls(db)
            except sqlite3.Error:
                db.close()
                with contextlib.suppress(OSError):
                    os.unlink(path)
        return None

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    def known(self, key: bytes, found: Stamps) -> Known | None:
        """What it says of networks; None: it was made from something else than this."""
        if self._fact("key") != key or self._fact("stamps") != _packed(found):
            return None
        networks, resolved = self._fact("networks"), self._fact("resolved")
        if networks is None or resolved is None:
            return None
        return Known(
            msgspec.json.decode(networks, type=dict[str, Network]),
            Desired(members={}, **asdict(msgspec.json.decode(resolved, type=_Frame))),
        )

    def _fact(self, name: str) -> bytes | None:
        row = self._db.execute("SELECT value FROM fact WHERE name=?", (name,)).fetchone()
        return row[0] if row else None

    def containers(self, names: Collection[str]) -> dict[str, Container]:
        """The declared containers of these names."""
        decode = msgspec.json.Decoder(Container).decode
        query = "SELECT body FROM container WHERE name=?"
        found = {}
        for name in names:
            row = self._db.execute(query, (name,)).fetchone()
            if row is not None:
                found[name] = decode(row[0])
        return found

    def declared_in(self, file: str) -> set[str]:
        """The containers that a file declares."""
        return {n for (n,) in self._db.execute("SELECT name FROM container WHERE file=?", (file,))}

    def joiners(self, names: Collection[str]) -> set[str]:
        """Who lives in the namespace of one of these."""
        marks = ", ".join("?" * len(names))
        rows = self._db.execute(
            f"SELECT name FROM container WHERE target IN ({marks})", tuple(names)
        )
        return {name for (name,) in rows}

    def holders(self, claims: Iterable[str]) -> set[str]:
        """Who has any of these."""
        found: set[str] = set()
        for claim in claims:
            rows = self._db.execute("SELECT holder FROM claim WHERE what=?", (claim,))
            found.update(holder for (holder,) in rows)
        return found

    def claimed(self, network: str) -> set[str]:
        """The addresses of a network that are declared, or carried by who has none declared; each as
        its IP version and value in hexadecimal."""
        lead = f"address {network} "
        rows = self._db.execute(
            "SELECT what FROM claim WHERE what >= ? AND what < ?", (lead, f"{lead[:-1]}!")
        )
        return {what[len(lead) :] for (what,) in rows}

    def count(self, network: str, but: Collection[str]) -> Count:
        """How many there are in a network, some containers not counted."""
        marks = ", ".join("?" * len(but))
        row = self._db.execute(
            "SELECT count(*), sum(wanted4), sum(wanted6), sum(given4), sum(given6) FROM member "
            f"WHERE network=? AND container NOT IN ({marks})",
            (network, *but),
        ).fetchone()
        ports, w4, w6, g4, g6 = (value or 0 for value in row)
        return Count(ports, {4: w4, 6: w6}, {4: g4, 6: g6})

    def members(self, network: str) -> set[str]:
        """The containers of a network."""
        rows = self._db.execute("SELECT container FROM member WHERE network=?", (network,))
        return {container for (container,) in rows}

    def readers(self, network: str) -> set[str]:
        """Those of them that have a hosts file."""
        rows = self._db.execute(
            "SELECT container FROM member WHERE network=? AND reads", (network,)
        )
        return {container for (container,) in rows}

    # -- learning -----------------------------------------------------------------------------

    def learn(
        self,
        key: bytes,
        found: Stamps,
        known: Known,
        containers: Mapping[str, Container],
        odd: Iterable[tuple[str, str]],
    ) -> None:
        """Begin anew."""
        db = self._db
        db.execute("BEGIN IMMEDIATE")
        for table in ("fact", "container", "claim", "member"):
            db.execute(f"DELETE FROM {table}")
        self._place(containers.values())
        db.executemany("INSERT OR IGNORE INTO claim VALUES (?, ?)", odd)
        facts = {
            "key": key,
            "stamps": _packed(found),
            "networks": msgspec.json.encode(known.networks),
            "resolved": msgspec.json.encode(known.resolved),
        }
        db.executemany("INSERT INTO fact VALUES (?, ?)", facts.items())
        db.execute("COMMIT")

    def change(
        self, key: bytes, names: Collection[str], fresh: Iterable[Container], found: Stamps
    ) -> None:
        """These containers are declared otherwise now, or not any more."""
        db = self._db
        db.execute("BEGIN IMMEDIATE")
        rows = [(name,) for name in names]
        db.executemany("DELETE FROM container WHERE name=?", rows)
        db.executemany("DELETE FROM claim WHERE holder=?", rows)
        db.executemany("DELETE FROM member WHERE container=?", rows)
        self._place(fresh)
        facts = {"key": key, "stamps": _packed(found)}
        db.executemany("INSERT OR REPLACE INTO fact VALUES (?, ?)", facts.items())
        db.execute("COMMIT")

    def forget(self) -> None:
        """It is not to be believed any more."""
        self._db.execute("DELETE FROM fact")

    def _place(self, containers: Iterable[Container]) -> None:
        bodies, claims, members = [], [], []
        encode = msgspec.json.Encoder().encode
        for c in containers:
            bodies.append((c.name, c.place.file, c.join, encode(c)))
            claims += [(claim, c.name) for claim in claims_of(c)]
            for i in c.interfaces:
                given = [a.version for a in i.addresses]
                members.append(
                    (i.network, c.name, i.name, c.dns is not None, 4 in i.automatic,
                     6 in i.automatic, given.count(4), given.count(6))
                )  # fmt: skip
        self._db.executemany("INSERT OR REPLACE INTO container VALUES (?, ?, ?, ?)", bodies)
        self._db.executemany("INSERT OR IGNORE INTO claim VALUES (?, ?)", claims)
        self._db.executemany("INSERT INTO member VALUES (?, ?, ?, ?, ?, ?, ?, ?)", members)


def _packed(found: Stamps) -> bytes:
    return msgspec.msgpack.encode(sorted(found.items()))
