"""The public API as strict type checkers see it: checked by mypy and pyright, never run."""

from __future__ import annotations

from pathlib import Path
from typing import assert_type

from sync_engine import (
    AsyncReceipt,
    AsyncSyncEngine,
    BatchResult,
    CacheTtl,
    Durability,
    FlushReport,
    Health,
    ItemStatus,
    Receipt,
    SubmitOptions,
    SyncEngine,
    SyncEngineConfig,
    SyncItem,
)


def sync_api() -> None:
    with SyncEngine(SyncEngineConfig(data_dir=Path("data"))) as engine:
        assert_type(engine, SyncEngine)
        assert_type(engine.submit("id", b"content"), Receipt)
        assert_type(engine.submit(SyncItem("id", b""), SubmitOptions.cache(CacheTtl.HOUR)), Receipt)
        assert_type(engine.get("id"), SyncItem | None)
        assert_type(engine.get_many(["a", "b"]), list[SyncItem | None])
        assert_type(engine.submit_many([SyncItem("a", b"")]), BatchResult)
        assert_type(engine.delete("id", SubmitOptions(durability=Durability.FSYNC)), bool)
        assert_type(engine.flush(), FlushReport)
        assert_type(engine.health(), Health)
        assert_type(engine.status("id"), ItemStatus)
        for item in engine.scan_prefix("a"):
            assert_type(item, SyncItem)

        @engine.cached(key="square:{}", ttl=60)
        def square(n: int) -> bytes:
            return b"%d" % (n * n)

        assert_type(square(3), bytes)


async def async_api() -> None:
    async with AsyncSyncEngine() as engine:
        receipt = await engine.submit("id", b"content")
        assert_type(receipt, AsyncReceipt)
        await receipt.wait(Durability.ARCHIVE)
        assert_type(await engine.get("id"), SyncItem | None)
        assert_type(await engine.delete("id"), bool)
        async for item in engine.scan_prefix("a"):
            assert_type(item, SyncItem)
