"""Engines that only look, beside one that works: nobody notices them."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sync_engine.config import SyncEngineConfig
from sync_engine.core.options import SubmitOptions
from sync_engine.engine import SyncEngine
from sync_engine.house import Stores
from sync_engine.ports import ArchiveInfo
from sync_engine.testing import FlakyStore, MemoryArchive, SystemClock

LEASE_S = 0.6


@pytest.fixture
def working(tmp_path: Path, any_sql_url: str) -> Iterator[SyncEngine]:
    config = SyncEngineConfig(
        data_dir=tmp_path / "working", sql_url=any_sql_url, lease_ttl_s=LEASE_S
    )
    with SyncEngine(config) as engine:
        engine.submit("a", b"1", SubmitOptions(state="hot"))
        assert engine.flush(20).complete
        yield engine


def look(engine: SyncEngine, data_dir: Path, *command: str) -> subprocess.CompletedProcess[bytes]:
    """Run a command on the same archive, in a process of its own."""
    place = ["--data-dir", str(data_dir), "--sql-url", str(engine.config.sql_url)]
    return subprocess.run(
        [sys.executable, "-m", "sync_engine", *place, *command],
        capture_output=True,
        env={n: v for n, v in os.environ.items() if not n.startswith("SYNC_ENGINE_")},
        check=False,
    )


def settle(engine: SyncEngine) -> None:
    """Let the keeper renew its lease, and see what others did."""
    house: Any = engine._house
    renewed = house.keeper._lease_until
    for _ in range(500):
        house.clock.sleep(0.02)
        if house.keeper._lease_until > renewed and engine.stats()["filter"]["trusted"]:
            return
    pytest.fail("the filter is not trusted")


def test_commands_that_read_leave_a_working_engine_its_lease_and_its_filter(
    working: SyncEngine, tmp_path: Path
) -> None:
    settle(working)
    epoch = working.stats()["l3"]["lease_epoch"]
    house: Any = working._house
    filters = house.filters
    began = filters.stats().get("warmups", 0), filters.reason

    other = tmp_path / "other"
    assert look(working, other, "get", "a").stdout == b"1"
    assert look(working, other, "get", "never").returncode == 1
    for command in (["scan"], ["scan", "--state", "hot"], ["status", "a"], ["stats"], ["health"],
                    ["dlq", "list"]):  # fmt: skip
        ran = look(working, other, *command, "--json")
        assert ran.returncode == 0, ran.stderr
    settle(working)

    stats = working.stats()
    assert (stats["l3"]["lease_epoch"], stats["l3"]["fenced"]) == (epoch, 0)
    assert stats["l3"]["foreign_writes"] == 0
    assert (filters.stats().get("warmups", 0), filters.reason) == began
    assert working.definitely_missing("never")


def test_a_passive_engine_reads_what_waits_and_delivers_nothing(tmp_path: Path) -> None:
    archive = MemoryArchive(clock=SystemClock())
    down = FlakyStore(archive)
    down.down = True
    with SyncEngine(SyncEngineConfig(data_dir=tmp_path), stores=Stores(None, down)) as engine:
        engine.submit("a", b"1")
        engine.close(timeout=0)
    looking = SyncEngineConfig(data_dir=tmp_path, passive=True)

    with SyncEngine(looking, stores=Stores(None, archive)) as engine:
        assert engine.get("a").content == b"1"  # type: ignore[union-attr]
        assert list(engine.ids()) == ["a"]
        engine.submit("b", b"2")
        assert engine.get("b").content == b"2"  # type: ignore[union-attr]
        assert engine.flush(0.05).left == {"l3": 2}
        assert not engine.definitely_missing("never")
        engine.close(timeout=0)
    assert archive.get_many(["a", "b"]) == {}

    with SyncEngine(SyncEngineConfig(data_dir=tmp_path), stores=Stores(None, archive)) as engine:
        assert engine.flush(10).complete
    assert set(archive.get_many(["a", "b"])) == {"a", "b"}


def test_a_passive_engine_asks_for_nothing_that_others_would_notice(tmp_path: Path) -> None:
    store = FlakyStore(MemoryArchive(clock=SystemClock()))
    config = SyncEngineConfig(data_dir=tmp_path, passive=True, lease_ttl_s=0.1)
    with SyncEngine(config, stores=Stores(None, store)) as engine:
        engine.get("a")
        list(engine.ids())
        engine.count_prefix()
        engine.status("a")
        engine.health()
        engine.stats()

    assert set(store.calls) <= {"attach", "get_many", "info", "scan", "count", "ping"}


def test_a_passive_engine_attaches_a_server_that_appears_later(tmp_path: Path) -> None:
    store = FlakyStore(MemoryArchive(clock=SystemClock()))
    store.down = True
    config = SyncEngineConfig(data_dir=tmp_path, passive=True, l3_circuit_open_s=0.05)
    with SyncEngine(config, stores=Stores(None, store)) as engine:
        assert engine.health().tiers["l3"].error != ""
        store.down = False
        for _ in range(500):
            if engine.health().ready:
                break
            SystemClock().sleep(0.02)
        assert engine.health().ready
        assert engine.health().tiers["l3"].error == ""


def test_health_says_why_a_tier_was_never_attached(tmp_path: Path) -> None:
    """Also while its circuit is open, and where nothing waits to be delivered."""
    config = SyncEngineConfig(
        data_dir=tmp_path,
        redis_url="redis://127.0.0.1:1",
        sql_url="mysql://u:hidden@127.0.0.1:1/d",
        l3_circuit_failures_max=1,
        l2_circuit_failures_max=1,
    )
    with SyncEngine(config) as engine:
        for _ in range(3):
            health = engine.health()
            for tier in health.tiers.values():
                assert not tier.attached
                assert "attach failed" in tier.error
                assert "circuit" not in tier.error
            assert any("l3 does not answer: sql: attach failed" in d for d in health.degraded)
            assert "hidden" not in repr(health)


def test_what_weakens_the_archives_promise_is_told_by_health(tmp_path: Path) -> None:
    class Weak(MemoryArchive):
        def info(self) -> ArchiveInfo:
            return dataclasses.replace(super().info(), warnings=("fsync is off",))

    stores = Stores(None, Weak(clock=SystemClock()))
    with SyncEngine(SyncEngineConfig(data_dir=tmp_path), stores=stores) as engine:
        health = engine.health()

    assert health.warnings == ("fsync is off",)
    assert health.ready
    assert health.degraded == ()


@pytest.mark.external
def test_a_database_that_promises_less_is_told_by_health_and_doctor(
    tmp_path: Path, mariadb_server: Any, mariadb_url: str
) -> None:
    mariadb_server.execute("SET GLOBAL innodb_flush_log_at_trx_commit = 2")
    try:
        with SyncEngine(SyncEngineConfig(data_dir=tmp_path, sql_url=mariadb_url)) as engine:
            assert any("innodb_flush_log_at_trx_commit" in w for w in engine.health().warnings)
            doctor = look(engine, tmp_path / "other", "doctor")
            assert b"innodb_flush_log_at_trx_commit" in doctor.stdout
            health = look(engine, tmp_path / "other", "health")
            assert b"innodb_flush_log_at_trx_commit" in health.stderr
            assert health.returncode == 0
    finally:
        mariadb_server.execute("SET GLOBAL innodb_flush_log_at_trx_commit = 1")


def test_listing_ids_reads_no_contents(tmp_path: Path) -> None:
    asked: list[bool] = []

    class Listening(MemoryArchive):
        def scan(self, **options: Any) -> Any:
            asked.append(options["keys_only"])
            return super().scan(**options)

    archive = Listening(clock=SystemClock())
    with SyncEngine(SyncEngineConfig(data_dir=tmp_path, filter="off"),
                    stores=Stores(None, archive)) as engine:  # fmt: skip
        for n in range(6000):
            engine.submit(f"i{n:05}", b"v", SubmitOptions(state="s" if n % 2 else "t"))
        engine.submit("gone", b"v")
        assert engine.flush(30).complete
        engine.submit("i00000", b"pending")
        engine.submit("pending", b"v")
        engine.delete("gone")

        assert list(engine.ids()) == [f"i{n:05}" for n in range(6000)] + ["pending"]
        assert list(engine.ids("i0000")) == [f"i{n:05}" for n in range(10)]
        assert engine.delete_prefix("i0000") == 10
        assert engine.delete_by_state("t") == 2995
        assert asked
        assert all(asked)
        assert next(engine.scan_prefix("i")).content == b"v"
        assert asked[-1] is False
