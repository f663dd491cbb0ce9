"""Dead letters and observation, for asyncio."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sync_engine.aio.face import AsyncFace
from sync_engine.core.pressure import BackpressureLevel
from sync_engine.core.results import Health
from sync_engine.wal.records import DeadLetter

__all__ = ["AsyncUpkeep"]


class AsyncUpkeep(AsyncFace):
    """Shows how the engine does."""

    async def dead_letters(self) -> list[DeadLetter]:
        """As `SyncEngine.dead_letters`."""
        return await self.in_thread(self.sync.dead_letters)

    async def requeue_dead_letters(self, positions: Iterable[int] | None = None) -> int:
        """As `SyncEngine.requeue_dead_letters`."""
        return await self.in_thread(self.sync.requeue_dead_letters, positions)

    async def drop_dead_letters(self, positions: Iterable[int] | None = None) -> int:
        """As `SyncEngine.drop_dead_letters`."""
        return await self.in_thread(self.sync.drop_dead_letters, positions)

    def backpressure(self) -> BackpressureLevel:
        """As `SyncEngine.backpressure`."""
        return self.sync.backpressure()

    async def health(self) -> Health:
        """As `SyncEngine.health`."""
        return await self.in_thread(self.sync.health)

    def stats(self) -> dict[str, Any]:
        """As `SyncEngine.stats`."""
        return self.sync.stats()
