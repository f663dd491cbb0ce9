"""The overlay: the newest undelivered change of every id, by value or by log position."""

from __future__ import annotations

from collections.abc import Iterable

from sync_engine.core.item import Change

__all__ = ["Overlay"]


class Overlay:
    """Index over the part of the log that reads have to see first.

    An entry is the change itself while it is held in memory, and its log position once its bytes
    were left to the file. Lookups take no lock; the log's lock guards all else.
    """

    def __init__(self) -> None:
        self.entries: dict[str, Change | int] = {}
        self._pinned: dict[str, Change] = {}
        self.has_pinned = False

    def __len__(self) -> int:
        return len(self.entries)

    def get(self, change_id: str) -> Change | int | None:
        """Return the newest change of an id, its position in the file, or None."""
        entry = self.entries.get(change_id)
        if entry is None and self._pinned:
            return self._pinned.get(change_id)
        return entry

    def ids(self) -> list[str]:
        """Return all ids, in no order."""
        return [*self.entries, *self._pinned] if self._pinned else list(self.entries)

    def put_many(self, changes: Iterable[Change]) -> None:
        """Take changes that became visible; one older than the known of its id is ignored."""
        entries = self.entries
        for change in changes:
            known = entries.setdefault(change.id, change)
            if known is not change and (
                type(known) is int or known.version < change.version  # type: ignore[union-attr]
            ):
                entries[change.id] = change

    def put_position(self, change_id: str, position: int) -> None:
        """Take a change that is only in the file; positions come in order."""
        self.entries[change_id] = position

    def spill(self, first: int, changes: Iterable[Change | None]) -> None:
        """Keep positions in place of these changes, which start at a position."""
        entries = self.entries
        for position, change in enumerate(changes, first):
            if change is not None and entries.get(change.id) is change:
                entries[change.id] = position

    def drop(self, first: int, changes: Iterable[Change | None]) -> None:
        """Forget these changes, which start at a position; newer ones of their ids stay."""
        entries = self.entries
        for position, change in enumerate(changes, first):
            if change is not None:
                known = entries.get(change.id)
                if known is change or known == position:
                    del entries[change.id]

    def current(self, changes: Iterable[Change | None]) -> list[Change]:
        """Return those of the changes that are still the newest of their ids."""
        entries = self.entries
        return [c for c in changes if c is not None and entries.get(c.id) is c]

    def pin(self, change: Change) -> None:
        """Keep a change readable that its archive refused, until a newer one replaces it."""
        self._pinned[change.id] = change
        self.has_pinned = True

    def unpin(self, change_id: str, version: int) -> None:
        """Stop keeping a refused change of at most this version."""
        pinned = self._pinned.get(change_id)
        if pinned is not None and pinned.version <= version:
            del self._pinned[change_id]
            self.has_pinned = bool(self._pinned)
