"""The end of a scan: what was missed, what was renamed, and when that is told."""

from __future__ import annotations

from typing import Final

from sync_engine.core import failpoints
from sync_engine.sources.s3_listing.file import StateFile

__all__ = ["Ending"]

_RELEASED_MAX: Final = 20_000


class Ending(StateFile):
    """What the state does once all pages were compared."""

    @property
    def missing(self) -> int:
        """Keys that this scan has missed so far."""
        return int(self._one("SELECT count(*) FROM missing")[0])

    def missed(self, sample: int) -> list[str]:
        """Return some of the keys that were missed, evenly spread; the first and last are in."""
        count = self.missing
        places = sorted({round(n * (count - 1) / max(1, sample - 1)) for n in range(sample)})
        query = "SELECT key FROM missing ORDER BY key LIMIT 1 OFFSET ?"
        return [self._one(query, place)[0] for place in places] if count else []

    def forget_missing(self) -> None:
        """Give the deletions of this scan up; what is gone is found again by the next."""
        with self._transaction():
            self._db.execute("DELETE FROM missing")

    def pair(self) -> int:
        """Join keys that went with keys that came, where ETag and size name one of each.

        Returns:
            The number of pairs; they are no longer missing.
        """
        with self._transaction():
            db = self._db
            db.execute(
                "INSERT OR REPLACE INTO pair SELECT gone.key, came.key FROM"
                " (SELECT etag, size, min(key) AS key FROM object JOIN missing USING (key)"
                " WHERE size > 0 AND etag <> '' GROUP BY etag, size HAVING count(*) = 1) AS gone"
                " JOIN (SELECT etag, size, min(key) AS key FROM object JOIN fresh USING (key)"
                " WHERE size > 0 AND etag <> '' GROUP BY etag, size HAVING count(*) = 1) AS came"
                " USING (etag, size)"
            )
            db.execute("DELETE FROM missing WHERE key IN (SELECT old FROM pair)")
            db.execute("DELETE FROM fresh WHERE key IN (SELECT new FROM pair)")
        return int(self._one("SELECT count(*) FROM pair")[0])

    def release(self, *, tells: bool) -> None:
        """Begin to tell what was held back: renames and additions now, deletions by `drain`."""
        with self._transaction():
            db = self._db
            if tells:
                db.execute(
                    "INSERT INTO outbox (op, old_key, old_etag, old_size, old_modified, key, etag,"
                    " size, modified) SELECT 'renamed', o.key, o.etag, o.size, o.modified, n.key,"
                    " n.etag, n.size, n.modified FROM pair JOIN object AS o ON o.key = pair.old"
                    " JOIN object AS n ON n.key = pair.new ORDER BY n.key"
                )
                db.execute(
                    "INSERT INTO outbox (op, key, etag, size, modified) SELECT 'added', key, etag,"
                    " size, modified FROM fresh JOIN object USING (key) ORDER BY key"
                )
            pairs = db.execute("DELETE FROM object WHERE key IN (SELECT old FROM pair)").rowcount
            db.execute("DELETE FROM pair")
            db.execute("DELETE FROM fresh")
            self.scan.objects -= pairs
            self.counts.renamed += pairs
            self.counts.added -= pairs
            self.scan.phase = "releasing"
            self._save()

    def drain(self, *, tells: bool) -> bool:
        """Tell some of the deletions; return whether there are more."""
        last = self._one("SELECT max(key) FROM missing")[0]
        found = self._one(
            "SELECT key FROM missing ORDER BY key LIMIT 1 OFFSET ?", _RELEASED_MAX - 1
        )
        given = (last if found is None else found[0],)
        with self._transaction():
            db = self._db
            if tells:
                db.execute(
                    "INSERT INTO outbox (op, old_key, old_etag, old_size, old_modified, etag)"
                    " SELECT 'deleted', key, o.etag, size, modified, marker FROM missing"
                    " JOIN object AS o USING (key) WHERE missing.key <= ? ORDER BY key",
                    given,
                )
            gone = db.execute(
                "DELETE FROM object WHERE key IN (SELECT key FROM missing WHERE key <= ?)", given
            ).rowcount
            db.execute("DELETE FROM missing WHERE key <= ?", given)
            self.scan.objects -= gone
            self.counts.deleted += gone
            self._save()
            if failpoints.armed:
                failpoints.hit("s3_listing.before_release")
        return bool(last != given[0])

    def abandon(self) -> None:
        """Give the scan up: what it has not told is found again by the next."""
        with self._transaction():
            self._clear()
            self.scan.phase = "idle"
            self._save()

    def end(self, now_ms: int) -> None:
        """End the scan well."""
        with self._transaction():
            self._clear()
            self._db.execute("DELETE FROM mark WHERE scan <> ?", (self.scan.id,))
            self.scan.phase = "idle"
            self.scan.scans += 1
            self.scan.ended_ms = now_ms
            self._save()
