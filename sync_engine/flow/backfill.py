"""The copy that a new sink begins with: the archive's rows, in chunks, resumable over crashes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from sync_engine.core import failpoints
from sync_engine.core.item import Change
from sync_engine.errors import StoreRejected
from sync_engine.flow.tier import Tier
from sync_engine.ports import ArchiveStore

__all__ = ["Backfill", "Progress", "Stage", "covers", "normal_prefixes", "tombstone_of"]

_FIRST_ROWS = 64
_ROWS_MAX = 1000


class Stage:
    """How far a sink is; plain words, since they are stored."""

    ASK = "ask"
    COPY = "copy"
    FOLLOW = "follow"


class Progress(msgspec.Struct):
    """What is remembered of a sink in the log's file.

    Attributes:
        stage: One of `Stage`.
        prefixes: What it was given when the stage began, normalised.
        noted: Log position that the copy and the log after it cover everything from.
        index: Which of the prefixes is being copied.
        after: Id that the next chunk begins after; None is the start of the prefix.
        rows: Rows copied so far.
        tombstones: Whether deletions are copied too: the target may hold rows that vanished.
        restarts: How often a copy began.
    """

    stage: str
    prefixes: tuple[str, ...] = ("",)
    noted: int = 0
    index: int = 0
    after: str | None = None
    rows: int = 0
    tombstones: bool = False
    restarts: int = 0

    @property
    def begun(self) -> bool:
        """Whether a chunk was copied already."""
        return self.index > 0 or self.after is not None

    def encoded(self) -> bytes:
        """Return it as bytes."""
        return msgspec.json.encode(self)

    @classmethod
    def decoded(cls, data: bytes | None) -> Progress | None:
        """Return what `encoded` made; None for nothing, or for what is not understood."""
        if not data:
            return None
        try:
            return msgspec.json.decode(data, type=cls)
        except msgspec.DecodeError:
            return None


def normal_prefixes(prefix: str | Sequence[str]) -> tuple[str, ...]:
    """Return prefixes sorted, without those that another one covers; none at all means all ids."""
    kept: list[str] = []
    for one in sorted({prefix} if isinstance(prefix, str) else set(prefix)):
        if not kept or not one.startswith(kept[-1]):
            kept.append(one)
    return tuple(kept) or ("",)


def covers(old: Sequence[str], new: Sequence[str]) -> bool:
    """Tell whether everything under the new prefixes was under the old ones."""
    return all(any(one.startswith(known) for known in old) for one in new)


def tombstone_of(change: Change) -> Change:
    """Return the deletion that a destination sees in place of a value that it must not keep."""
    return Change(change.id, change.version, None, routes=change.routes)


class Backfill:
    """Copies the archive's rows under some prefixes through a sink, one chunk a step.

    Rows come in order of their ids, each chunk begins after the last id of the one before, and that
    id is stored once the sink has the chunk: a crash repeats one chunk. Memory is held to about
    `bytes_max` by chunks that shrink as rows grow.

    Args:
        archive: Where rows are read.
        deliver: Takes a chunk, as `ports.Sink.apply`.
        refuse: Told about a row that the sink can never take, and why.
        save: Stores the progress, durably enough to survive the process.
        now_ms: Wall-clock milliseconds, to leave out what has expired.
        items_max: Rows of a chunk.
        bytes_max: Bytes of a chunk, approximately.
    """

    def __init__(
        self,
        archive: Tier[ArchiveStore],
        deliver: Callable[[Sequence[Change]], None],
        refuse: Callable[[Change, StoreRejected], None],
        save: Callable[[Progress], None],
        now_ms: Callable[[], int],
        *,
        items_max: int,
        bytes_max: int,
    ) -> None:
        self._archive = archive
        self._deliver = deliver
        self._refuse = refuse
        self._save = save
        self._now_ms = now_ms
        self._items_max = min(items_max, _ROWS_MAX)
        self._bytes_max = bytes_max
        self._limit = min(_FIRST_ROWS, self._items_max)

    def step(self, progress: Progress) -> bool:
        """Copy one chunk; return whether it was the last one. The caller stores what follows then.

        Raises:
            StoreUnavailable: The archive or the sink; the same chunk comes again.
        """
        if progress.index >= len(progress.prefixes):
            return True  # all was copied, and what follows failed
        limit = self._limit
        page = self._archive.call(
            "scan",
            self._archive.store.scan,
            after=progress.after,
            prefix=progress.prefixes[progress.index],
            limit=limit,
            tombstones=progress.tombstones,
        )
        chunk = self._wanted(page, progress)
        if chunk:
            self._deliver_all(chunk)
        if failpoints.armed:
            failpoints.hit("backfill.delivered")
        progress.rows += len(chunk)
        self._fit(page)
        if len(page) >= limit:
            progress.after = page[-1].id
        else:
            progress.index += 1
            progress.after = None
            if progress.index >= len(progress.prefixes):
                return True
        self._save(progress)
        if failpoints.armed:
            failpoints.hit("backfill.saved")
        return False

    def _wanted(self, page: Sequence[Change], progress: Progress) -> list[Change]:
        now_ms = self._now_ms()
        if progress.tombstones:
            return [tombstone_of(row) if row.expired(now_ms) else row for row in page]
        return [row for row in page if row.content is not None and not row.expired(now_ms)]

    def _fit(self, page: Sequence[Change]) -> None:
        """Choose the rows of the next chunk by the size of these."""
        size = sum(row.size_bytes for row in page)
        fitting = self._bytes_max * max(1, len(page)) // max(1, size)
        self._limit = max(1, min(self._items_max, self._limit * 2, fitting))

    def _deliver_all(self, chunk: Sequence[Change]) -> None:
        """Deliver a chunk; halve a refused one until the culprit is alone and put aside."""
        try:
            self._deliver(chunk)
        except StoreRejected as exc:
            if len(chunk) == 1:
                self._refuse(chunk[0], exc)
                return
            middle = len(chunk) // 2
            self._deliver_all(chunk[:middle])
            self._deliver_all(chunk[middle:])
