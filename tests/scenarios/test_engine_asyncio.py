"""The asyncio face: the same engine, and a loop that is never blocked."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from sync_engine import (
    AsyncSyncEngine,
    Conflict,
    Durability,
    InvalidItem,
    StoreUnavailable,
    SubmitOptions,
    SyncEngine,
    SyncEngineConfig,
    SyncItem,
)
from sync_engine.house import Stores
from sync_engine.testing import FlakyStore, MemoryArchive, MemoryCacheStore, SystemClock


class Servers:
    def __init__(self) -> None:
        clock = SystemClock()
        self.archive = MemoryArchive(clock=clock)
        self.l2 = FlakyStore(MemoryCacheStore(clock=clock))
        self.l3 = FlakyStore(self.archive)


@pytest.fixture
def servers() -> Servers:
    return Servers()


@pytest.fixture
async def engine(tmp_path: Path, servers: Servers) -> AsyncIterator[AsyncSyncEngine]:
    config = SyncEngineConfig(
        data_dir=tmp_path, filter="off", read_timeout_s=0.5, l3_circuit_open_s=0.1
    )
    async with AsyncSyncEngine(config, stores=Stores(servers.l2, servers.l3)) as engine:
        yield engine


def cold(engine: AsyncSyncEngine) -> None:
    house: Any = engine.sync._house
    house.l1.clear()


def test_both_faces_have_the_same_methods() -> None:
    def public(cls: type) -> set[str]:
        return {name for name in dir(cls) if not name.startswith("_")}

    bridge = {"check", "submit_group", "warm", "when_archived", "dead_letter_error", "executor"}
    bridge |= {"open_feed", "leave_feed", "when_fed", "hold_sources"}
    only_sync = {"from_env", "from_toml", "attach", "detach", "metrics", "adapter_context"}
    only_async = {"in_thread", "archived"}
    assert public(SyncEngine) - bridge - only_sync == public(AsyncSyncEngine) - only_async


async def test_write_wait_and_read(engine: AsyncSyncEngine) -> None:
    receipt = await engine.submit("a", b"1")
    await receipt
    item = await engine.get("a")
    assert item is not None
    assert item.version == receipt.version
    assert (await engine.status("a")).in_l3
    assert await engine.delete("a")
    assert await engine.get("a") is None


async def test_memory_writes_and_warm_reads_never_leave_the_loop(engine: AsyncSyncEngine) -> None:
    async def refuse(*args: Any, **kwargs: Any) -> None:
        pytest.fail("left the loop")

    engine.in_thread = refuse  # type: ignore[method-assign]
    engine._executor = None
    options = SubmitOptions(durability=Durability.MEMORY)

    await engine.submit("a", b"1", options)

    assert (await engine.get("a")).content == b"1"  # type: ignore[union-attr]


async def test_misses_of_one_turn_are_one_query_a_tier(
    engine: AsyncSyncEngine, servers: Servers
) -> None:
    ids = [f"i{n}" for n in range(100)]
    await engine.submit_many([SyncItem(id, id.encode()) for id in ids])
    assert (await engine.flush()).complete
    cold(engine)
    servers.l2.calls.clear()
    servers.l3.calls.clear()

    items = await asyncio.gather(*(engine.get(id) for id in [*ids, "i0", "never"]))

    assert [item and item.content for item in items] == [*(i.encode() for i in ids), b"i0", None]
    assert servers.l2.calls["get_many"] == 1
    assert servers.l3.calls["get_many"] == 1


async def test_writes_of_one_turn_are_one_group(engine: AsyncSyncEngine) -> None:
    receipts = await asyncio.gather(*(engine.submit(f"i{n}", b"v") for n in range(50)))

    assert len({receipt.version for receipt in receipts}) == 50
    log: Any = engine.sync._house.log  # type: ignore[union-attr]
    assert log._file.frames(0, 10)[0][1] == 50


async def test_the_loop_turns_while_the_archive_hangs(
    engine: AsyncSyncEngine, servers: Servers
) -> None:
    release = threading.Event()
    servers.l3.on_call = lambda operation: release.wait(5) if operation == "get_many" else None
    reading = asyncio.ensure_future(engine.get("absent"))
    turns = 0
    while turns < 100:
        await asyncio.sleep(0)
        turns += 1
    assert not reading.done()

    release.set()
    assert await reading is None


async def test_a_cancelled_reader_harms_nobody(engine: AsyncSyncEngine, servers: Servers) -> None:
    await engine.submit("a", b"1")
    await engine.flush()
    cold(engine)
    asked, release = threading.Event(), threading.Event()

    def hang(operation: str) -> None:
        if operation == "get_many":
            asked.set()
            release.wait(5)

    servers.l3.on_call = hang
    servers.l2.down = True
    first, second = (asyncio.ensure_future(engine.get("a")) for _ in range(2))
    assert await asyncio.to_thread(asked.wait, 5)

    first.cancel()
    release.set()

    assert (await second).content == b"1"  # type: ignore[union-attr]
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_one_load_for_all_and_a_cancelled_leader_hands_over(engine: AsyncSyncEngine) -> None:
    calls = []
    loading, go = asyncio.Event(), asyncio.Event()

    async def loader() -> bytes:
        calls.append(1)
        loading.set()
        await go.wait()
        return b"loaded"

    tasks = [asyncio.ensure_future(engine.get_or_load("a", loader, 60)) for _ in range(20)]
    await asyncio.wait_for(loading.wait(), 5)
    tasks[0].cancel()
    go.set()

    items = await asyncio.gather(*tasks[1:])
    assert {item.content for item in items if item} == {b"loaded"}
    assert len(calls) == 1


async def test_cached_takes_both_kinds_of_functions(engine: AsyncSyncEngine) -> None:
    calls = []

    @engine.cached(key="c:{}", ttl=60)
    async def one(n: int) -> bytes:
        calls.append(n)
        return b"%d" % n

    @engine.cached(key="s:{}", ttl=60)
    def two(n: int) -> bytes:
        calls.append(n)
        return b"%d" % n

    assert [await one(1), await one(1), await two(2), await two(2)] == [b"1", b"1", b"2", b"2"]
    assert calls == [1, 2]


async def test_errors_are_those_of_the_sync_face(engine: AsyncSyncEngine, servers: Servers) -> None:
    with pytest.raises(InvalidItem):
        await engine.submit("", b"")
    with pytest.raises(InvalidItem):
        await engine.get("\0")
    receipt = await engine.submit("a", b"1")
    with pytest.raises(Conflict):
        await engine.submit("a", b"2", SubmitOptions(if_version=receipt.version + 1))
    servers.l3.down = True
    waiting = await engine.submit("b", b"1")
    with pytest.raises(StoreUnavailable):
        await waiting.wait(timeout=0.05)
    with pytest.raises(StoreUnavailable):
        await engine.get("absent")
    servers.l3.down = False


async def test_scans_and_counts(engine: AsyncSyncEngine) -> None:
    await engine.submit_many([SyncItem(f"p.{n:04}", b"v", state="s") for n in range(1200)])
    await engine.flush()

    assert [i.id async for i in engine.scan_prefix("p.", limit=3)] == ["p.0000", "p.0001", "p.0002"]
    assert len([id async for id in engine.ids("p.")]) == 1200
    assert len([i async for i in engine.get_by_state("s")]) == 1200
    assert await engine.count_by_state("s") == 1200
    assert await engine.delete_prefix("p.00") == 100
    assert await engine.count_prefix("p.") == 1100
    updated = await engine.update("p.0500", lambda item: b"new" if item else None)
    assert updated is not None
    assert (await engine.health()).ready


def test_public_coroutines_are_documented() -> None:
    for name, member in vars(AsyncSyncEngine).items():
        if not name.startswith("_") and inspect.isfunction(member):
            assert member.__doc__, name
