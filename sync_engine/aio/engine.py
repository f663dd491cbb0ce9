"""`AsyncSyncEngine`: the same engine for asyncio.

Warm answers and `memory` writes stay on the loop. Whatever may touch disk or network is gathered
for one turn of the loop and handed, in one piece, to a few worker threads: a hundred misses of one
turn are one MGET and one IN query, a hundred writes are one group in the log.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sync_engine.aio.checks import AsyncChecks
from sync_engine.aio.ends import AsyncEnds
from sync_engine.aio.lists import AsyncLists
from sync_engine.aio.reads import AsyncReads
from sync_engine.aio.upkeep import AsyncUpkeep
from sync_engine.aio.writes import AsyncWrites
from sync_engine.config import SyncEngineConfig
from sync_engine.house import Stores
from sync_engine.ports import Runtime

__all__ = ["AsyncSyncEngine"]


class AsyncSyncEngine(AsyncWrites, AsyncReads, AsyncLists, AsyncEnds, AsyncChecks, AsyncUpkeep):
    """The engine's asyncio face; one event loop at a time.

    Methods, arguments and errors are those of `SyncEngine`. Cancelling a call never harms the
    engine: a write that was handed over may still happen, as with any acknowledgement that was not
    waited for.

    Args:
        config: Settings; None takes the defaults. `from_env` takes the environment.
        runtime: Time, locks and jobs; None is the real ones.
        stores: Stores to use in place of the configured ones.
    """

    def __init__(
        self,
        config: SyncEngineConfig | None = None,
        *,
        runtime: Runtime | None = None,
        stores: Stores | None = None,
    ) -> None:
        super().__init__(config, runtime=runtime, stores=stores)
        self._reads = {}
        self._writes = []
        self._loads = {}

    @classmethod
    async def open(cls, data_dir: str | Path, **settings: Any) -> AsyncSyncEngine:
        """Start an engine on a directory; settings as in `SyncEngineConfig`."""
        return await cls(SyncEngineConfig.load(data_dir=data_dir, **settings)).start()

    def __repr__(self) -> str:
        return f"<AsyncSyncEngine {self.sync.config.engine_name!r} {self.state.value}>"
