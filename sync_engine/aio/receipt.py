"""`AsyncReceipt`: proof of one acknowledged write, for asyncio."""

from __future__ import annotations

from typing import Any

from sync_engine.aio.face import AsyncFace
from sync_engine.core.options import Durability
from sync_engine.flow.writer import Receipt

__all__ = ["AsyncReceipt"]


class AsyncReceipt:
    """Proof of one acknowledged write, for asyncio.

    Attributes:
        id: The item's id.
        version: The version it was given.
        position: Its place in the log.
    """

    __slots__ = ("_engine", "_receipt")

    def __init__(self, receipt: Receipt, engine: AsyncFace) -> None:
        self._receipt = receipt
        self._engine = engine

    def __repr__(self) -> str:
        return f"Async{self._receipt!r}"

    @property
    def id(self) -> str:
        """The item's id."""
        return self._receipt.id

    @property
    def version(self) -> int:
        """The version it was given."""
        return self._receipt.version

    @property
    def position(self) -> int:
        """Its place in the log."""
        return self._receipt.position

    async def wait(
        self, level: Durability | str = Durability.ARCHIVE, timeout: float | None = None
    ) -> None:
        """Wait until the write has reached a durability level; as `Receipt.wait`.

        Waiting for the archive occupies no thread; syncing the log, as it does, one for a moment.
        """
        level = Durability(level)
        if level is not Durability.ARCHIVE:
            await self._engine.in_thread(self._receipt.wait, level, timeout)
            return
        await self._engine.archived(self.position, timeout)
        await self._engine.in_thread(self._receipt.wait, Durability.FSYNC)

    def __await__(self) -> Any:
        return self.wait().__await__()
