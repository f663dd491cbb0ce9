"""Letting go of what was delivered: from the overlay, then from memory, then from the file."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from sync_engine.core.item import Change
from sync_engine.wal.cursors import Cursors
from sync_engine.wal.frame_reader import FrameReader
from sync_engine.wal.overlay import Overlay
from sync_engine.wal.records import LogListener
from sync_engine.wal.tail import Tail

__all__ = ["Release"]

_TRIM_ITEMS = 512
_PART_ITEMS = 4096


class Release:
    """Moves the floors of overlay and tail up to the cursors.

    Attributes:
        position: What every follower has passed; frames up to it may be dropped.
        overlay_floor: What the overlay no longer holds.
    """

    def __init__(
        self,
        tail: Tail,
        overlay: Overlay,
        reader: FrameReader,
        cursors: Cursors,
        listener: LogListener,
        lock: AbstractContextManager[Any],
    ) -> None:
        self._tail = tail
        self._overlay = overlay
        self._reader = reader
        self._cursors = cursors
        self._listener = listener
        self._lock = lock
        self.position = self.overlay_floor = cursors.lowest

    def settle(self) -> None:
        """Let go of what the cursors have passed."""
        while True:
            with self._lock:
                floor = self._cursors.overlay_lowest
                after = self.overlay_floor
                if floor <= after:
                    break
                if after >= self._tail.base:
                    changes = self._tail.between(after, floor)
                    self._listener.released(self._overlay.current(changes), in_memory=True)
                    self._drop(after, changes, floor)
                    break
                # What memory holds is known there by the very object: up to that, and no further.
                count = min(_PART_ITEMS, floor - after, self._tail.base - after)
            part = self._reader.slice(after, count, 1 << 62)
            with self._lock:
                if self.overlay_floor == after:
                    gone = [change for change in part.changes if change is not None]
                    self._listener.released(gone, in_memory=False)
                    self._drop(after, part.changes, part.last)
        self._trim()

    def _drop(self, after: int, changes: Sequence[Change | None], floor: int) -> None:
        self._overlay.drop(after + 1, changes)
        if self._overlay.has_pinned:
            for change in changes:
                if change is not None:
                    self._overlay.unpin(change.id, change.version - 1)
        self.overlay_floor = floor

    def _trim(self) -> None:
        with self._lock:
            self.position = max(self.position, self._cursors.lowest)
            floor = min(self.position, self.overlay_floor)
            count = floor - self._tail.base
            if count >= _TRIM_ITEMS or 0 < count == self._tail.last - self._tail.base:
                self._tail.drop(count)

    def spill(self, written: int, memory_bytes_max: int) -> None:
        """Leave the bytes of the oldest changes to the file while memory is over its budget."""
        while self._tail.size_bytes > memory_bytes_max:
            with self._lock:
                first = self._tail.base + 1
                count = min(_PART_ITEMS, written - self._tail.base)
                if count <= 0:
                    return
                self._overlay.spill(first, self._tail.drop(count))
