"""Reading items by id."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from sync_engine.core.item import Change, SyncItem, check_id
from sync_engine.core.options import SubmitOptions, ttl_ms
from sync_engine.core.results import (
    EngineState,
    ItemStatus,
)
from sync_engine.errors import (
    CorruptData,
    EngineClosed,
    EngineFailed,
    InvalidItem,
    StoreUnavailable,
)
from sync_engine.face.life import Face
from sync_engine.flow.inspect import item_status

__all__ = ["Reads"]

_DEFAULT = SubmitOptions()
_RUNNING = EngineState.RUNNING


class Reads(Face):
    """Reads by id."""

    def get(self, id: str, *, stale_if_error: float | timedelta | None = None) -> SyncItem | None:
        """Return the newest version of an item, or None where it is known not to exist.

        Args:
            id: The item's id.
            stale_if_error: Where no tier that would know can be asked, return the last copy known
                here if its deadline passed at most so many seconds ago; its `stale` is True then.

        Raises:
            InvalidItem: Not an id.
            StoreUnavailable: The tier that would know cannot be asked.
            CorruptData: The only copy fails its checksum.
            EngineClosed: The engine is not running.

        Blocking: not for a warm item; else up to ``read_timeout_s``. A warm hit takes no lock.
        """
        if self._state is not _RUNNING:
            raise self._closed()
        change = self._near(id)
        if change is None:
            if not self._overlay.has_pinned:
                change = self._l1_get(id)
        elif self._superseded(change):
            change = None
        if type(change) is not Change:
            return self._get_far(check_id(id), stale_if_error)
        if change.expires_at_ms and change.expired(self._now_ms()):
            return None
        return change.item()

    def _get_far(self, id: str, stale_if_error: float | timedelta | None) -> SyncItem | None:
        try:
            change = self._open().reader.get(id)
        except StoreUnavailable:
            item = self.stale_copy(id, stale_if_error)
            if item is None:
                raise
            return item
        return None if change is None else change.item()

    def stale_copy(self, id: str, within: float | timedelta | None) -> SyncItem | None:
        """Return the last copy known here or in the archive, marked as stale, or None.

        Args:
            id: The item's id.
            within: The longest time since its deadline, in seconds; None is no copy at all.
        """
        if within is None:
            return None
        change = self._open().reader.get_stale(check_id(id), ttl_ms(within))
        return None if change is None else change.item(stale=True)

    def get_many(self, ids: Sequence[str]) -> list[SyncItem | None]:
        """Return one entry per id, in order, None where absent; one query a tier for all.

        Raises:
            InvalidItem: Not an id.
            StoreUnavailable: A tier that would know cannot be asked.
        """
        house = self._open()
        for id in ids:
            check_id(id)
        found = house.reader.get_many(ids)
        items = {id: change.item() for id, change in found.items()}
        return [items.get(id) for id in ids]

    def get_verified(self, id: str, content_hash: str) -> SyncItem | None:
        """Return an item after comparing the SHA-256 of its content with the one expected.

        Raises:
            CorruptData: It differs.
            StoreUnavailable: As `get`.
        """
        item = self.get(id)
        if item is not None and item.content_hash != content_hash:
            raise CorruptData(id, "the content's SHA-256 is not the expected one")
        return item

    def is_current(self, id: str, content_hash: str) -> bool:
        """Tell whether an item's content has this SHA-256, in hex."""
        item = self.get(id)
        return item is not None and item.content_hash == content_hash

    def get_or_load(
        self,
        id: str,
        loader: Callable[[], SyncItem | bytes | None],
        ttl: float | timedelta | None = None,
        *,
        options: SubmitOptions | None = None,
        stale_if_error: float | timedelta | None = None,
    ) -> SyncItem | None:
        """Return an item, or load, store and return it. One loader call for all who miss at once.

        Args:
            id: The item's id.
            loader: Returns the item, its content, or None where there is none; not stored then.
            ttl: Seconds or timedelta to keep it, in the cache tiers only; None keeps it archived.
            options: In place of `ttl`, for full control.
            stale_if_error: Where the loader or the tiers fail, return the last copy known here if
                its deadline passed at most so many seconds ago; its `stale` is True then.

        Raises:
            StoreUnavailable: As `get`. Whatever the loader raises passes through.
        """
        try:
            return self._get_or_load(id, loader, ttl, options)
        except (EngineClosed, EngineFailed, InvalidItem):
            raise
        except Exception:
            item = self.stale_copy(id, stale_if_error)
            if item is None:
                raise
            return item

    def _get_or_load(
        self,
        id: str,
        loader: Callable[[], SyncItem | bytes | None],
        ttl: float | timedelta | None,
        options: SubmitOptions | None,
    ) -> SyncItem | None:
        item = self.get(id)
        if item is not None:
            return item
        if options is None:
            options = _DEFAULT if ttl is None else SubmitOptions.cache(ttl)

        def draft() -> Change | None:
            loaded = loader()
            if loaded is None:
                return None
            fresh = SyncItem(id, loaded) if isinstance(loaded, bytes) else loaded
            return self._draft(fresh, options)

        durability = options.durability or self._durability
        change = self._open().atomic.load(id, draft, durability, options.timeout)
        return None if change is None else change.item()

    def cached(
        self,
        *,
        key: Callable[..., str] | str,
        ttl: float | timedelta,
        stale_if_error: float | timedelta | None = None,
    ) -> Callable[[Callable[..., bytes]], Callable[..., bytes]]:
        """Decorate a function that returns bytes: its results are kept in the cache tiers.

        Args:
            key: A function of the arguments that returns the id, or a format string for them.
            ttl: Seconds or timedelta to keep a result.
            stale_if_error: As `get_or_load`.
        """

        def decorate(fn: Callable[..., bytes]) -> Callable[..., bytes]:
            @functools.wraps(fn)
            def wrapper(*args: Any, **kwargs: Any) -> bytes:
                id = key.format(*args, **kwargs) if isinstance(key, str) else key(*args, **kwargs)
                item = self.get_or_load(
                    id, lambda: fn(*args, **kwargs), ttl, stale_if_error=stale_if_error
                )
                if item is None:
                    raise InvalidItem(f"{fn.__name__} returned None, not bytes")
                return item.content

            return wrapper

        return decorate

    def contains(self, id: str) -> bool:
        """Tell whether an item exists. Raises and blocks as `get`."""
        return self.get(id) is not None

    def definitely_missing(self, id: str) -> bool:
        """Tell whether an item is known not to exist, without asking any server."""
        house = self._open()
        change = house.reader.near(check_id(id))
        if change is not None:
            return change.content is None or change.expired(self._now_ms())
        return house.filters.definitely_absent(id)

    def might_exist(self, id: str) -> bool:
        """Tell the opposite of `definitely_missing`."""
        return not self.definitely_missing(id)

    def status(self, id: str) -> ItemStatus:
        """Tell where an item is, asking each tier. Blocking: one round trip a tier."""
        return item_status(self._open(), check_id(id))
