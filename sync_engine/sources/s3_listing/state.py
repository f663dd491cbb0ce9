"""What was seen, what is still to be told, and how far the scan has come: one file.

Every page of a listing is one transaction of all three. A crash between two of them repeats a
request and nothing else; changes wait in the outbox until they are acknowledged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from sync_engine.core import failpoints
from sync_engine.s3.listing import Row
from sync_engine.sources.s3_listing.ending import Ending
from sync_engine.sources.s3_listing.records import Counts, Diff, PartState, Rules, compare

__all__ = ["ListingState"]

_STORED_MAX: Final = 10_000
_NO_ROW: Final = (None, None, None, None)


class ListingState(Ending):
    """The file, and the pages that are compared with it. See `StateFile` for how it is opened."""

    # -- a scan -----------------------------------------------------------------------------------

    def begin(self, now_ms: int, bounds: Sequence[str]) -> None:
        """Begin a scan of ranges that meet at these keys (ascending)."""
        self.counts = Counts()
        scan = self.scan
        scan.id, scan.phase = scan.id + 1, "listing"
        scan.known, scan.started_ms = scan.objects, now_ms
        edges = ["", *bounds, None]
        with self._transaction():
            self._clear()
            self._db.executemany(
                "INSERT INTO part (id, low, high, at) VALUES (?, ?, ?, ?)",
                [(n, edges[n], edges[n + 1], edges[n]) for n in range(len(edges) - 1)],
            )
            self._save()

    def parts(self) -> list[PartState]:
        """Return the ranges that are not done."""
        rows = self._all("SELECT id, low, high, at FROM part WHERE NOT done ORDER BY low")
        return [PartState(*row) for row in rows]

    def bounds(self, parts: int) -> list[str]:
        """Return keys that cut what is known into about equal ranges; may be fewer than asked."""
        marks = [row[0] for row in self._all("SELECT key FROM mark ORDER BY key")]
        parts = min(parts, len(marks) // 2)
        return [marks[len(marks) * n // parts] for n in range(1, parts)]

    def merge(
        self,
        part: PartState,
        rows: Sequence[Row],
        end: str | None,
        rules: Rules,
        markers: Mapping[str, str] | None = None,
    ) -> None:
        """Compare a page with what is stored in its range; keep what differs.

        Args:
            part: The range; its `at` is moved to the page's end.
            rows: Objects of the page that are looked at, strictly ascending, all above ``part.at``.
            end: Last key that the page speaks of; None where it speaks of the rest of the range.
            rules: When objects are the same, and what is told.
            markers: Delete markers by key.

        Memory: bounded, also where everything stored is gone.
        """
        stop = part.high if end is None else end
        rest: Sequence[Row] = rows
        while True:
            stored = self._stored(part.at, stop)
            if len(stored) < _STORED_MAX:
                self._merge(part, rest, stored, end, rules, markers or {}, pages=1)
                return
            cut = stored[-1][0]
            low = sum(1 for row in rest if row[0] <= cut)
            self._merge(part, rest[:low], stored, cut, rules, markers or {}, pages=0)
            rest = rest[low:]

    def _stored(self, after: str, stop: str | None) -> list[Row]:
        query = "SELECT key, etag, size, modified FROM object WHERE key > ?"
        if stop is None:
            return self._all(f"{query} ORDER BY key LIMIT ?", after, _STORED_MAX)
        return self._all(f"{query} AND key <= ? ORDER BY key LIMIT ?", after, stop, _STORED_MAX)

    def _merge(
        self,
        part: PartState,
        rows: Sequence[Row],
        stored: list[Row],
        end: str | None,
        rules: Rules,
        markers: Mapping[str, str],
        *,
        pages: int,
    ) -> None:
        diff = compare(stored, rows, rules.same)
        with self._transaction():
            counts, scan, db = self.counts, self.scan, self._db
            self._keep(diff, rules, markers)
            added = len(diff.added)
            scan.objects += added
            counts.added += added
            counts.modified += len(diff.changed) - added
            counts.unchanged += len(rows) - len(diff.changed)
            counts.pages += pages
            db.execute(
                "UPDATE part SET at = ?, done = ? WHERE id = ?",
                (part.at if end is None else end, end is None, part.id),
            )
            if end is not None:
                db.execute("INSERT OR REPLACE INTO mark VALUES (?, ?)", (end, scan.id))
            self._save()
            if failpoints.armed:
                failpoints.hit("s3_listing.before_commit")
        if end is not None:
            part.at = end
        if failpoints.armed:
            failpoints.hit("s3_listing.merged")

    def _keep(self, diff: Diff, rules: Rules, markers: Mapping[str, str]) -> None:
        db = self._db
        added = diff.added
        if added:
            db.executemany("INSERT INTO object VALUES (?, ?, ?, ?)", added)
            if rules.renames:
                db.executemany("INSERT OR REPLACE INTO fresh VALUES (?)", [(r[0],) for r in added])
        if diff.changed and rules.tells:
            # In the order of the keys; additions wait for the end where renames are looked for.
            db.executemany(
                "INSERT INTO outbox (op, old_key, old_etag, old_size, old_modified, key, etag,"
                " size, modified) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    ("added", None, None, None, None, *new)
                    if old is None
                    else ("modified", *old, *new)
                    for old, new in diff.changed
                    if old is not None or not rules.renames
                ],
            )
        if diff.replaced:
            db.executemany("INSERT OR REPLACE INTO object VALUES (?, ?, ?, ?)", diff.replaced)
        if diff.missing:
            db.executemany(
                "INSERT OR REPLACE INTO missing VALUES (?, ?)",
                [(row[0], markers.get(row[0], "")) for row in diff.missing],
            )

    # -- one key at a time -----------------------------------------------------------------------

    def take(self, found: Mapping[str, Row | None], rules: Rules) -> int:
        """Take what was learned about single keys (None is gone) in one transaction.

        Returns:
            How many of them were news.
        """
        news = 0
        with self._transaction():
            for key, row in found.items():
                news += self._take_one(key, row, rules)
            self._save()
            if failpoints.armed:
                failpoints.hit("s3_listing.before_commit")
        return news

    def _take_one(self, key: str, row: Row | None, rules: Rules) -> bool:
        db, old = self._db, self.stored_one(key)
        if old == row:
            if row is not None:
                db.execute("DELETE FROM missing WHERE key = ?", (key,))
            return False
        # A scan under way may have missed the key, or gathered it as it was, or hold its addition
        # back: no longer true.
        db.execute("DELETE FROM missing WHERE key = ?", (key,))
        if self.scan.phase in {"spooling", "merging"}:
            db.execute("DELETE FROM spool WHERE key = ?", (key,))
            if row is not None:
                db.execute("INSERT INTO spool VALUES (?, ?, ?, ?)", row)
        held = db.execute("DELETE FROM fresh WHERE key = ?", (key,)).rowcount
        before: Row | None = None if held else old
        if row is None:
            db.execute("DELETE FROM object WHERE key = ?", (key,))
        else:
            db.execute("INSERT OR REPLACE INTO object VALUES (?, ?, ?, ?)", row)
        self.scan.objects += (row is not None) - (old is not None)
        if before is row or (before is not None and row is not None and rules.same(before, row)):
            return False
        if rules.tells:
            op = "deleted" if row is None else "added" if before is None else "modified"
            db.execute(
                "INSERT INTO outbox (op, old_key, old_etag, old_size, old_modified, key, etag,"
                " size, modified) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (op, *(before or _NO_ROW), *(row or _NO_ROW)),
            )
        return True

    # -- a listing without order ------------------------------------------------------------------

    def begin_spool(self) -> None:
        """Start the scan over, gathering all pages first."""
        with self._transaction():
            self._clear()
            self._db.execute("INSERT INTO part (id, low, high, at) VALUES (0, '', NULL, '')")
            self.scan.phase = "spooling"
            self._save()

    def spool(self, rows: Sequence[Row], *, last: bool) -> None:
        """Gather one page; after the last one, merging may begin."""
        with self._transaction():
            self._db.executemany("INSERT OR REPLACE INTO spool VALUES (?, ?, ?, ?)", rows)
            self.counts.pages += 1
            if last:
                self.scan.phase = "merging"
            self._save()

    def spooled(self, after: str, limit: int) -> list[Row]:
        """Return gathered objects in order, those after a key."""
        return self._all(
            "SELECT key, etag, size, modified FROM spool WHERE key > ? ORDER BY key LIMIT ?",
            after,
            limit,
        )
