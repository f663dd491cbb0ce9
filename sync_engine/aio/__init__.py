"""The same engine for asyncio."""

from sync_engine.aio.engine import AsyncSyncEngine
from sync_engine.aio.receipt import AsyncReceipt

__all__ = ["AsyncReceipt", "AsyncSyncEngine"]
