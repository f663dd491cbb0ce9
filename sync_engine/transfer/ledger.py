"""The ledger of uploads: the rows of files, and the parts that a server took."""

from __future__ import annotations

from collections.abc import Sequence

from sync_engine.s3 import Part
from sync_engine.sources.file_watch import FileLedger, Row, State

__all__ = ["UploadLedger"]

_OPEN = (State.SEEN, State.STABLE, State.UPLOADING, State.UPLOADED, State.GONE)


class UploadLedger(FileLedger):
    """A `FileLedger` that knows of parts and keys."""

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
        """Return another file that has a key; None where it is free."""
        query = (
            "SELECT path FROM file WHERE key = ? AND NOT (root = ? AND path = ?) "
            "AND state NOT IN (?, ?, ?) LIMIT 1"
        )
        values = (key, row.root, row.path, State.REMOVED, State.IGNORED, State.PARKED)
        found = self._db.execute(query, values).fetchone()
        return None if found is None else found[0]

    def again(self, state: State, to: State, now_ms: int) -> None:
        """Move all rows of a state to another, due now."""
        self._db.execute(
            "UPDATE file SET state = ?, due_ms = ? WHERE state = ?", (to, now_ms, state)
        )

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

    def in_state(self, state: State, limit: int) -> list[Row]:
        """Return some rows of a state, longest due first."""
        return self.due(state, 1 << 62, limit)

    def upload_ids(self) -> set[str]:
        """Return the uploads in parts that are known."""
        query = "SELECT upload_id FROM file WHERE upload_id IS NOT NULL"
        return {row[0] for row in self._db.execute(query)}
