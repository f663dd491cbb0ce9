"""Delivery to L3: what the filter has to know before and after a batch."""

from __future__ import annotations

from collections.abc import Sequence

from sync_engine.core.filters import FilterManager
from sync_engine.core.item import Change, Route

__all__ = ["L3Delivery"]

_L3 = int(Route.L3)  # a plain number: flags are slow on hot paths


class L3Delivery:
    """Keeps the existence filter ahead of the archive.

    Args:
        filters: The filter.
    """

    def __init__(self, filters: FilterManager) -> None:
        self._filters = filters

    def prepare(self, changes: Sequence[Change]) -> Sequence[Change]:
        """Tell the filter, and leave out cache-only changes that the archive has no row of."""
        stored = [change.id for change in changes if change.routes & _L3]
        self._filters.add_many(stored)
        if len(stored) == len(changes):
            return changes
        absent = self._filters.never_added
        return [c for c in changes if c.routes & _L3 or not absent(c.id)]

    def flushed(self, changes: Sequence[Change]) -> None:
        """Count the deletions that the archive took: they wear the filter out."""
        deleted = sum(change.content is None for change in changes)
        if deleted:
            self._filters.note_deleted(deleted)
