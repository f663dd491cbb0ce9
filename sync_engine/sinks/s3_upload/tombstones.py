"""Versions of deleted objects: an object that is gone cannot say how new its deletion was."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from sync_engine.errors import CorruptData, StoreUnavailable

__all__ = ["Tombstones"]

_KEEP_MS: Final = 30 * 86_400_000


class Tombstones:
    """Keys and the versions that deleted them, kept for thirty days.

    One thread at a time.

    Args:
        path: The SQLite file.

    Raises:
        StoreUnavailable: It cannot be written.
        CorruptData: It is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._translated():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, check_same_thread=False, timeout=5.0)
            try:
                self._db.execute("PRAGMA journal_mode = WAL")
                self._db.execute(
                    "CREATE TABLE IF NOT EXISTS deleted (key TEXT PRIMARY KEY, "
                    "version INTEGER NOT NULL, at_ms INTEGER NOT NULL) WITHOUT ROWID"
                )
                self._db.commit()
            except BaseException:
                self._db.close()
                raise

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as exc:
            raise StoreUnavailable("s3", "tombstones", f"{self._path}: {exc}") from exc
        except sqlite3.DatabaseError as exc:
            raise CorruptData(str(self._path), f"damaged, delete it: {exc}") from exc

    def versions(self, keys: Sequence[str]) -> dict[str, int]:
        """Return the versions that keys were deleted with; others are left out."""
        found: dict[str, int] = {}
        with self._translated():
            for low in range(0, len(keys), 500):
                some = keys[low : low + 500]
                marks = ",".join("?" * len(some))
                query = f"SELECT key, version FROM deleted WHERE key IN ({marks})"  # noqa: S608
                found.update(self._db.execute(query, some))
        return found

    def add(self, deleted: Mapping[str, int], now_ms: int) -> None:
        """Remember deletions, before they are made."""
        with self._translated(), self._db:
            self._db.executemany(
                "INSERT INTO deleted VALUES (?, ?, ?) ON CONFLICT (key) DO UPDATE SET "
                "version = max(version, excluded.version), at_ms = excluded.at_ms",
                [(key, version, now_ms) for key, version in deleted.items()],
            )
            self._db.execute("DELETE FROM deleted WHERE at_ms < ?", (now_ms - _KEEP_MS,))

    def close(self) -> None:
        """Close the file; safe twice."""
        self._db.close()
