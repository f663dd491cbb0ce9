"""The ledger: what is known of every file, in one SQLite file with one owner."""

from __future__ import annotations

import enum
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from sync_engine.core import failpoints
from sync_engine.errors import ConfigError, CorruptData, StoreUnavailable
from sync_engine.sources.file_watch.beneath import Fingerprint
from sync_engine.sources.file_watch.watcher import Root

__all__ = ["FileLedger", "Row", "State"]

_VERSION: Final = 1
_SCHEMA: Final = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE root (
    number INTEGER PRIMARY KEY, path BLOB NOT NULL UNIQUE, dev INTEGER, ino INTEGER
);
CREATE TABLE file (
    root INTEGER NOT NULL, path BLOB NOT NULL, state INTEGER NOT NULL,
    dev INTEGER NOT NULL, ino INTEGER NOT NULL, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
    closed INTEGER NOT NULL DEFAULT 0,
    first_ms INTEGER NOT NULL, due_ms INTEGER NOT NULL,
    t_dev INTEGER, t_ino INTEGER, t_size INTEGER, t_mtime_ns INTEGER,
    key TEXT, upload_id TEXT, etag TEXT, digest TEXT,
    attempts INTEGER NOT NULL DEFAULT 0, reason TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (root, path)
) WITHOUT ROWID;
CREATE INDEX file_due ON file (state, due_ms);
CREATE INDEX file_key ON file (key) WHERE key IS NOT NULL;
CREATE INDEX file_taken ON file (t_ino) WHERE t_ino IS NOT NULL;
CREATE TABLE part (
    root INTEGER NOT NULL, path BLOB NOT NULL, number INTEGER NOT NULL,
    etag TEXT NOT NULL, size INTEGER NOT NULL,
    PRIMARY KEY (root, path, number)
) WITHOUT ROWID;
"""
_COLUMNS: Final = (
    "root, path, state, dev, ino, size, mtime_ns, closed, first_ms, due_ms, "
    "t_dev, t_ino, t_size, t_mtime_ns, key, upload_id, etag, digest, attempts, reason"
)


class State(enum.IntEnum):
    """Where a file is on its way. Each step is committed before the next begins.

    SEEN: it is there. STABLE: finished, may be taken. UPLOADING: on its way. UPLOADED: the server
    took it. VERIFIED: the server was asked and has it whole. REMOVED: and the local file is gone,
    by our hand. PARKED: cannot be taken, see the reason. IGNORED: not taken, by the mode or policy.
    GONE: somebody deleted it, and the target is to follow.
    """

    SEEN = 1
    STABLE = 2
    UPLOADING = 3
    UPLOADED = 4
    VERIFIED = 5
    REMOVED = 6
    PARKED = 7
    IGNORED = 8
    GONE = 9


class Row(NamedTuple):
    """One file as the ledger knows it: ``t_`` is what was taken, the others what was seen last."""

    root: int
    path: bytes
    state: int
    dev: int
    ino: int
    size: int
    mtime_ns: int
    closed: int
    first_ms: int
    due_ms: int
    t_dev: int | None
    t_ino: int | None
    t_size: int | None
    t_mtime_ns: int | None
    key: str | None
    upload_id: str | None
    etag: str | None
    digest: str | None
    attempts: int
    reason: str

    @property
    def seen(self) -> Fingerprint:
        """The content seen last; a size of -1 is none."""
        return Fingerprint(self.dev, self.ino, self.size, self.mtime_ns)

    @property
    def taken(self) -> Fingerprint | None:
        """The content that was taken last."""
        if self.t_dev is None or self.t_ino is None:
            return None
        return Fingerprint(self.t_dev, self.t_ino, self.t_size or 0, self.t_mtime_ns or 0)


class FileLedger:
    """Rows by root and path, changed inside `step` alone, which commits them together.

    One thread at a time; one process at a time (the second gets `ConfigError`).

    Args:
        path: The SQLite file; None keeps it in memory.
        copy_of: With None for `path`: a ledger to begin with a copy of.

    Raises:
        ConfigError: Another process has it open, or it is of a newer version.
        CorruptData: It is no ledger, or is damaged.
        StoreUnavailable: The disk is full, or cannot be written.
    """

    def __init__(self, path: Path | None, *, copy_of: Path | None = None) -> None:
        self.path = path
        self.commits = 0
        self._held: list[str] = []
        with self._translated():
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(
                ":memory:" if path is None else path,
                isolation_level=None,
                check_same_thread=False,
                timeout=0.5,
            )
            try:
                self._open(copy_of)
            except BaseException:
                self._db.close()
                raise

    def _open(self, copy_of: Path | None) -> None:
        db = self._db
        if copy_of is not None and copy_of.exists():
            other = sqlite3.connect(f"{copy_of.absolute().as_uri()}?mode=ro", uri=True)
            try:
                other.backup(db)
            finally:
                other.close()
        if self.path is not None:
            db.execute("PRAGMA locking_mode = EXCLUSIVE")
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA cache_size = -8000")
        db.execute("PRAGMA temp_store = MEMORY")
        db.execute("BEGIN IMMEDIATE")
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version > _VERSION:
            raise ConfigError(f"{self.path}: the ledger is of a newer version ({version})")
        if version == 0:
            for statement in _SCHEMA.split(";"):
                db.execute(statement)
            db.execute(f"PRAGMA user_version = {_VERSION}")
        db.execute("COMMIT")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as exc:
            if "locked" in str(exc):
                raise ConfigError(f"{self.path}: another process has this ledger open") from exc
            raise StoreUnavailable("ledger", "write", f"{self.path}: {exc}") from exc
        except sqlite3.DatabaseError as exc:
            raise CorruptData(str(self.path), f"no ledger, or damaged: {exc}") from exc
        except OSError as exc:
            raise StoreUnavailable("ledger", "open", f"{self.path}: {exc}") from exc

    @contextmanager
    def step(self) -> Iterator[None]:
        """Commit what happens in the block together, or nothing of it.

        Raises:
            StoreUnavailable: The disk is full, or fails; nothing was changed.
            CorruptData: The file is damaged.
        """
        with self._translated():
            before = self._db.total_changes
            self._db.execute("BEGIN")
            try:
                yield
                changed = self._db.total_changes > before
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                self._held.clear()
                raise
        self.commits += changed
        held, self._held = self._held, []
        if failpoints.armed:
            for name in held:
                failpoints.hit(name)

    def mark(self, name: str) -> None:
        """Hit a failpoint after the commit of this step."""
        if failpoints.armed and name not in self._held:
            self._held.append(name)

    def close(self) -> None:
        """Close the file; safe twice."""
        self._db.close()

    # -- what it is bound to ----------------------------------------------------------------------

    def bind(self, name: str, value: str) -> None:
        """Remember a setting that rows depend on, at the first time, and compare it later.

        Raises:
            ConfigError: The ledger was made for another value.
        """
        with self.step():
            self._db.execute("INSERT OR IGNORE INTO meta VALUES (?, ?)", (name, value))
        found = self._db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()[0]
        if found != value:
            raise ConfigError(
                f"{self.path}: this ledger is of {name} {found!r}, not {value!r}: name another one"
            )

    def root(self, path: bytes) -> Root:
        """Return a root by its path, known from now on."""
        with self.step():
            self._db.execute("INSERT OR IGNORE INTO root (path) VALUES (?)", (path,))
        query = "SELECT number FROM root WHERE path = ?"
        return Root(self._db.execute(query, (path,)).fetchone()[0], path)

    def root_identity(self, root: int) -> tuple[int, int] | None:
        """Return device and inode that a root had; None where it was never looked at."""
        query = "SELECT dev, ino FROM root WHERE number = ?"
        dev, ino = self._db.execute(query, (root,)).fetchone()
        return None if dev is None else (dev, ino)

    def set_root_identity(self, root: int, dev: int, ino: int) -> None:
        """Remember device and inode of a root."""
        self._db.execute("UPDATE root SET dev = ?, ino = ? WHERE number = ?", (dev, ino, root))

    # -- rows -------------------------------------------------------------------------------------

    def rows(self, keys: Sequence[tuple[int, bytes]]) -> dict[tuple[int, bytes], Row]:
        """Return the rows of some paths; absent ones are left out."""
        found: dict[tuple[int, bytes], Row] = {}
        by_root: dict[int, list[bytes]] = {}
        for root, path in keys:
            by_root.setdefault(root, []).append(path)
        for root, paths in by_root.items():
            for low in range(0, len(paths), 500):
                some = paths[low : low + 500]
                marks = ",".join("?" * len(some))
                query = f"SELECT {_COLUMNS} FROM file WHERE root = ? AND path IN ({marks})"  # noqa: S608
                for values in self._db.execute(query, (root, *some)):
                    found[root, values[1]] = Row._make(values)
        return found

    def row(self, root: int, path: bytes) -> Row | None:
        """Return one row."""
        return self.rows([(root, path)]).get((root, path))

    def page(self, root: int, after: bytes | None, limit: int) -> list[Row]:
        """Return the rows of a root that follow a path, in bytewise order."""
        query = f"SELECT {_COLUMNS} FROM file WHERE root = ? AND path > ? ORDER BY path LIMIT ?"  # noqa: S608
        return [Row._make(v) for v in self._db.execute(query, (root, after or b"", limit))]

    def due(self, state: State, now_ms: int, limit: int) -> list[Row]:
        """Return rows of a state whose time has come, longest due first."""
        query = (
            f"SELECT {_COLUMNS} FROM file WHERE state = ? AND due_ms <= ? "  # noqa: S608
            "ORDER BY due_ms LIMIT ?"
        )
        return [Row._make(v) for v in self._db.execute(query, (int(state), now_ms, limit))]

    def next_due_ms(self, states: Sequence[State]) -> int | None:
        """Return when the next row of some states is due."""
        dues = [
            self._db.execute("SELECT min(due_ms) FROM file WHERE state = ?", (int(s),)).fetchone()
            for s in states
        ]
        return min((due[0] for due in dues if due[0] is not None), default=None)

    def counts(self) -> dict[State, int]:
        """Return the number of rows by state. Cost: a pass over an index."""
        query = "SELECT state, count(*) FROM file GROUP BY state"
        return {State(state): count for state, count in self._db.execute(query)}

    def put(self, rows: Sequence[Row]) -> None:
        """Insert or replace rows."""
        marks = ",".join("?" * len(Row._fields))
        statement = f"INSERT OR REPLACE INTO file ({_COLUMNS}) VALUES ({marks})"  # noqa: S608
        self._db.executemany(statement, rows)

    def drop(self, keys: Sequence[tuple[int, bytes]]) -> None:
        """Forget files."""
        self._db.executemany("DELETE FROM file WHERE root = ? AND path = ?", keys)
        self._db.executemany("DELETE FROM part WHERE root = ? AND path = ?", keys)

    def clamp(self, now_ms: int, ahead_ms: int) -> None:
        """Make due what waits for longer than anything should: the clock was set back."""
        self._db.execute(
            "UPDATE file SET due_ms = ? WHERE due_ms > ?", (now_ms + ahead_ms, now_ms + ahead_ms)
        )

    def again(self, state: State, to: State, now_ms: int) -> None:
        """Move all rows of a state to another, due now."""
        self._db.execute(
            "UPDATE file SET state = ?, due_ms = ? WHERE state = ?", (to, now_ms, state)
        )

    def taken_as(self, seen: Fingerprint, size_min: int = 1) -> list[Row]:
        """Return rows whose taken content has a fingerprint: candidates for a rename."""
        if seen.size < size_min:
            return []
        query = (
            f"SELECT {_COLUMNS} FROM file WHERE t_ino = ? AND t_dev = ? AND t_size = ? "  # noqa: S608
            "AND t_mtime_ns = ?"
        )
        values = (seen.ino, seen.dev, seen.size, seen.mtime_ns)
        return [Row._make(v) for v in self._db.execute(query, values)]

    # -- files that vanished ----------------------------------------------------------------------

    def begin_missing(self) -> None:
        """Begin a list of files that are not there any more."""
        self._db.execute(
            "CREATE TEMP TABLE IF NOT EXISTS missing (root INTEGER, path BLOB, "
            "PRIMARY KEY (root, path)) WITHOUT ROWID"
        )
        self._db.execute("DELETE FROM missing")

    def add_missing(self, keys: Sequence[tuple[int, bytes]]) -> None:
        """Add to the list."""
        self._db.executemany("INSERT OR IGNORE INTO missing VALUES (?, ?)", keys)

    def some_missing(self, limit: int) -> list[tuple[int, bytes]]:
        """Take some off the list."""
        found = self._db.execute("SELECT root, path FROM missing LIMIT ?", (limit,)).fetchall()
        self._db.executemany("DELETE FROM missing WHERE root = ? AND path = ?", found)
        return found
