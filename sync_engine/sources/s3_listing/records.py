"""Plain values of a scan: what it goes by, what it counts, what it found on a page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sync_engine.s3.listing import Row
from sync_engine.sources.s3_listing.changes import (
    Added,
    Deleted,
    Modified,
    Op,
    Renamed,
    S3Change,
    S3Object,
)

__all__ = [
    "Counts",
    "Diff",
    "PartState",
    "Rules",
    "ScanState",
    "change_of",
    "compare",
    "rows_of_versions",
]


@dataclass(slots=True)
class Counts:
    """What one scan has found so far.

    Attributes:
        added: Keys that were not known.
        modified: Keys whose object is another.
        deleted: Keys that are gone and were told so.
        renamed: Keys that went under another name; in neither of the two above.
        unchanged: Keys as they were.
        pages: Pages of the listing.
    """

    added: int = 0
    modified: int = 0
    deleted: int = 0
    renamed: int = 0
    unchanged: int = 0
    pages: int = 0

    @property
    def listed(self) -> int:
        """Keys that the listing had."""
        return self.added + self.modified + self.unchanged + self.renamed


@dataclass(slots=True)
class ScanState:
    """How far the scan has come.

    Attributes:
        id: Its number.
        phase: ``idle``, ``listing``, ``spooling``, ``merging`` (the spool) or ``releasing``.
        objects: Objects in the state.
        known: Objects in the state when the scan began.
        scans: Scans that ended well.
        started_ms: Wall-clock milliseconds of its begin.
        ended_ms: Of the end of the last that ended well.
    """

    id: int
    phase: str
    objects: int
    known: int
    scans: int
    started_ms: int
    ended_ms: int


@dataclass(slots=True)
class PartState:
    """A range of keys: above `low`, up to `high` (None is the end), listed up to `at`."""

    id: int
    low: str
    high: str | None
    at: str


@dataclass(frozen=True, slots=True)
class Rules:
    """What a scan goes by.

    Attributes:
        same: Whether two rows of a key are the same object.
        tells: Whether changes go to the outbox; not in a baseline.
        renames: Whether additions wait for the end, to be joined with what went.
    """

    same: Callable[[Row, Row], bool]
    tells: bool = True
    renames: bool = False


@dataclass(slots=True)
class Diff:
    """How a page differs from what is stored.

    Attributes:
        changed: What was stored (None for a new key) and what is, in the order of the keys.
        replaced: Rows to store in place of others.
        missing: Rows stored that the page does not have.
    """

    changed: list[tuple[Row | None, Row]]
    replaced: list[Row]
    missing: list[Row]

    @property
    def added(self) -> list[Row]:
        """Rows of new keys."""
        return [new for old, new in self.changed if old is None]


def compare(stored: list[Row], rows: Sequence[Row], same: Callable[[Row, Row], bool]) -> Diff:
    """Compare two runs of one range. Cost: 0.05 µs a key where nothing changed, else 0.3 µs."""
    diff = Diff([], [], [])
    if stored == rows:
        return diff
    known = {row[0]: row for row in stored}
    for row in rows:
        old = known.pop(row[0], None)
        if old is None:
            diff.changed.append((None, row))
        elif old != row:
            diff.replaced.append(row)
            if not same(old, row):
                diff.changed.append((old, row))
    diff.missing = list(known.values())
    return diff


def rows_of_versions(page: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Return the objects that a page of `S3Client.list_versions` shows.

    Versions are told apart by their id: the same bytes written again are another version.
    """
    return [
        (v["key"], f"{v['etag']};{v['version']}", v["size"], _written(v["modified_ms"]))
        for v in page
        if v["latest"] and not v["deleted"]
    ]


def _written(ms: int) -> str:
    when = datetime.fromtimestamp(ms / 1000, UTC)
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def change_of(row: tuple[Any, ...]) -> S3Change:
    """Return the change that a row of the outbox holds."""
    seq, op = row[0], row[1]
    if op == Op.ADDED:
        return Added(seq, S3Object(*row[6:10]))
    old = S3Object(*row[2:6])
    if op == Op.DELETED:
        return Deleted(seq, old, row[7] or "")
    kind = Modified if op == Op.MODIFIED else Renamed
    return kind(seq, old, S3Object(*row[6:10]))
