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
        changes: list[Change | None] = []
        size = 0
        with self._lock:
            frames = self._file.frames(after, 1 + items_max // _FRAMES_ITEMS)
        expected = after + 1
        for first, count, body in frames:
            if first > expected:
                raise self.missing(expected, first - 1)
            if size >= bytes_max or len(changes) >= items_max:
                break
            changes += frame.unpack(first, count, body, self._where)[expected - first :]
            size += len(body)
            expected = first + count
        return LogSlice(after, cut(changes[:items_max], bytes_max))

    def missing(self, first: int, last: int) -> CorruptData:
        """Return the error for positions that should be in the file."""
        return CorruptData(self._where, f"positions {first} to {last} are missing")

    def used_bytes(self) -> int:
        """Return the bytes in use in the file."""
        with self._lock:
            return self._file.used_bytes()
