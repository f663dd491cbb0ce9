"""Writing and deleting items."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast, overload

from sync_engine.core.item import Change, SyncItem, check_id, check_state
from sync_engine.core.options import SubmitOptions
from sync_engine.core.results import (
    BatchResult,
)
from sync_engine.errors import (
    InvalidItem,
)
from sync_engine.face.life import Face
from sync_engine.flow.writer import Receipt

__all__ = ["Writes"]

_DEFAULT = SubmitOptions()


class Writes(Face):
    """Writes and deletes."""

    @overload
    def submit(self, item: SyncItem, options: SubmitOptions | None = None, /) -> Receipt: ...

    @overload
    def submit(
        self, id: str, content: bytes, options: SubmitOptions | None = None, /
    ) -> Receipt: ...

    def submit(self, item: Any, content: Any = None, options: Any = None, /) -> Receipt:
        """Write one item; return when it is acknowledged at the durability asked for.

        Args:
            item: An item, or its id followed by its content.
            content: Bytes, where the first argument is an id.
            options: Where to keep it, for how long, under which condition.

        Returns:
            The receipt, which can be waited on.

        Raises:
            InvalidItem: Outside the limits; nothing was accepted.
            Backpressure: No room on the way to the archive; nothing was accepted.
            Conflict: `if_version` or `if_absent` does not hold; nothing was accepted.
            StoreUnavailable: The log could not be written (nothing was accepted), or the archive
                did not take it in time at durability `archive` (it stays in the log).
            EngineClosed: The engine is not running.
            EngineFailed: The disk failed a sync; nothing more is accepted.

        Blocking: `memory` not at all, `log` for one commit, `fsync` for one sync of the disk shared
        by all callers, `archive` for the archive. Cost: a few microseconds plus that.
        """
        house = self._open()
        if type(item) is SyncItem:
            options = content if options is None else options
        else:
            if type(content) is not bytes:
                raise InvalidItem(f"content must be bytes, not {type(content).__name__}")
            item = SyncItem(item, content)
        options = _DEFAULT if options is None else options
        draft = self._draft(item, options)
        house.writer.check(draft)
        if options.if_absent or options.if_version is not None:
            last, change = house.atomic.put_if(
                draft,
                options.expected or 0,
                options.durability or self._durability,
                options.timeout,
            )
            return Receipt(change, last, house.writer)
        last, changes = house.writer.write(
            (draft,), options.durability or self._durability, options.timeout
        )
        return Receipt(changes[0], last, house.writer)

    def submit_many(
        self, items: Iterable[SyncItem], options: SubmitOptions | None = None
    ) -> BatchResult:
        """Write items in order, as one group in the log.

        An item outside the limits is refused alone and told in the result; all others are taken.

        Args:
            items: In the order of their writing; an id may come twice.
            options: For all of them; conditions are not allowed here.

        Raises:
            Backpressure: No room for the group; nothing was accepted.
            StoreUnavailable: As `submit`, for the group.
        """
        house = self._open()
        options = _DEFAULT if options is None else options
        if options.expected is not None:
            raise InvalidItem("conditions are for single items: use submit or update")
        drafts: list[Change] = []
        places: list[int] = []
        errors: dict[int, Exception] = {}
        total = 0
        for place, item in enumerate(items):
            total += 1
            try:
                draft = self._draft(item, options)
                house.writer.check(draft)
            except (InvalidItem, AttributeError) as exc:
                errors[place] = exc
            else:
                drafts.append(draft)
                places.append(place)
        if not drafts:
            return BatchResult(total=total, versions={}, errors=errors, position=0)
        last, changes = house.writer.write(
            drafts, options.durability or self._durability, options.timeout
        )
        versions = {place: change.version for place, change in zip(places, changes, strict=True)}
        return BatchResult(total=total, versions=versions, errors=errors, position=last)

    def delete(self, id: str, options: SubmitOptions | None = None) -> bool:
        """Delete an item in every tier; return whether there may have been one.

        A delete is taken under back-pressure, and while servers are down. False means that the item
        was known not to exist; nothing is written then.

        Args:
            id: The item's id.
            options: Durability, `if_version` and timeout are honoured.

        Raises:
            InvalidItem: Not an id.
            Conflict: `if_version` does not hold.
            StoreUnavailable: As `submit`.
        """
        house = self._open()
        check_id(id)
        options = _DEFAULT if options is None else options
        durability = options.durability or self._durability
        if options.expected is not None:
            draft = Change(id, 0, None)
            house.atomic.put_if(draft, options.expected, durability, options.timeout)
            return True
        return bool(house.atomic.delete((id,), durability, options.timeout))

    def delete_many(self, ids: Iterable[str], options: SubmitOptions | None = None) -> int:
        """Delete items; return how many there may have been. As `delete`, with one query a tier."""
        house = self._open()
        unique = list(dict.fromkeys(check_id(id) for id in ids))
        options = _DEFAULT if options is None else options
        durability = options.durability or self._durability
        return len(house.atomic.delete(unique, durability, options.timeout))

    def update(
        self,
        id: str,
        fn: Callable[[SyncItem | None], SyncItem | bytes | None],
        options: SubmitOptions | None = None,
    ) -> SyncItem | None:
        """Replace an item by a function of itself, again and again until nobody came between.

        Args:
            id: The item's id.
            fn: Takes the item or None; returns the new item, its content, or None to delete. It
                may be called several times and must not have side effects.
            options: For the write; conditions are not allowed.

        Returns:
            What was written.

        Raises:
            Conflict: Overtaken a hundred times.
            StoreUnavailable: As `get` and `submit`.
        """
        options = _DEFAULT if options is None else options

        def decision(newest: Change | None) -> Change:
            old = None if newest is None else newest.item()
            new = fn(old)
            if type(new) is bytes:
                new = SyncItem(id, new) if old is None else _with_content(old, new)
            draft = Change(id, 0, None) if new is None else self._draft(cast("Any", new), options)
            if draft.id != id:
                raise InvalidItem(f"update of {id!r} returned an item with id {draft.id!r}")
            return draft

        durability = options.durability or self._durability
        _, change = self._open().atomic.decide(check_id(id), decision, durability, options.timeout)
        return change.item()

    def set_state(self, id: str, state: str) -> bool:
        """Change an item's state label; return False where there is no such item.

        Raises:
            InvalidItem: Not a label.
            StoreUnavailable: As `update`.
        """
        check_state(state)

        def decision(item: SyncItem | None) -> SyncItem:
            if item is None:
                raise _Absent
            return _with_state(item, state)

        try:
            self.update(id, decision)
        except _Absent:
            return False
        return True


class _Absent(Exception):
    """There is nothing to update."""


def _with_content(item: SyncItem, content: bytes) -> SyncItem:
    return SyncItem(
        item.id, content, item.content_type, item.state, 0, item.expires_at_ms, item.trace_parent
    )


def _with_state(item: SyncItem, state: str) -> SyncItem:
    return SyncItem(
        item.id, item.content, item.content_type, state, 0, item.expires_at_ms, item.trace_parent
    )
