"""`SyncEngine.changes`: what was archived, in order, and never with a hole."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path

import pytest

from sync_engine import AsyncSyncEngine, SubmitOptions, SyncEngine, SyncItem
from sync_engine.cli import main
from sync_engine.config import SyncEngineConfig
from sync_engine.errors import ConfigError, EngineClosed, FeedGap, InvalidItem
from sync_engine.house import Stores
from sync_engine.runtime import SystemRuntime
from sync_engine.testing import FlakyStore, MemoryArchive


def test_every_write_and_deletion_comes_in_order(tmp_path: Path) -> None:
    with SyncEngine.open(tmp_path) as engine:
        feed = engine.changes(name="mirror", timeout=1.0)
        engine.submit(SyncItem("a", b"1", state="x"))
        engine.submit("a", b"2")
        engine.delete("a")
        engine.submit_many([SyncItem("b", b"3"), SyncItem("c", b"4")])
        told = [next(feed) for _ in range(5)]
    assert [(t.id, t.item and t.item.content, t.deleted) for t in told] == [
        ("a", b"1", False),
        ("a", b"2", False),
        ("a", None, True),
        ("b", b"3", False),
        ("c", b"4", False),
    ]
    assert [t.version for t in told] == sorted(t.version for t in told)
    assert told[0].item is not None
    assert told[0].item.state == "x"


def test_nothing_comes_before_the_archive_has_it(tmp_path: Path) -> None:
    with SyncEngine.open(tmp_path) as engine:
        engine.pause("l3")
        engine.submit("a", b"1")
        assert list(engine.changes(name="c", timeout=0.1)) == []
        engine.resume("l3")
        assert [t.id for t in engine.changes(name="c", timeout=1.0)] == ["a"]


def test_nothing_comes_that_a_power_cut_could_take_back(tmp_path: Path) -> None:
    """Else its token would name a place that is given out once more."""
    with SyncEngine.open(tmp_path, fsync_interval_ms=600_000) as engine:
        engine.submit("first", b"")
        engine.flush()
        feed = engine.changes(name="c", timeout=5.0)
        for n in range(5):
            engine.submit(f"k{n}", b"")
        for _ in range(5):
            told = next(feed)
            assert engine.stats()["log"]["synced"] >= told.position


def test_what_the_archive_refused_never_comes(tmp_path: Path) -> None:
    runtime = SystemRuntime("engine")
    archive = FlakyStore(MemoryArchive(runtime.clock))
    archive.reject = frozenset({"poison"})
    config = SyncEngineConfig(data_dir=tmp_path)
    with SyncEngine(config, runtime=runtime, stores=Stores(None, archive)) as engine:
        feed = engine.changes(name="c", timeout=1.0)
        engine.submit_many([SyncItem("a", b"1"), SyncItem("poison", b"1"), SyncItem("b", b"1")])
        assert [t.id for t in feed] == ["a", "b"]


def test_a_token_goes_on_after_its_change(tmp_path: Path) -> None:
    with SyncEngine.open(tmp_path, feed_items_kept=100) as engine:
        for n in range(10):
            engine.submit(f"k{n}", b"1")
        engine.flush(10)
        feed = engine.changes(f"{engine_uuid(engine)}:0", timeout=0)
        told = list(feed)
        assert [t.id for t in told] == [f"k{n}" for n in range(10)]
        rest = engine.changes(told[3].token, timeout=0)
        assert [t.id for t in rest] == [f"k{n}" for n in range(4, 10)]


def engine_uuid(engine: SyncEngine) -> str:
    """Return the identity that tokens begin with."""
    feed = engine.changes(name="uuid", timeout=1.0)
    engine.submit("k0", b"1")
    token = next(feed).token
    feed.close()
    engine.forget_consumer("uuid")
    return token.partition(":")[0]


def test_a_log_that_no_longer_reaches_back_says_so(tmp_path: Path) -> None:
    with SyncEngine.open(tmp_path) as engine:
        feed = engine.changes(name="c", timeout=1.0)
        engine.submit("a", b"1")
        token = next(feed).token
        feed.close()
        engine.forget_consumer("c")
        for n in range(3):
            engine.submit(f"k{n}", b"1")
            engine.flush(10)
        with pytest.raises(FeedGap, match="no longer reaches back"):
            next(engine.changes(token, timeout=0))
        assert engine.changes(timeout=0) is not None


def test_a_token_of_another_log_is_a_gap_and_nonsense_is_a_mistake(tmp_path: Path) -> None:
    with SyncEngine.open(tmp_path) as engine:
        with pytest.raises(FeedGap, match="this engine's log"):
            next(engine.changes("f" * 32 + ":5", timeout=0))
        with pytest.raises(InvalidItem):
            next(engine.changes("5", timeout=0))
        with pytest.raises(ConfigError):
            next(engine.changes(name="a b", timeout=0))


def test_a_token_ahead_of_the_log_is_a_gap(tmp_path: Path) -> None:
    """The log is an older copy of itself."""
    with SyncEngine.open(tmp_path) as engine:
        uuid = engine_uuid(engine)
        with pytest.raises(FeedGap, match="beyond the log"):
            next(engine.changes(f"{uuid}:999", timeout=0))


def test_a_named_consumer_goes_on_where_it_was_over_restarts(tmp_path: Path) -> None:
    """What was given and not followed by another request is given again."""
    with SyncEngine.open(tmp_path) as engine:
        feed = engine.changes(name="c", timeout=1.0)
        for n in range(6):
            engine.submit(f"k{n}", b"1")
        assert [next(feed).id for _ in range(3)] == ["k0", "k1", "k2"]
        feed.close()
    with SyncEngine.open(tmp_path) as engine:
        engine.submit("k6", b"1")
        engine.flush(10)
        assert [t.id for t in engine.changes(name="c", timeout=0)] == ["k2", "k3", "k4", "k5", "k6"]
    with SyncEngine.open(tmp_path) as engine:
        assert list(engine.changes(name="c", timeout=0)) == []
        assert engine.forget_consumer("c")
        assert not engine.forget_consumer("c")


def test_while_it_is_read_the_log_is_held(tmp_path: Path) -> None:
    with SyncEngine.open(tmp_path) as engine:
        feed = engine.changes(timeout=1.0)
        engine.submit("before", b"1")
        engine.flush(10)
        started = threading.Event()
        told: list[str] = []

        def read() -> None:
            started.set()
            told.extend(t.id for t in feed)

        thread = threading.Thread(target=read)
        thread.start()
        started.wait()
        for n in range(50):
            engine.submit(f"k{n}", b"1")
            if n % 10 == 0:
                engine.flush(10)
        thread.join()
        told = [id for id in told if id != "before"]
        assert told == [f"k{n}" for n in range(50)][-len(told) :]
        assert len(told) > 0


def test_a_reader_that_went_away_holds_nothing(tmp_path: Path) -> None:
    with SyncEngine.open(tmp_path) as engine:
        feed = engine.changes(timeout=0)
        list(feed)
        engine.submit("a", b"1")
        engine.flush(10)
        assert not [name for name in engine.stats()["cursors"] if name.startswith("reading:")]


def test_it_ends_with_the_engine(tmp_path: Path) -> None:
    engine = SyncEngine.open(tmp_path)
    feed = engine.changes()
    engine.submit("a", b"1")
    errors: list[Exception] = []
    came = threading.Event()

    def read() -> None:
        try:
            for _ in feed:
                came.set()
        except EngineClosed as exc:
            errors.append(exc)

    thread = threading.Thread(target=read)
    thread.start()
    engine.submit("b", b"1")
    came.wait(10)
    engine.close()
    thread.join(10)
    assert len(errors) == 1


def test_what_is_kept_in_the_cache_alone_counts_as_a_deletion(tmp_path: Path) -> None:
    from sync_engine.testing import MemoryCacheStore

    runtime = SystemRuntime("engine")
    stores = Stores(MemoryCacheStore(runtime.clock), MemoryArchive(runtime.clock))
    config = SyncEngineConfig(data_dir=tmp_path)
    with SyncEngine(config, runtime=runtime, stores=stores) as engine:
        feed = engine.changes(name="c", timeout=1.0)
        engine.submit("session", b"1", SubmitOptions.cache(60))
        told = next(feed)
        assert (told.id, told.deleted) == ("session", True)


async def test_asyncio_has_the_same(tmp_path: Path) -> None:
    async with AsyncSyncEngine(SyncEngineConfig(data_dir=tmp_path)) as engine:
        told = []

        async def read() -> None:
            async for change in engine.changes(name="c", timeout=1.0):
                told.append(change.id)  # noqa: PERF401 - read while it goes on

        reading = asyncio.create_task(read())
        for n in range(20):
            await engine.submit(f"k{n}", b"1")
        await reading
        assert told == [f"k{n}" for n in range(20)]
        with pytest.raises(FeedGap):
            await anext(engine.changes("f" * 32 + ":5", timeout=0))


# -- the command ----------------------------------------------------------------------------------


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, list[str]]:
    code = main(list(args))
    return code, capsys.readouterr().out.splitlines()


def test_the_command_reads_the_log_of_a_running_engine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with SyncEngine.open(tmp_path, feed_items_kept=1000, fsync_interval_ms=10) as engine:
        engine.submit("a", b"1")
        engine.delete("a")
        engine.submit("b", b"22")
        engine.flush(10)
        where = ("--data-dir", str(tmp_path))
        lines: list[str] = []
        while len(lines) < 3:  # cursors are saved a moment later
            code, lines = run(capsys, "changes", *where, "--json", "--values")
            assert code == 0
        told = [json.loads(line) for line in lines]
        assert [(t["op"], t["id"]) for t in told] == [("put", "a"), ("delete", "a"), ("put", "b")]

        code, lines = run(capsys, "changes", *where, "--after", told[0]["token"])
        assert code == 0
        assert len(lines) == 2

        code, lines = run(capsys, "changes", *where, "--after", "f" * 32 + ":5")
        assert (code, lines) == (1, [])


def test_the_command_without_a_log_is_a_mistake(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _ = run(capsys, "changes", "--data-dir", str(tmp_path / "nowhere"))
    assert code == 2
