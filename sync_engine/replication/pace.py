"""Pace: a bound on items and bytes a second, paid after the fact."""

from __future__ import annotations

from collections.abc import Sequence

from sync_engine.core.item import Change
from sync_engine.ports import Clock

__all__ = ["Pace"]


class Pace:
    """Keeps a long-run average under its bounds; one batch may go out ahead of its time.

    Owned by one job.

    Args:
        clock: Tells how much time has passed.
        items_per_s: 0 is no bound.
        bytes_per_s: 0 is no bound.
    """

    def __init__(self, clock: Clock, *, items_per_s: float = 0.0, bytes_per_s: float = 0.0) -> None:
        self._clock = clock
        self._items_per_s = items_per_s
        self._bytes_per_s = bytes_per_s
        self._free_at = clock.monotonic()

    def wait_s(self) -> float:
        """Return the seconds until the next batch may go."""
        return max(0.0, self._free_at - self._clock.monotonic())

    def took(self, changes: Sequence[Change]) -> None:
        """Pay for a batch."""
        owed = 0.0
        if self._items_per_s:
            owed = len(changes) / self._items_per_s
        if self._bytes_per_s:
            size = sum(change.size_bytes for change in changes)
            owed = max(owed, size / self._bytes_per_s)
        self._free_at = max(self._free_at, self._clock.monotonic()) + owed
