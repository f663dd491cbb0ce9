"""Reading changes back from the log's file."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from sync_engine.core.item import Change
from sync_engine.errors import CorruptData
from sync_engine.ports import LogSlice
from sync_engine.wal import frame
from sync_engine.wal.file import LogFile
from sync_engine.wal.tail import cut

__all__ = ["FrameReader"]

_FRAMES_ITEMS = 64


class FrameReader:
    """Reads committed frames over the file's second connection.

    Thread-safety: every method, by one lock that is held for a query.
    """

    def __init__(self, file: LogFile, lock: AbstractContextManager[Any]) -> None:
        self._file = file
        self._lock = lock
        self._where = str(file.path)
        self._last = LogSlice(-1, ())

    def one(self, position: int) -> Change | None:
        """Return the change at a position; None if it is void or not in the file."""
        with self._lock:
            frames = self._file.frames(position - 1, 1)
        for first, count, body in frames:
            if first <= position < first + count:
                return frame.unpack_one(first, count, body, position, self._where)
        return None

    def slice(self, after: int, items_max: int, bytes_max: int) -> LogSlice:
        """Return the changes that the file holds after a position, at least one if there is one.

        Raises:
            CorruptData: A record fails its check, or positions are missing between frames.
        """
        known = self._last  # a follower's batch is read again when its cursor passes it
        if known.after == after and len(known.changes) >= items_max:
            return LogSlice(after, cut(known.changes[:items_max], bytes_max))
        changes: list[Change | None] = []
        size = frames_read = 0
        limit = 1 + items_max // _FRAMES_ITEMS
        while len(changes) < items_max and size < bytes_max:
            had = len(changes)
            expected = after + had + 1
            with self._lock:
                frames = self._file.frames(expected - 1, limit)
            for first, count, body in frames:
                if first > expected:
                    raise self.missing(expected, first - 1)
                if size >= bytes_max or len(changes) >= items_max:
                    break
                changes += frame.unpack(first, count, body, self._where)[expected - first :]
                size += len(body)
                expected = first + count
            frames_read += len(frames)
            if len(frames) < limit or len(changes) == had:
                break
            # As many as will fill the slice if the others are like these.
            limit = max(1, min(items_max - len(changes), (bytes_max - size) * frames_read // size))
        part = LogSlice(after, cut(changes[:items_max], bytes_max))
        self._last = part
        return part

    def missing(self, first: int, last: int) -> CorruptData:
        """Return the error for positions that should be in the file."""
        return CorruptData(self._where, f"positions {first} to {last} are missing")

    def used_bytes(self) -> int:
        """Return the bytes in use in the file."""
        with self._lock:
            return self._file.used_bytes()
