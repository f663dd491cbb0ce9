"""The ledger of uploads: the rows of files, and the parts that a server took."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from sync_engine.s3 import Part
from sync_engine.sources.file_watch import FileLedger, Row, State

__all__ = ["NOT_REMOVED", "REMEMBERED_MS", "UploadLedger"]

NOT_REMOVED: Final = "the local file cannot be removed"
"""Reason of a row whose object is whole and whose file the system keeps us from removing."""
REMEMBERED_MS: Final = 30 * 86_400_000
"""How long an upload in parts that was begun, and what came of a file, stay known."""

_UPLOADS: Final = """
CREATE TABLE IF NOT EXISTS upload (
    upload_id TEXT PRIMARY KEY, key TEXT NOT NULL, at_ms INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS intent (key TEXT PRIMARY KEY, at_ms INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS leaving (
    root INTEGER NOT NULL, path BLOB NOT NULL, PRIMARY KEY (root, path)
) WITHOUT ROWID;
"""
_OPEN: Final = (State.SEEN, State.STABLE, State.UPLOADING, State.UPLOADED, State.GONE)


class UploadLedger(FileLedger):
    """A `FileLedger` that knows of parts, keys, and every upload that it began."""

    def __init__(self, path: Path | None, *, copy_of: Path | None = None) -> None:
        super().__init__(path, copy_of=copy_of)
        try:
            with self.step():
                for statement in _UPLOADS.split(";"):
                    self._db.execute(statement)
                self._db.execute(
                    "INSERT OR IGNORE INTO meta VALUES ('mark', ?)", (secrets.token_hex(4),)
                )
        except BaseException:
            self.close()
            raise

    def add_parts(self, root: int, path: bytes, parts: Sequence[Part]) -> None:
        """Remember parts that the server took."""
        self._db.executemany(
            "INSERT OR REPLACE INTO part VALUES (?, ?, ?, ?, ?)",
            [(root, path, part.number, part.etag, part.size) for part in parts],
        )

    def parts(self, root: int, path: bytes) -> dict[int, Part]:
        """Return the parts of a file, by number."""
        query = "SELECT number, etag, size FROM part WHERE root = ? AND path = ?"
        return {number: Part(number, etag, size) for number, etag, size in self._db.execute(
            query, (root, path)
        )}  # fmt: skip

    def drop_parts(self, root: int, path: bytes) -> None:
        """Forget the parts of a file."""
        self._db.execute("DELETE FROM part WHERE root = ? AND path = ?", (root, path))

    def key_owner(self, key: str, row: Row) -> bytes | None:
        """Return another file that has a key; None where it is free.

        One that was removed here has its key all the more: the object is the only copy.
        """
        query = (
            "SELECT path FROM file WHERE key = ? AND NOT (root = ? AND path = ?) "
            "AND state NOT IN (?, ?) LIMIT 1"
        )
        values = (key, row.root, row.path, State.IGNORED, State.PARKED)
        found = self._db.execute(query, values).fetchone()
        return None if found is None else found[0]

    def make_due(self, state: State, now_ms: int) -> None:
        """Make all rows of a state due."""
        self._db.execute("UPDATE file SET due_ms = ? WHERE state = ?", (now_ms, state))

    def forget_removed(self, before_ms: int, limit: int) -> None:
        """Forget files that were removed before a time."""
        self._db.execute(
            "DELETE FROM file WHERE (root, path) IN (SELECT root, path FROM file "
            "WHERE state = ? AND due_ms < ? LIMIT ?)",
            (State.REMOVED, before_ms, limit),
        )

    def open_count(self) -> int:
        """Return how many files are on their way."""
        counts = self.counts()
        return sum(counts.get(state, 0) for state in _OPEN)

    def refused_count(self) -> int:
        """Return how many files could not be removed when it was last tried."""
        query = "SELECT count(*) FROM file WHERE state = ? AND reason = ?"
        found: int = self._db.execute(query, (State.UPLOADED, NOT_REMOVED)).fetchone()[0]
        return found

    def in_state(self, state: State, limit: int) -> list[Row]:
        """Return some rows of a state, longest due first."""
        return self.due(state, 1 << 62, limit)

    def upload_ids(self) -> set[str]:
        """Return the uploads in parts that are known."""
        query = "SELECT upload_id FROM file WHERE upload_id IS NOT NULL"
        return {row[0] for row in self._db.execute(query)}

    # -- local files that are being removed -------------------------------------------------------

    def own_mark(self) -> str:
        """Return what tells names that this ledger gives from those of another."""
        found: str = self._db.execute("SELECT value FROM meta WHERE name = 'mark'").fetchone()[0]
        return found

    def leave(self, root: int, path: bytes) -> None:
        """Note that a file is about to be taken aside."""
        self._db.execute("INSERT OR IGNORE INTO leaving VALUES (?, ?)", (root, path))

    def left(self, root: int, path: bytes) -> None:
        """Note that a file is not aside any more."""
        self._db.execute("DELETE FROM leaving WHERE root = ? AND path = ?", (root, path))

    def leaving(self) -> list[tuple[int, bytes]]:
        """Return the files that may be aside."""
        return self._db.execute("SELECT root, path FROM leaving").fetchall()

    # -- uploads in parts that were begun ---------------------------------------------------------

    def intend(self, key: str, now_ms: int) -> int | None:
        """Note that an upload in parts to a key is about to begin.

        Returns:
            When one was about to begin that was never heard of again; None where none was.
        """
        query = "SELECT at_ms FROM intent WHERE key = ?"
        found = self._db.execute(query, (key,)).fetchone()
        if found is None:
            self._db.execute("INSERT INTO intent VALUES (?, ?)", (key, now_ms))
        return None if found is None else found[0]

    def begun(self, upload_id: str, intended: str, key: str, now_ms: int) -> None:
        """Note an upload in parts, in place of the intent to begin it."""
        self._db.execute("DELETE FROM intent WHERE key = ?", (intended,))
        self._db.execute("INSERT OR REPLACE INTO upload VALUES (?, ?, ?)", (upload_id, key, now_ms))

    def intents(self) -> dict[str, int]:
        """Return the keys whose upload was about to begin, and when, in Unix milliseconds."""
        return dict(self._db.execute("SELECT key, at_ms FROM intent"))

    def uploads_begun(self, since_ms: int) -> set[str]:
        """Return the id of every upload in parts that was begun; forgets those before a time."""
        self._db.execute("DELETE FROM upload WHERE at_ms < ?", (since_ms,))
        self._db.execute("DELETE FROM intent WHERE at_ms < ?", (since_ms,))
        return {row[0] for row in self._db.execute("SELECT upload_id FROM upload")}
