"""Prefixes and states, for asyncio."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import TypeVar

from sync_engine.aio.face import AsyncFace
from sync_engine.core.item import SyncItem

__all__ = ["AsyncLists"]

T = TypeVar("T")
_PAGE = 500


class AsyncLists(AsyncFace):
    """Lists, counts and deletes by prefix or state."""

    async def scan_prefix(
        self, prefix: str = "", *, after: str | None = None, limit: int | None = None
    ) -> AsyncIterator[SyncItem]:
        """As `SyncEngine.scan_prefix`."""
        async for item in self._pages(self.sync.scan_prefix(prefix, after=after, limit=limit)):
            yield item

    async def get_by_state(
        self, state: str, *, after: str | None = None, limit: int | None = None
    ) -> AsyncIterator[SyncItem]:
        """As `SyncEngine.get_by_state`."""
        async for item in self._pages(self.sync.get_by_state(state, after=after, limit=limit)):
            yield item

    async def ids(self, prefix: str = "") -> AsyncIterator[str]:
        """As `SyncEngine.ids`."""
        async for id in self._pages(self.sync.ids(prefix)):
            yield id

    async def _pages(self, items: Iterable[T]) -> AsyncIterator[T]:
        iterator = iter(items)

        def page() -> list[T]:
            return [item for _, item in zip(range(_PAGE), iterator, strict=False)]

        while batch := await self.in_thread(page):
            for item in batch:
                yield item

    async def count_prefix(self, prefix: str = "") -> int:
        """As `SyncEngine.count_prefix`."""
        return await self.in_thread(self.sync.count_prefix, prefix)

    async def count_by_state(self, state: str) -> int:
        """As `SyncEngine.count_by_state`."""
        return await self.in_thread(self.sync.count_by_state, state)

    async def delete_prefix(self, prefix: str) -> int:
        """As `SyncEngine.delete_prefix`."""
        return await self.in_thread(self.sync.delete_prefix, prefix)

    async def delete_by_state(self, state: str) -> int:
        """As `SyncEngine.delete_by_state`."""
        return await self.in_thread(self.sync.delete_by_state, state)
