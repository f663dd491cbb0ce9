"""The log's SQLite file: frames, cursors, dead letters and named snapshots.

One connection writes and checkpoints, its user holds the caller's write lock; a second one reads.
`synchronous` is NORMAL: a commit is safe from the death of the process, and `sync` makes all that
was committed safe from power loss.
"""

from __future__ import annotations

import os
import sqlite3
import struct
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from xxhash import xxh3_64_intdigest

from sync_engine.core import failpoints
from sync_engine.core.item import Change
from sync_engine.errors import ConfigError, CorruptData, EngineFailed, StoreUnavailable
from sync_engine.wal import frame

__all__ = ["FORMAT", "LogFile"]

FORMAT = 1
_APPLICATION_ID = 0x53454C47  # "SELG"
_SCHEMA = """
CREATE TABLE frame (first INTEGER PRIMARY KEY, count INTEGER NOT NULL, body BLOB NOT NULL);
CREATE TABLE cursor (name TEXT PRIMARY KEY, position INTEGER NOT NULL);
CREATE TABLE dead (
    follower TEXT NOT NULL, position INTEGER NOT NULL, id TEXT NOT NULL, record BLOB NOT NULL,
    error TEXT NOT NULL, at_ms INTEGER NOT NULL, PRIMARY KEY (follower, position)
);
CREATE TABLE snapshot (name TEXT PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE meta (name TEXT PRIMARY KEY, value NOT NULL);
"""
_HEAD = struct.Struct("<qQ")
_PAGE_BYTES = 8192
_COMMIT_BYTES = 2 * _PAGE_BYTES  # what a commit adds to the journal beside its content


class LogFile:
    """Opens or creates the file; `create` is atomic, and a foreign file is refused untouched.

    Raises:
        ConfigError: The path cannot be used, or a newer version wrote the file.
        CorruptData: The file is no log, or is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._check_path()
        created = not path.exists() or path.stat().st_size == 0
        if created:
            with suppress(FileExistsError):
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW, 0o600))
        try:
            self._db = self._connect()
            self._prepare()
            self._reader = self._connect()
            (page_bytes,) = self._reader.execute("PRAGMA page_size").fetchone()
            self._page_bytes = int(page_bytes)
        except sqlite3.DatabaseError as exc:
            raise CorruptData(
                str(path), f"not a usable log file ({exc}); move it away to start empty"
            ) from exc
        self._wal_path = Path(f"{path}-wal")
        self._journal_bytes = self._wal_path.stat().st_size if self._wal_path.exists() else 0
        self._sync_fd = -1
        self._head_fd = os.open(
            path.with_suffix(".head"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
        if created:
            self._sync_directory()

    def _check_path(self) -> None:
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as exc:
            raise ConfigError(
                f"data_dir: cannot create {self.path.parent}: {exc.strerror}"
            ) from exc
        if self.path.is_symlink() or (self.path.exists() and not self.path.is_file()):
            raise ConfigError(f"data_dir: {self.path} is not a plain file")
        if self.path.parent.stat().st_mode & 0o002:
            raise ConfigError(f"data_dir: {self.path.parent} is writable for everybody: chmod o-w")
        if not os.access(self.path.parent, os.W_OK | os.X_OK):
            raise ConfigError(f"data_dir: {self.path.parent} is not writable")

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(
            self.path,
            isolation_level=None,
            check_same_thread=False,
            timeout=5,
            cached_statements=64,
        )
        db.execute("PRAGMA trusted_schema=OFF")
        db.execute("PRAGMA cell_size_check=ON")
        db.execute("PRAGMA secure_delete=OFF")  # some builds overwrite what is deleted: as dear
        return db

    def _prepare(self) -> None:
        (application,) = self._db.execute("PRAGMA application_id").fetchone()
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        (tables,) = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if application != _APPLICATION_ID and tables:
            raise CorruptData(
                str(self.path), "a database of another program; choose another data_dir"
            )
        if version > FORMAT:
            raise ConfigError(
                f"data_dir: {self.path} has log format {version}, this version knows {FORMAT}: "
                "upgrade sync-engine"
            )
        if not tables:
            self._db.execute(f"PRAGMA page_size={_PAGE_BYTES}")
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.execute("PRAGMA wal_autocheckpoint=0")
        if not tables:
            with self._transaction():
                for statement in _SCHEMA.split(";\n"):
                    self._db.execute(statement)
                self._db.execute("INSERT INTO meta VALUES ('uuid', ?)", (uuid.uuid4().hex,))
                self._db.execute(f"PRAGMA application_id={_APPLICATION_ID}")
                self._db.execute(f"PRAGMA user_version={FORMAT}")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    # -- meta -----------------------------------------------------------------------------------

    def meta(self, name: str, default: int | str = 0) -> int | str:
        """Return a named value."""
        row = self._db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return default if row is None else row[0]

    def cursors(self) -> dict[str, int]:
        """Return all stored cursors."""
        return dict(self._db.execute("SELECT name, position FROM cursor"))

    def first(self) -> int:
        """Return the first position in the file; 0 where it is empty."""
        row = self._db.execute("SELECT first FROM frame ORDER BY first LIMIT 1").fetchone()
        return row[0] if row else 0

    def last(self) -> int:
        """Return the last position in the file; 0 where it is empty."""
        row = self._db.execute(
            "SELECT first + count - 1 FROM frame ORDER BY first DESC LIMIT 1"
        ).fetchone()
        return row[0] if row else 0

    # -- writing: the caller holds the write lock -------------------------------------------------

    def append(self, first: int, changes: Sequence[Change | None]) -> None:
        """Commit one frame in one transaction.

        Raises:
            StoreUnavailable: It was not written (disk full, file size limit).
        """
        body = frame.pack(first, changes)
        try:
            self._db.execute(
                "INSERT OR REPLACE INTO frame VALUES (?, ?, ?)", (first, len(changes), body)
            )
        except sqlite3.Error as exc:
            raise self._unwritable("append", exc) from exc
        self._journal_bytes += len(body) + _COMMIT_BYTES

    def save(
        self,
        *,
        cursors: dict[str, int] | None = None,
        meta: dict[str, int | str] | None = None,
        release_to: int = 0,
        limit: int = 1000,
    ) -> int:
        """Store cursors and values and drop up to `limit` frames that end at or below a position.

        Returns:
            How many frames were dropped; equal to `limit` when there may be more.

        Raises:
            StoreUnavailable: Nothing was changed.
        """
        try:
            with self._transaction():
                if cursors:
                    self._db.executemany(
                        "INSERT INTO cursor VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET"
                        " position = max(position, excluded.position)",
                        cursors.items(),
                    )
                if meta:
                    self._db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", meta.items())
                if not release_to:
                    return 0
                return self._db.execute(
                    "DELETE FROM frame WHERE first IN (SELECT first FROM frame"
                    " WHERE first <= ?1 AND first + count - 1 <= ?1 ORDER BY first LIMIT ?2)",
                    (release_to, limit),
                ).rowcount
        except sqlite3.Error as exc:
            raise self._unwritable("save", exc) from exc

    def forget_cursor(self, name: str) -> None:
        """Drop a cursor."""
        self._db.execute("DELETE FROM cursor WHERE name = ?", (name,))

    def _unwritable(self, operation: str, exc: sqlite3.Error) -> StoreUnavailable:
        if self._db.in_transaction:
            with suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
        hint = "make room on the disk" if "full" in str(exc) else "check the disk"
        return StoreUnavailable("log", operation, f"{exc}: {hint}")

    # -- durability -------------------------------------------------------------------------------

    def sync(self) -> None:
        """Make all committed frames safe from power loss. Blocks for one fdatasync.

        Raises:
            EngineFailed: It failed, which is final, or the file was replaced or unlinked.
        """
        try:
            if self._sync_fd < 0:
                self._sync_fd = os.open(self._wal_path, os.O_RDONLY | os.O_CLOEXEC)
            if failpoints.armed:
                failpoints.hit("log.sync")
            os.fdatasync(self._sync_fd)
            if os.fstat(self._sync_fd).st_ino != self._wal_path.stat().st_ino:
                raise FileNotFoundError(2, "the file was replaced while open")
            self.path.stat()
        except OSError as exc:
            raise EngineFailed(
                f"{self.path} could not be synced ({exc.strerror}): nothing more is accepted;"
                " check the disk and start again"
            ) from exc

    def note_head(self, position: int) -> None:
        """Remember, beside the file, how far it reached when it was last synced."""
        data = position.to_bytes(8, "little", signed=True)
        os.pwrite(self._head_fd, _HEAD.pack(position, xxh3_64_intdigest(data)), 0)

    def noted_head(self) -> int:
        """Return the noted head; 0 where there is none or it is damaged."""
        data = os.pread(self._head_fd, _HEAD.size, 0)
        if len(data) != _HEAD.size:
            return 0
        position, digest = _HEAD.unpack(data)
        return position if xxh3_64_intdigest(data[:8]) == digest else 0

    def checkpoint(self) -> None:
        """Copy the journal into the file, and begin it anew. Blocks for its syncs."""
        try:
            (busy, _, _) = self._db.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()
        except sqlite3.OperationalError:  # a full disk, say: the next one does it
            return
        if not busy:
            self._journal_bytes = 0

    @property
    def journal_bytes(self) -> int:
        """About how much SQLite's journal holds; its file keeps the largest size it had."""
        return self._journal_bytes

    def used_bytes(self) -> int:
        """Return the bytes in use: pages that hold something, not the size of the file."""
        (pages,) = self._reader.execute("PRAGMA page_count").fetchone()
        (free,) = self._reader.execute("PRAGMA freelist_count").fetchone()
        return int(pages - free) * self._page_bytes

    def _sync_directory(self) -> None:
        fd = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    # -- reading: the caller holds the read lock ---------------------------------------------------

    def frames(self, after: int, limit: int) -> list[tuple[int, int, bytes]]:
        """Return up to `limit` frames (first, count, body), from the one that holds `after` + 1."""
        return self._reader.execute(
            "SELECT first, count, body FROM frame WHERE first >= coalesce("
            "(SELECT first FROM frame WHERE first <= ?1 ORDER BY first DESC LIMIT 1), ?1)"
            " ORDER BY first LIMIT ?2",
            (after + 1, limit),
        ).fetchall()

    # -- dead letters and snapshots ----------------------------------------------------------------

    def bury(
        self, follower: str, position: int, change_id: str, record: bytes, error: str, at_ms: int
    ) -> None:
        """Put a record aside, with its error."""
        try:
            self._db.execute(
                "INSERT OR REPLACE INTO dead VALUES (?, ?, ?, ?, ?, ?)",
                (follower, position, change_id, record, error, at_ms),
            )
        except sqlite3.Error as exc:
            raise self._unwritable("dead letter", exc) from exc

    def dead(self) -> list[tuple[str, int, str, bytes, str, int]]:
        """Return all dead letters: follower, position, id, record, error, milliseconds."""
        return self._db.execute("SELECT * FROM dead ORDER BY position, follower").fetchall()

    def unbury(self, follower: str, position: int) -> bool:
        """Drop a dead letter; tell whether there was one."""
        return (
            self._db.execute(
                "DELETE FROM dead WHERE follower = ? AND position = ?", (follower, position)
            ).rowcount
            > 0
        )

    def put_snapshot(self, name: str, data: bytes) -> None:
        """Store a named blob.

        Raises:
            StoreUnavailable: It was not written.
        """
        try:
            self._db.execute("INSERT OR REPLACE INTO snapshot VALUES (?, ?)", (name, data))
        except sqlite3.Error as exc:
            raise self._unwritable("snapshot", exc) from exc

    def get_snapshot(self, name: str) -> bytes | None:
        """Return a named blob."""
        row = self._db.execute("SELECT data FROM snapshot WHERE name = ?", (name,)).fetchone()
        return row[0] if row else None

    def close(self) -> None:
        """Close the connections; safe twice."""
        self._reader.close()
        self._db.close()
        for name in ("_sync_fd", "_head_fd"):
            fd = getattr(self, name)
            if fd >= 0:
                os.close(fd)
                setattr(self, name, -1)

    def remove(self) -> None:
        """Close, and delete the file with its companions: all in it was taken over."""
        self.close()
        for suffix in ("", "-wal", "-shm"):
            Path(f"{self.path}{suffix}").unlink(missing_ok=True)
        self.path.with_suffix(".head").unlink(missing_ok=True)
        self.path.with_suffix(".lock").unlink(missing_ok=True)
