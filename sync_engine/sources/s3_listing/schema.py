"""The file that remembers: its form, its owner, and what it belongs to."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from sync_engine.errors import ConfigError, CorruptData, StoreUnavailable

__all__ = ["SCHEMA_VERSION", "bind", "damage", "open_file"]

SCHEMA_VERSION: Final = 1
_APPLICATION: Final = 0x53334C53  # "S3LS"
_BUSY: Final = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_DAMAGED: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)

# Keys compare bytewise (UTF-8), which is the order of S3's listings.
_TABLES: Final = """
CREATE TABLE object (key TEXT PRIMARY KEY, etag TEXT NOT NULL, size INTEGER NOT NULL,
    modified TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE outbox (seq INTEGER PRIMARY KEY AUTOINCREMENT, op TEXT NOT NULL,
    old_key TEXT, old_etag TEXT, old_size INTEGER, old_modified TEXT,
    key TEXT, etag TEXT, size INTEGER, modified TEXT);
CREATE TABLE missing (key TEXT PRIMARY KEY, marker TEXT NOT NULL DEFAULT '') WITHOUT ROWID;
CREATE TABLE fresh (key TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE pair (old TEXT PRIMARY KEY, new TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE spool (key TEXT PRIMARY KEY, etag TEXT NOT NULL, size INTEGER NOT NULL,
    modified TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE part (id INTEGER PRIMARY KEY, low TEXT NOT NULL, high TEXT, at TEXT NOT NULL,
    done INTEGER NOT NULL DEFAULT 0);
CREATE TABLE mark (key TEXT PRIMARY KEY, scan INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE scan (one INTEGER PRIMARY KEY CHECK (one = 1), id INTEGER NOT NULL,
    phase TEXT NOT NULL, objects INTEGER NOT NULL, known INTEGER NOT NULL, scans INTEGER NOT NULL,
    started_ms INTEGER NOT NULL, ended_ms INTEGER NOT NULL, counts TEXT NOT NULL);
CREATE TABLE parked (key TEXT PRIMARY KEY, etag TEXT NOT NULL, size INTEGER NOT NULL,
    reason TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
INSERT INTO scan VALUES (1, 0, 'idle', 0, 0, 0, 0, 0, '{}');
"""


def open_file(path: Path, cache_bytes: int) -> sqlite3.Connection:
    """Open the file alone, making it where it is not there.

    It stays locked until the connection is closed or the process ends, however it ends.

    Raises:
        ConfigError: Another process has it, or it is no such file, or of another version.
        CorruptData: It is damaged.
        StoreUnavailable: The disk does not do.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise ConfigError(f"{path} cannot be made: {exc.strerror}") from exc
    with damage(path):
        db = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
    try:
        with damage(path):
            db.execute("PRAGMA locking_mode = EXCLUSIVE")
            # A crash loses nothing committed; a power cut may, but only what the bucket still has.
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
            db.execute(f"PRAGMA cache_size = -{cache_bytes // 1024}")
            db.execute("BEGIN EXCLUSIVE")
            _check_or_create(db, path)
            db.execute("COMMIT")
    except sqlite3.OperationalError as exc:  # pragma: no cover - translated above
        db.close()
        raise ConfigError(f"{path}: {exc}") from exc
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            db.close()
        raise
    return db


def _check_or_create(db: sqlite3.Connection, path: Path) -> None:
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if not tables:
        for statement in _TABLES.split(";\n"):
            if statement.strip():
                db.execute(statement)
        db.execute(f"PRAGMA application_id = {_APPLICATION}")
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    elif application != _APPLICATION:
        raise ConfigError(f"{path} is a database of something else: name another state file")
    elif version != SCHEMA_VERSION:
        raise ConfigError(
            f"{path} has state version {version}, this program reads {SCHEMA_VERSION}: "
            "use the program that made it, or name a new state file"
        )


def bind(db: sqlite3.Connection, path: Path, about: Mapping[str, object], *, rebase: bool) -> bool:
    """Tie the state to what it is about; return whether that was something else before.

    Raises:
        ConfigError: It is about something else, and `rebase` was not asked for.
    """
    row = db.execute("SELECT value FROM meta WHERE name = 'about'").fetchone()
    before = None if row is None else json.loads(row[0])
    now = json.loads(json.dumps(about))
    if before == now:
        return False
    if before is not None and not rebase:
        names = [name for name in now if before.get(name) != now[name]]
        told = ", ".join(f"{n} was {before.get(n)!r} and is {now[n]!r}" for n in names)
        raise ConfigError(
            f"{path} remembers another listing: {told}; name another state file, or ask for rebase"
        )
    db.execute("INSERT OR REPLACE INTO meta VALUES ('about', ?)", (json.dumps(now),))
    if before is None:
        return False
    same_bucket = all(before.get(n) == now.get(n) for n in ("endpoint", "bucket", "versions"))
    if not same_bucket:
        for table in ("object", "outbox", "mark", "parked"):
            db.execute(f"DELETE FROM {table}")  # noqa: S608 - names of ours
        db.execute("UPDATE scan SET scans = 0")  # the next is a first one: it may be a baseline
    return True


@contextmanager
def damage(path: Path) -> Iterator[None]:
    """Raise the engine's errors in place of SQLite's."""
    try:
        yield
    except sqlite3.DatabaseError as exc:
        code = getattr(exc, "sqlite_errorcode", 0) & 0xFF
        if code in _BUSY:
            raise ConfigError(
                f"{path} is in use by another process: stop it, or name another state file"
            ) from exc
        if code in _DAMAGED:
            raise CorruptData(
                str(path), "the state file is damaged: move it away; the next scan is a first one"
            ) from exc
        if code in {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}:
            raise StoreUnavailable("state file", "write", f"{path}: {exc}") from exc
        if code in {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM}:
            raise ConfigError(f"{path} cannot be written: {exc}") from exc
        raise
