"""`AsyncSyncEngine`: the same engine for asyncio.

Warm answers and `memory` writes stay on the loop. Whatever may touch disk or network is gathered
for one turn of the loop and handed, in one piece, to a few worker threads: a hundred misses of one
turn are one MGET and one IN query, a hundred writes are one group in the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, cast

from sync_engine.config import SyncEngineConfig
from sync_engine.core.batcher import BatchConfig
from sync_engine.core.item import Change, SyncItem, check_id
from sync_engine.core.merkle import (
    MerkleDiff,
    MerkleNode,
    MerklePage,
    MerkleState,
    MerkleTree,
)
from sync_engine.core.options import Durability, SubmitOptions
from sync_engine.core.pressure import BackpressureLevel
from sync_engine.core.results import BatchResult, EngineState, FlushReport, Health, ItemStatus
from sync_engine.engine import SyncEngine
from sync_engine.errors import (
    DeadLettered,
    EngineClosed,
    EngineFailed,
    InvalidItem,
    StoreUnavailable,
)
from sync_engine.flow.feed import ArchivedChange
from sync_engine.flow.outlet import OnFull
from sync_engine.flow.repair import MerklePeer, RepairReport
from sync_engine.flow.verify import VerifyReport
from sync_engine.flow.writer import Receipt
from sync_engine.house import Stores
from sync_engine.ports import Runtime, Sink, Source
from sync_engine.wal.records import DeadLetter

__all__ = ["AsyncReceipt", "AsyncSyncEngine"]

R = TypeVar("R")
T = TypeVar("T")
_PAGE = 500
_SLICE_S = 0.5


class AsyncReceipt:
    """Proof of one acknowledged write, for asyncio.

    Attributes:
        id: The item's id.
        version: The version it was given.
        position: Its place in the log.
    """

    __slots__ = ("_engine", "_receipt")

    def __init__(self, receipt: Receipt, engine: AsyncSyncEngine) -> None:
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


class AsyncSyncEngine:
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
        self.sync = SyncEngine(config, runtime=runtime, stores=stores)
        self._executor: Executor | None = None
        self._reads: dict[str, list[asyncio.Future[SyncItem | None]]] = {}
        self._writes: list[tuple[SyncItem, asyncio.Future[Receipt]]] = []
        self._loads: dict[str, asyncio.Future[SyncItem | None]] = {}

    @classmethod
    async def open(cls, data_dir: str | Path, **settings: Any) -> AsyncSyncEngine:
        """Start an engine on a directory; settings as in `SyncEngineConfig`."""
        return await cls(SyncEngineConfig.load(data_dir=data_dir, **settings)).start()

    # -- lifecycle --------------------------------------------------------------------------------

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

    # -- sources and sinks ------------------------------------------------------------------------

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

        quiet_since, asked_at = loop.time(), -1
        try:
            while True:
                changes, upto = await self.in_thread(feed.take)
                for change in changes:
                    yield change
                    feed.done(change.position)
                if upto > feed.position:
                    feed.done(upto)
                if changes:
                    quiet_since = loop.time()
                    continue
                left = _SLICE_S
                if timeout is not None:
                    left = min(left, quiet_since + timeout - loop.time())
                if left <= 0:
                    return
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

    # -- writing ----------------------------------------------------------------------------------

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
        self._resolve(loop, work, lambda receipts: zip(futures, receipts, strict=True), futures)

    def _resolve(
        self,
        loop: asyncio.AbstractEventLoop,
        work: Callable[[], R],
        pair: Callable[[R], Iterable[tuple[asyncio.Future[Any], Any]]],
        futures: Sequence[asyncio.Future[Any]],
    ) -> None:
        """Run work in a thread; resolve the futures with its results, or all with its error."""
        task = loop.run_in_executor(self._executor, work)

        def done(finished: asyncio.Future[R]) -> None:
            error = finished.exception()
            if error is not None:
                for future in futures:
                    if not future.done():
                        future.set_exception(error)
                return
            for future, value in pair(finished.result()):
                if not future.done():
                    future.set_result(value)

        task.add_done_callback(done)

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

    # -- reading ----------------------------------------------------------------------------------

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
        self._resolve(loop, functools.partial(self.sync.get_many, ids), pair, futures)

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

    # -- prefixes and states ----------------------------------------------------------------------

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

    async def merkle_root(self) -> MerkleNode:
        """As `SyncEngine.merkle_root`."""
        return await self.in_thread(self.sync.merkle_root)

    async def merkle_node(self, path: str) -> MerkleNode:
        """As `SyncEngine.merkle_node`."""
        return await self.in_thread(self.sync.merkle_node, path)

    async def merkle_children(
        self, path: str, after: str | None = None, limit: int = 1000, *, grouped: bool = False
    ) -> MerklePage:
        """As `SyncEngine.merkle_children`."""
        return await self.in_thread(
            functools.partial(self.sync.merkle_children, path, after, limit, grouped=grouped)
        )

    async def merkle_state(self) -> MerkleState:
        """As `SyncEngine.merkle_state`."""
        return await self.in_thread(self.sync.merkle_state)

    async def merkle_rebuild(self, progress: Callable[[int], object] = lambda _: None) -> int:
        """As `SyncEngine.merkle_rebuild`; `progress` is called in a worker thread."""
        return await self.in_thread(self.sync.merkle_rebuild, progress)

    async def merkle_changes(self, ids: Sequence[str]) -> Mapping[str, Change]:
        """As `SyncEngine.merkle_changes`."""
        return await self.in_thread(self.sync.merkle_changes, ids)

    async def diff(
        self, other: MerkleTree | AsyncSyncEngine, *, path: str = "", **options: Any
    ) -> MerkleDiff:
        """As `SyncEngine.diff`; the other side may be an engine for asyncio, too."""
        there = other.sync if isinstance(other, AsyncSyncEngine) else other
        return await self.in_thread(functools.partial(self.sync.diff, there, path=path, **options))

    async def verify(self, **options: Any) -> VerifyReport:
        """As `SyncEngine.verify`."""
        return await self.in_thread(functools.partial(self.sync.verify, **options))

    async def repair(
        self, other: MerklePeer | AsyncSyncEngine | None = None, **options: Any
    ) -> RepairReport:
        """As `SyncEngine.repair`; the other side may be an engine for asyncio, too."""
        there = other.sync if isinstance(other, AsyncSyncEngine) else other
        return await self.in_thread(functools.partial(self.sync.repair, there, **options))

    # -- dead letters and observation -------------------------------------------------------------

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

    def __repr__(self) -> str:
        return f"<AsyncSyncEngine {self.sync.config.engine_name!r} {self.state.value}>"
