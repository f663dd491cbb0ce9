"""Turns pages into segments: staged first, remembered second, given to the uploader third.

That order is what makes a crash harmless. A segment that was staged and not remembered is removed;
one that is remembered is uploaded, byte by byte the same, however often it takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from sync_engine.core import failpoints
from sync_engine.errors import StoreUnavailable
from sync_engine.ports import Clock
from sync_engine.sinks.snapshot.checksums import lock_page, page_hash
from sync_engine.sinks.snapshot.format import SegmentHeader, make_segment
from sync_engine.sinks.snapshot.keys import PARTS_MAX, SegmentKey
from sync_engine.sinks.snapshot.settings import ReplicationSettings
from sync_engine.sinks.snapshot.stage import Stage, StageFull
from sync_engine.sinks.snapshot.state import U32, State, StateFile, WalPosition

__all__ = ["Pending", "Segments"]

_LEVEL_HURRIED = 1


@dataclass(slots=True)
class Pending:
    """What was read and is not staged yet.

    Attributes:
        pages: Newest copy of every page; empty where pages are read when they are needed.
        size: Size of the database after it, in pages.
        position: Where reading goes on.
        begun_ms: Wall-clock milliseconds of the first page.
        start: Offset in the log that it begins at.
    """

    pages: dict[int, bytes]
    size: int
    position: WalPosition
    begun_ms: int
    start: int


class Segments:
    """Makes the segments of one database.

    Thread-safety: owned by the job that captures.

    Args:
        file: What is remembered.
        stage: Where segments wait.
        clock: Time.
        settings: Sizes, level.
    """

    def __init__(
        self, file: StateFile, stage: Stage, clock: Clock, settings: ReplicationSettings
    ) -> None:
        self._file = file
        self._stage = stage
        self._clock = clock
        self._settings = settings

    @property
    def state(self) -> State:
        """What was remembered last.

        Raises:
            StoreUnavailable: Nothing was.
        """
        state = self._file.state
        if state is None:
            raise StoreUnavailable("snapshot", "capture", "no chain was begun")
        return state

    def emit(
        self,
        numbers: U32,
        read: Callable[[int], bytes],
        pending: Pending,
        *,
        hurried: bool = False,
    ) -> int:
        """Stage the pages that differ from what was delivered; then remember that.

        Args:
            numbers: Pages to look at, ascending.
            read: Returns one of them.
            pending: What they belong to.
            hurried: Whether to compress as fast as it goes: the log grows meanwhile.

        Returns:
            Bytes that were staged; 0 where nothing differs.

        Raises:
            StageFull: There is no room. Nothing has changed.
        """
        state, table = self.state, self._file.table
        numbers = numbers[numbers != lock_page(state.page_size)]
        hashes = np.fromiter(
            (page_hash(n, read(n)) for n in numbers.tolist()), np.uint64, len(numbers)
        )
        known = np.zeros(len(numbers), np.uint64)
        inside = numbers <= len(table)
        known[inside] = table[numbers[inside].astype(np.int64) - 1]
        numbers, hashes = numbers[hashes != known], hashes[hashes != known]
        if not len(numbers) and pending.size == state.pages:
            self._file.moved(pending.position)
            return 0
        post = self._file.after(numbers, hashes, pending.size)
        after = replace(
            state,
            txid=state.txid + 1,
            time_ms=max(state.time_ms, self._clock.now_ms()),
            pages=pending.size,
            checksum=post,
            wal=pending.position,
        )
        paths = []
        size = 0
        try:
            level = _LEVEL_HURRIED if hurried else self._settings.compression_level
            for key, data in self._parts(numbers, read, pending, after, level):
                paths.append((key, self._stage.write(key, data)))
                size += len(data)
            self._file.advance(after, numbers, hashes)
        except OSError as exc:
            self._stage.discard([path for _, path in paths])
            raise StageFull(f"the state cannot be written: {exc.strerror}") from exc
        except BaseException:
            self._stage.discard([path for _, path in paths])
            raise
        if failpoints.armed:
            failpoints.hit("snapshot.state_saved")
        for key, path in paths:
            self._stage.admit(key, path)
        return size

    def _parts(
        self, numbers: U32, read: Callable[[int], bytes], pending: Pending, after: State, level: int
    ) -> Iterator[tuple[SegmentKey, bytes]]:
        """Yield name and bytes of each part, one at a time: the bound of memory."""
        before = self.state
        step = max(
            1,
            self._settings.part_bytes // before.page_size,
            math.ceil(len(numbers) / PARTS_MAX),
        )
        parts = max(1, math.ceil(len(numbers) / step))

        for place in range(parts):
            mine = numbers[place * step : (place + 1) * step].tolist()
            header = SegmentHeader(
                db_id=after.db_id,
                epoch=after.epoch,
                page_size=after.page_size,
                commit_pages=after.pages,
                page_count=len(mine),
                part=place,
                parts=parts,
                txid_min=after.txid,
                txid_max=after.txid,
                first_ms=min(pending.begun_ms, after.time_ms),
                last_ms=after.time_ms,
                pre=before.checksum,
                post=after.checksum,
                salts=pending.position.salts,
                wal_start=pending.start,
                wal_end=pending.position.offset,
            )
            key = SegmentKey(after.db_id, after.epoch, 0, after.txid, after.txid, place, parts)
            pages = {number: read(number) for number in mine}
            yield key, make_segment(header, pages, level)
