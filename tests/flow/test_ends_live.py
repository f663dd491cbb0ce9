"""Both ends with real threads: full rate, asyncio, a clean end."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from sync_engine import AsyncSyncEngine, SyncEngine, SyncEngineConfig
from sync_engine.core.item import Change
from sync_engine.house import Stores
from sync_engine.ports import SourceBatch
from sync_engine.runtime import SystemClock
from sync_engine.testing import ListSource, MemoryArchive, MemorySink, PositionedMemorySink


@pytest.mark.parametrize("kind", [MemorySink, PositionedMemorySink])
def test_a_copy_needs_no_quiet_time(tmp_path: Path, kind: type[MemorySink]) -> None:
    """Writers run at full rate from before the copy until after its end."""
    sink = kind()
    started, enough = threading.Barrier(4), threading.Event()

    def write(engine: SyncEngine, name: int) -> None:
        started.wait()
        n = 0
        while not enough.is_set() or n < 2000:
            id = f"id.{(n * 7 + name) % 3000:04}"
            if n % 5 == name:
                engine.delete(id)
            else:
                engine.submit(id, b"%d.%d" % (name, n))
            n += 1

    with SyncEngine.open(tmp_path) as engine:
        for n in range(3000):
            engine.submit(f"id.{n:04}", b"old")
        writers = [threading.Thread(target=write, args=(engine, name)) for name in range(3)]
        for writer in writers:
            writer.start()
        started.wait()
        engine.add_sink("copy", sink)
        house = engine._house
        assert house is not None
        copied = house.doors.sinks["copy"].wait_copied(60)
        enough.set()
        for writer in writers:
            writer.join()
        assert copied
        assert engine.flush(60, sinks=True).complete
        assert sink.contents() == {item.id: item.content for item in engine.scan_prefix()}


async def test_asyncio_has_the_same_ends(tmp_path: Path) -> None:
    sink, source = MemorySink(), ListSource([Change(f"id.{n}", 0, b"") for n in range(50)])
    async with await AsyncSyncEngine.open(tmp_path) as engine:
        await engine.add_sink("copy", sink, prefix="id.")
        await engine.add_source("list", source)
        while source.acknowledged < 50:
            await asyncio.sleep(0.001)
        assert (await engine.flush(30, sinks=True)).complete
        assert len(sink.contents()) == 50
        assert await engine.remove_source("list")
        assert await engine.remove_sink("copy", forget=True)


def test_an_idle_engine_with_ends_closes_at_once(tmp_path: Path) -> None:
    engine = SyncEngine.open(tmp_path)
    engine.add_sink("copy", MemorySink())
    engine.add_source("list", ListSource())
    engine.submit("a", b"1")
    assert engine.flush(30, sinks=True).complete
    assert engine.close().seconds < 1.0


def test_a_batch_that_is_being_taken_when_it_closes_is_delivered_with_the_rest(
    tmp_path: Path,
) -> None:
    polled = threading.Event()

    class Slow(ListSource):
        def poll(self, items_max: int) -> SourceBatch:
            polled.set()
            threading.Event().wait(0.2)  # long enough for `close` to have begun
            return super().poll(items_max)

    archive = MemoryArchive(SystemClock())
    engine = SyncEngine(SyncEngineConfig(data_dir=tmp_path), stores=Stores(None, archive)).start()
    engine.add_source("list", Slow([Change(f"id.{n}", 0, b"") for n in range(50)]))
    assert polled.wait(10)
    assert engine.close().complete
    assert archive.count() == 50


def test_what_was_taken_before_an_end_is_delivered_after_it(tmp_path: Path) -> None:
    sink = PositionedMemorySink()
    for life in range(3):
        with SyncEngine.open(tmp_path) as engine:
            engine.add_sink("copy", sink)
            for n in range(2000):
                engine.submit(f"id.{life}.{n}", b"")
    with SyncEngine.open(tmp_path) as engine:
        engine.add_sink("copy", sink)
        assert engine.flush(30, sinks=True).complete
        assert len(sink.contents()) == 6000
