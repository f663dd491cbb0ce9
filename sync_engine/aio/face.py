"""The bridge between an event loop and the engine's threads."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable
from concurrent.futures import Executor
from types import TracebackType
from typing import Any, Self, TypeVar

from sync_engine.config import SyncEngineConfig
from sync_engine.core.results import EngineState, FlushReport
from sync_engine.engine import SyncEngine
from sync_engine.errors import (
    DeadLettered,
    StoreUnavailable,
)
from sync_engine.house import Stores
from sync_engine.ports import Runtime

__all__ = ["AsyncFace"]

R = TypeVar("R")


class AsyncFace:
    """Starts and closes the engine from a loop; what every part of the asyncio face stands on."""

    def __init__(
        self,
        config: SyncEngineConfig | None = None,
        *,
        runtime: Runtime | None = None,
        stores: Stores | None = None,
    ) -> None:
        self.sync = SyncEngine(config, runtime=runtime, stores=stores)
        self._executor: Executor | None = None

    @property
    def state(self) -> EngineState:
        """Where the engine is in its life."""
        return self.sync.state

    async def start(self) -> Self:
        """As `SyncEngine.start`; the loop goes on meanwhile."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self.sync.start)
        self._executor = self.sync.executor()
        return self

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def in_thread(self, fn: Callable[..., R], *args: Any, **kwargs: Any) -> R:
        """Run a blocking call in one of the engine's few worker threads."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, functools.partial(fn, *args, **kwargs))

    async def flush(self, timeout: float | None = None, *, sinks: bool = False) -> FlushReport:
        """As `SyncEngine.flush`."""
        return await self.in_thread(self.sync.flush, timeout, sinks=sinks)

    async def close(self, timeout: float | None = None) -> FlushReport:
        """As `SyncEngine.close`; waits for what this loop still has under way."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(None, self.sync.close, timeout)

    def pause(self, destination: str) -> None:
        """As `SyncEngine.pause`."""
        self.sync.pause(destination)

    def resume(self, destination: str) -> None:
        """As `SyncEngine.resume`."""
        self.sync.resume(destination)

    async def archived(self, position: int, timeout: float | None) -> None:
        """Wait until the archive has taken a log position, without a thread."""
        loop = asyncio.get_running_loop()
        event = asyncio.Event()
        timeout = self.sync.config.submit_timeout_s if timeout is None else timeout

        def arrived() -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(event.set)

        self.sync.when_archived(position, arrived)
        try:
            async with asyncio.timeout(timeout):
                await event.wait()
        except TimeoutError:
            hint = f"not archived within {timeout} s; the change stays in the log"
            raise StoreUnavailable("sql", "archive", hint) from None
        error = self.sync.dead_letter_error(position)
        if error is not None:
            raise DeadLettered("sql", "archive", error)
