"""Sources, sinks and the change feed, for asyncio."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

from sync_engine.aio.face import AsyncFace
from sync_engine.core.batcher import BatchConfig
from sync_engine.flow.feed import ArchivedChange, Patience
from sync_engine.flow.outlet import OnFull
from sync_engine.ports import Sink, Source

__all__ = ["AsyncEnds"]


class AsyncEnds(AsyncFace):
    """Connects the engine with what is outside."""

    async def add_sink(
        self,
        name: str,
        sink: Sink,
        *,
        prefix: str | Sequence[str] = "",
        batch: BatchConfig | None = None,
        on_full: OnFull = "block",
    ) -> None:
        """As `SyncEngine.add_sink`."""
        await self.in_thread(
            self.sync.add_sink, name, sink, prefix=prefix, batch=batch, on_full=on_full
        )

    async def remove_sink(self, name: str, *, forget: bool = False) -> bool:
        """As `SyncEngine.remove_sink`."""
        return await self.in_thread(self.sync.remove_sink, name, forget=forget)

    async def changes(
        self, after: str | None = None, *, name: str = "", timeout: float | None = None
    ) -> AsyncIterator[ArchivedChange]:
        """As `SyncEngine.changes`; waits without a thread."""
        loop = asyncio.get_running_loop()
        feed, cursor = await self.in_thread(self.sync.open_feed, after, name)
        came = asyncio.Event()

        def arrived() -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(came.set)

        patience, asked_at = Patience(timeout, loop.time), -1
        try:
            while True:
                changes, upto = await self.in_thread(feed.take)
                for change in feed.hand_out(changes, upto):
                    yield change
                left = patience.left(came=bool(changes))
                if left is None:
                    return
                if left == 0:
                    continue
                if asked_at != feed.position:
                    asked_at = feed.position
                    came.clear()
                    self.sync.when_fed(feed, arrived)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(left):
                        await came.wait()
                        asked_at = -1
        finally:
            self.sync.leave_feed(cursor)

    async def forget_consumer(self, name: str) -> bool:
        """As `SyncEngine.forget_consumer`."""
        return await self.in_thread(self.sync.forget_consumer, name)

    async def add_source(self, name: str, source: Source, *, items_max: int = 1000) -> None:
        """As `SyncEngine.add_source`."""
        await self.in_thread(self.sync.add_source, name, source, items_max=items_max)

    async def remove_source(self, name: str) -> bool:
        """As `SyncEngine.remove_source`."""
        return await self.in_thread(self.sync.remove_source, name)
