"""Items by prefix and by state."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import cast

from sync_engine.core.item import Change, SyncItem, check_part, check_state
from sync_engine.errors import InvalidItem
from sync_engine.face.life import Face

__all__ = ["Lists"]


class Lists(Face):
    """Lists, counts and deletes by prefix and by state."""

    def scan_prefix(
        self, prefix: str = "", *, after: str | None = None, limit: int | None = None
    ) -> Iterator[SyncItem]:
        """Yield items whose id begins with a literal prefix, in bytewise order of ids.

        Args:
            prefix: Taken literally; empty is all.
            after: Begin after this id.
            limit: At most so many, 0 or more; None is all.

        Raises:
            InvalidItem: Prefix or id is no text, or the limit is negative.
            StoreUnavailable: The archive cannot be asked.
        """
        found = self._open().queries.scan(prefix=check_part(prefix), after=_checked(after))
        return self._items(found, limit)

    def get_by_state(
        self, state: str, *, after: str | None = None, limit: int | None = None
    ) -> Iterator[SyncItem]:
        """Yield items with a state label, in bytewise order of ids; as `scan_prefix`."""
        queries = self._open().queries
        return self._items(queries.scan(state=check_state(state), after=_checked(after)), limit)

    def ids(self, prefix: str = "") -> Iterator[str]:
        """Yield the ids of items, in bytewise order; as `scan_prefix`, and no contents are read."""
        found = self._open().queries.scan(prefix=check_part(prefix), keys_only=True)
        return (change.id for change in found)

    def _items(self, changes: Iterator[Change], limit: int | None) -> Iterator[SyncItem]:
        if limit is not None and limit < 0:
            raise InvalidItem(f"limit must be 0 or more, got {limit!r}")
        return (cast("SyncItem", change.item()) for change in islice(changes, limit))

    def count_prefix(self, prefix: str = "") -> int:
        """Count items whose id begins with a literal prefix.

        Raises:
            StoreUnavailable: The archive cannot be asked.
        """
        return self._open().queries.count(prefix=check_part(prefix))

    def count_by_state(self, state: str) -> int:
        """Count items with a state label. Raises as `count_prefix`."""
        return self._open().queries.count(state=check_state(state))

    def delete_prefix(self, prefix: str) -> int:
        """Delete all items whose id begins with a literal, non-empty prefix; return how many.

        Raises:
            InvalidItem: The prefix is empty.
            StoreUnavailable: The archive cannot be asked; what was deleted stays deleted.
        """
        if not prefix:
            raise InvalidItem("delete_prefix needs a prefix; an empty one would delete everything")
        found = self._open().queries.scan(prefix=check_part(prefix), keys_only=True)
        return self._delete_all(found)

    def delete_by_state(self, state: str) -> int:
        """Delete all items with a state label; return how many. Raises as `delete_prefix`."""
        changes = self._open().queries.scan(state=check_state(state), keys_only=True)
        return self._delete_all(changes)

    def _delete_all(self, changes: Iterator[Change]) -> int:
        house = self._open()
        count = 0
        batch: list[Change] = []
        for change in changes:
            batch.append(Change(change.id, 0, None))
            if len(batch) == 1000:
                house.writer.write(batch, self._durability)
                count += len(batch)
                batch = []
        if batch:
            house.writer.write(batch, self._durability)
        return count + len(batch)


def _checked(after: str | None) -> str | None:
    return None if after is None else check_part(after)
