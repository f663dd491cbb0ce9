"""Writing, for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import cast

from sync_engine.aio.face import AsyncFace
from sync_engine.aio.receipt import AsyncReceipt
from sync_engine.aio.turn import hand_over
from sync_engine.core.item import SyncItem
from sync_engine.core.options import Durability, SubmitOptions
from sync_engine.core.pressure import BackpressureLevel
from sync_engine.core.results import BatchResult
from sync_engine.flow.writer import Receipt

__all__ = ["AsyncWrites"]


class AsyncWrites(AsyncFace):
    """Accepts changes; those of one turn of the loop share one group in the log."""

    _writes: list[tuple[SyncItem, asyncio.Future[Receipt]]]

    async def submit(
        self,
        item: SyncItem | str,
        content: bytes | SubmitOptions | None = None,
        options: SubmitOptions | None = None,
        /,
    ) -> AsyncReceipt:
        """As `SyncEngine.submit`. At `memory` durability it never leaves the loop.

        Writes of one turn of the loop without options of their own share one group in the log.
        """
        if isinstance(item, SyncItem):
            options = cast("SubmitOptions | None", content) if options is None else options
        else:
            item = SyncItem(item, cast("bytes", content))
        if options is None:
            if self.sync.config.durability is not Durability.MEMORY:
                return AsyncReceipt(await self._gather_write(item), self)
        elif options.durability is not Durability.MEMORY or options.expected is not None:
            return AsyncReceipt(await self.in_thread(self.sync.submit, item, options), self)
        if self.sync.backpressure() >= BackpressureLevel.THROTTLE:
            return AsyncReceipt(await self.in_thread(self.sync.submit, item, options), self)
        return AsyncReceipt(self.sync.submit(item, options), self)

    def _gather_write(self, item: SyncItem) -> asyncio.Future[Receipt]:
        self.sync.check(item)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Receipt] = loop.create_future()
        if not self._writes:
            loop.call_soon(self._hand_over_writes, loop)
        self._writes.append((item, future))
        return future

    def _hand_over_writes(self, loop: asyncio.AbstractEventLoop) -> None:
        writes, self._writes = self._writes, []

        def work() -> list[Receipt]:
            return self.sync.submit_group([item for item, _ in writes])

        futures = [future for _, future in writes]
        hand_over(
            loop,
            self._executor,
            work,
            lambda receipts: zip(futures, receipts, strict=True),
            futures,
        )

    async def submit_many(
        self, items: Iterable[SyncItem], options: SubmitOptions | None = None
    ) -> BatchResult:
        """As `SyncEngine.submit_many`."""
        return await self.in_thread(self.sync.submit_many, list(items), options)

    async def delete(self, id: str, options: SubmitOptions | None = None) -> bool:
        """As `SyncEngine.delete`."""
        return await self.in_thread(self.sync.delete, id, options)

    async def delete_many(self, ids: Iterable[str], options: SubmitOptions | None = None) -> int:
        """As `SyncEngine.delete_many`."""
        return await self.in_thread(self.sync.delete_many, list(ids), options)

    async def update(
        self,
        id: str,
        fn: Callable[[SyncItem | None], SyncItem | bytes | None],
        options: SubmitOptions | None = None,
    ) -> SyncItem | None:
        """As `SyncEngine.update`; the function runs in a worker thread."""
        return await self.in_thread(self.sync.update, id, fn, options)

    async def set_state(self, id: str, state: str) -> bool:
        """As `SyncEngine.set_state`."""
        return await self.in_thread(self.sync.set_state, id, state)
