"""The open state file: what waits, what is put aside, and transactions."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Final

from sync_engine.core import failpoints
from sync_engine.s3.listing import Row
from sync_engine.sources.s3_listing.changes import S3Change, S3Object
from sync_engine.sources.s3_listing.records import Counts, ScanState, change_of
from sync_engine.sources.s3_listing.schema import bind, damage, open_file

__all__ = ["StateFile"]

_CACHE_BYTES: Final = 16 << 20
_CLEAR: Final = (
    "DELETE FROM missing", "DELETE FROM fresh", "DELETE FROM pair", "DELETE FROM spool",
    "DELETE FROM part",
)  # fmt: skip


class StateFile:
    """The file. One thread at a time.

    Args:
        path: Made where it is not there; locked until `close`.
        about: What it belongs to: endpoint, bucket, prefix, filters.
        keep: Which keys belong to it; looked at when it is rebased.
        rebase: Take it over for another `about`.
        cache_bytes: Bound of SQLite's page cache.

    Raises:
        ConfigError: In use, foreign, of another version, or about something else.
        CorruptData: Damaged.
    """

    def __init__(
        self,
        path: Path,
        about: Mapping[str, object],
        keep: Callable[[str], bool],
        *,
        rebase: bool = False,
        cache_bytes: int = _CACHE_BYTES,
    ) -> None:
        self.path = path
        self._db = open_file(path, cache_bytes)
        try:
            with self._transaction():
                if bind(self._db, path, about, rebase=rebase):
                    self._rebase(keep)
            self._load()
        except BaseException:
            self._db.close()
            raise

    def _load(self) -> None:
        row = self._one("SELECT id, phase, objects, known, scans, started_ms, ended_ms FROM scan")
        self.scan = ScanState(*row)
        names = {each.name for each in fields(Counts)}
        counts = json.loads(self._one("SELECT counts FROM scan")[0])
        self.counts = Counts(**{n: v for n, v in counts.items() if n in names})
        self.acked = int(self._meta("acked") or "0")

    def close(self) -> None:
        """Close the file and give its lock up; safe twice."""
        with contextlib.suppress(sqlite3.Error):
            self._db.close()

    # -- what is to be told -----------------------------------------------------------------------

    def outbox(self, after: int, limit: int) -> list[S3Change]:
        """Return changes that were not acknowledged, by seq, those after a seq only."""
        rows = self._all(
            "SELECT seq, op, old_key, old_etag, old_size, old_modified, key, etag, size,"
            " modified FROM outbox WHERE seq > ? ORDER BY seq LIMIT ?",
            after,
            limit,
        )
        return [change_of(row) for row in rows]

    @property
    def waiting(self) -> int:
        """Changes that were not acknowledged."""
        return int(self._one("SELECT count(*) FROM outbox")[0])

    @property
    def head(self) -> int:
        """Seq of the newest change ever; 0 where there was none."""
        found = self._one("SELECT seq FROM sqlite_sequence WHERE name = 'outbox'")
        return 0 if found is None else int(found[0])

    def ack(self, seq: int) -> None:
        """Forget all changes up to a seq: they are never given again. Committed on return."""
        if seq <= self.acked:
            return
        with self._transaction():
            self._db.execute("DELETE FROM outbox WHERE seq <= ?", (seq,))
            self._set_meta("acked", str(seq))
        self.acked = seq
        if failpoints.armed:
            failpoints.hit("s3_listing.acked")

    # -- objects put aside ------------------------------------------------------------------------

    def park(self, found: S3Object, reason: str) -> bool:
        """Remember an object that could not be taken, and why; return whether that is news."""
        known = self._one(
            "SELECT 1 FROM parked WHERE key = ? AND etag = ? AND size = ? AND reason = ?",
            found.key,
            found.etag,
            found.size,
            reason,
        )
        if known is not None:
            return False
        with self._transaction():
            self._db.execute(
                "INSERT OR REPLACE INTO parked VALUES (?, ?, ?, ?)",
                (found.key, found.etag, found.size, reason),
            )
        return True

    def is_parked(self, found: S3Object) -> bool:
        """Tell whether this very object was put aside, for whatever reason."""
        return (
            self._one(
                "SELECT 1 FROM parked WHERE key = ? AND etag = ? AND size = ?",
                found.key,
                found.etag,
                found.size,
            )
            is not None
        )

    def unpark(self, key: str) -> None:
        """Forget that an object was put aside. Cost: one look-up where it was not."""
        if self._one("SELECT 1 FROM parked WHERE key = ?", key) is None:
            return
        with self._transaction():
            self._db.execute("DELETE FROM parked WHERE key = ?", (key,))

    def parked(self, limit: int = 1000) -> list[tuple[str, int, str]]:
        """Return key, size and reason of objects put aside, by key."""
        return self._all("SELECT key, size, reason FROM parked ORDER BY key LIMIT ?", limit)

    # -- objects ----------------------------------------------------------------------------------

    def doubt(self, key: str) -> None:
        """Take what is stored of a key for another object than any: the next scan tells it anew."""
        with self._transaction():
            self._db.execute("UPDATE object SET etag = '', size = -1 WHERE key = ?", (key,))

    def stored_one(self, key: str) -> Row | None:
        """Return what is stored of a key."""
        found: Row | None = self._one(
            "SELECT key, etag, size, modified FROM object WHERE key = ?", key
        )
        return found

    def stored(self, after: str, limit: int) -> list[Row]:
        """Return what is stored, in order, after a key."""
        return self._all(
            "SELECT key, etag, size, modified FROM object WHERE key > ? ORDER BY key LIMIT ?",
            after,
            limit,
        )

    # -- inside -----------------------------------------------------------------------------------

    def _rebase(self, keep: Callable[[str], bool]) -> None:
        db = self._db
        gone = [(key,) for (key,) in db.execute("SELECT key FROM object") if not keep(key)]
        db.executemany("DELETE FROM object WHERE key = ?", gone)
        self._clear()
        (objects,) = db.execute("SELECT count(*) FROM object").fetchone()
        db.execute("UPDATE scan SET phase = 'idle', objects = ?", (objects,))

    def _clear(self) -> None:
        # What a scan under way had held back is found again by the next one, except for additions:
        # these stand in the state already.
        self._db.execute(
            "INSERT INTO outbox (op, key, etag, size, modified) SELECT 'added', key, etag, size,"
            " modified FROM fresh JOIN object USING (key) ORDER BY key"
        )
        for statement in _CLEAR:
            self._db.execute(statement)

    def _save(self) -> None:
        scan = self.scan
        self._db.execute(
            "UPDATE scan SET id = ?, phase = ?, objects = ?, known = ?, scans = ?, started_ms = ?,"
            " ended_ms = ?, counts = ?",
            (
                scan.id, scan.phase, scan.objects, scan.known, scan.scans, scan.started_ms,
                scan.ended_ms, json.dumps(asdict(self.counts)),
            ),
        )  # fmt: skip

    def _one(self, query: str, *given: Any) -> Any:
        with damage(self.path):
            return self._db.execute(query, given).fetchone()

    def _all(self, query: str, *given: Any) -> list[Any]:
        with damage(self.path):
            return self._db.execute(query, given).fetchall()

    def _meta(self, name: str) -> str | None:
        row = self._one("SELECT value FROM meta WHERE name = ?", name)
        return None if row is None else str(row[0])

    def _set_meta(self, name: str, value: str) -> None:
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with damage(self.path):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
                if hasattr(self, "scan"):
                    self._load()
                raise
