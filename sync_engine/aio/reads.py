"""Reading, for asyncio."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import timedelta
from typing import Any, cast

from sync_engine.aio.face import AsyncFace
from sync_engine.aio.turn import hand_over
from sync_engine.core.item import SyncItem, check_id
from sync_engine.core.options import SubmitOptions
from sync_engine.core.results import ItemStatus
from sync_engine.errors import (
    EngineClosed,
    EngineFailed,
    InvalidItem,
    StoreUnavailable,
)

__all__ = ["AsyncReads"]


class AsyncReads(AsyncFace):
    """Answers from the nearest tier; the misses of one turn of the loop are one query a tier."""

    _reads: dict[str, list[asyncio.Future[SyncItem | None]]]
    _loads: dict[str, asyncio.Future[SyncItem | None]]

    async def get(
        self, id: str, *, stale_if_error: float | timedelta | None = None
    ) -> SyncItem | None:
        """As `SyncEngine.get`; a warm hit never leaves the loop.

        Misses of one turn of the loop become one query a tier.
        """
        known, item = self.sync.warm(id)
        if known:
            return item
        try:
            return await self._gather_read(check_id(id))
        except StoreUnavailable:
            item = await self.stale_copy(id, stale_if_error)
            if item is None:
                raise
            return item

    async def stale_copy(self, id: str, within: float | timedelta | None) -> SyncItem | None:
        """As `SyncEngine.stale_copy`."""
        return None if within is None else await self.in_thread(self.sync.stale_copy, id, within)

    def _gather_read(self, id: str) -> asyncio.Future[SyncItem | None]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[SyncItem | None] = loop.create_future()
        if not self._reads:
            loop.call_soon(self._hand_over_reads, loop)
        self._reads.setdefault(id, []).append(future)
        return future

    def _hand_over_reads(self, loop: asyncio.AbstractEventLoop) -> None:
        reads, self._reads = self._reads, {}
        ids = list(reads)

        def pair(
            items: list[SyncItem | None],
        ) -> Iterable[tuple[asyncio.Future[SyncItem | None], SyncItem | None]]:
            for id, item in zip(ids, items, strict=True):
                for future in reads[id]:
                    yield future, item

        futures = [future for waiting in reads.values() for future in waiting]
        hand_over(loop, self._executor, functools.partial(self.sync.get_many, ids), pair, futures)

    async def get_many(self, ids: Sequence[str]) -> list[SyncItem | None]:
        """As `SyncEngine.get_many`."""
        found: list[SyncItem | None] = []
        for id in ids:
            known, item = self.sync.warm(id)
            if not known:
                return await self.in_thread(self.sync.get_many, ids)
            found.append(item)
        return found

    async def get_verified(self, id: str, content_hash: str) -> SyncItem | None:
        """As `SyncEngine.get_verified`."""
        return await self.in_thread(self.sync.get_verified, id, content_hash)

    async def is_current(self, id: str, content_hash: str) -> bool:
        """As `SyncEngine.is_current`."""
        return await self.in_thread(self.sync.is_current, id, content_hash)

    async def get_or_load(
        self,
        id: str,
        loader: Callable[[], Awaitable[SyncItem | bytes | None] | SyncItem | bytes | None],
        ttl: float | timedelta | None = None,
        *,
        options: SubmitOptions | None = None,
        stale_if_error: float | timedelta | None = None,
    ) -> SyncItem | None:
        """As `SyncEngine.get_or_load`; the loader may be a coroutine function.

        A plain function runs in a worker thread. A caller that is cancelled does not cancel the
        load that others wait for.
        """
        try:
            return await self._get_or_load(id, loader, ttl, options)
        except (EngineClosed, EngineFailed, InvalidItem):
            raise
        except Exception:
            item = await self.stale_copy(id, stale_if_error)
            if item is None:
                raise
            return item

    async def _get_or_load(
        self,
        id: str,
        loader: Callable[[], Awaitable[SyncItem | bytes | None] | SyncItem | bytes | None],
        ttl: float | timedelta | None,
        options: SubmitOptions | None,
    ) -> SyncItem | None:
        known, item = self.sync.warm(id)
        if known and item is not None:
            return item
        if not inspect.iscoroutinefunction(loader):
            plain = cast("Callable[[], SyncItem | bytes | None]", loader)
            return await self.in_thread(self.sync.get_or_load, id, plain, ttl, options=options)
        running = self._loads.get(id)
        if running is None:
            running = asyncio.ensure_future(self._load(id, loader, ttl, options))
            self._loads[id] = running
            running.add_done_callback(lambda _: self._loads.pop(id, None))
        return await asyncio.shield(running)

    async def _load(
        self, id: str, loader: Any, ttl: float | timedelta | None, options: SubmitOptions | None
    ) -> SyncItem | None:
        item = await self.get(id)
        if item is not None:
            return item
        loaded = await loader()
        if loaded is None:
            return None
        return await self.in_thread(self.sync.get_or_load, id, lambda: loaded, ttl, options=options)

    def cached(
        self,
        *,
        key: Callable[..., str] | str,
        ttl: float | timedelta,
        stale_if_error: float | timedelta | None = None,
    ) -> Callable[[Callable[..., Any]], Callable[..., Awaitable[bytes]]]:
        """Decorate a function or coroutine function that returns bytes; as `SyncEngine.cached`."""

        def decorate(fn: Callable[..., Any]) -> Callable[..., Awaitable[bytes]]:
            @functools.wraps(fn)
            async def wrapper(*args: Any, **kwargs: Any) -> bytes:
                id = key.format(*args, **kwargs) if isinstance(key, str) else key(*args, **kwargs)

                async def load() -> bytes:
                    return cast("bytes", await fn(*args, **kwargs))

                plain = functools.partial(fn, *args, **kwargs)
                loader = load if inspect.iscoroutinefunction(fn) else plain
                item = await self.get_or_load(id, loader, ttl, stale_if_error=stale_if_error)
                if item is None:
                    raise InvalidItem(f"{fn.__name__} returned None, not bytes")
                return item.content

            return wrapper

        return decorate

    async def contains(self, id: str) -> bool:
        """As `SyncEngine.contains`."""
        return await self.get(id) is not None

    def definitely_missing(self, id: str) -> bool:
        """As `SyncEngine.definitely_missing`."""
        return self.sync.definitely_missing(id)

    def might_exist(self, id: str) -> bool:
        """As `SyncEngine.might_exist`."""
        return self.sync.might_exist(id)

    async def status(self, id: str) -> ItemStatus:
        """As `SyncEngine.status`."""
        return await self.in_thread(self.sync.status, id)
