"""Scenarios on real servers: from start to close, with a tier that is away or dies."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from sync_engine import (
    CircuitOpen,
    EngineState,
    FlushReason,
    StoreUnavailable,
    SyncEngine,
    SyncItem,
)
from sync_engine.testing import SystemClock
from tests.scenarios.on_servers.support import Start, cold, stores, until

pytestmark = [pytest.mark.external, pytest.mark.timeout(120)]


# -- S1: lifecycle --------------------------------------------------------------------------------


def test_s01_a_watcher_sees_every_state_and_items_come_back(start: Start, any_sql_url: str) -> None:
    engine = start(any_sql_url)
    seen = [engine.state]
    for n in range(10):
        engine.submit(SyncItem(f"uk.nhs.patient.{n}", b"%d" % n))
    assert engine.flush(20).complete
    cold(engine)

    assert engine.count_prefix("uk.nhs.") == 10
    assert [item.content for item in engine.scan_prefix("uk.nhs.")] == [
        b"%d" % n for n in range(10)
    ]
    engine.close()
    seen.append(engine.state)
    assert seen == [EngineState.RUNNING, EngineState.CLOSED]


# -- S2: thresholds -------------------------------------------------------------------------------


def reasons(engine: SyncEngine, tier: str) -> set[str]:
    house: Any = engine._house
    counted = house.metrics.snapshot()
    return {
        reason.value
        for reason in FlushReason
        if counted.get(f'sync_engine_flushes_total{{reason="{reason.value}",tier="{tier}"}}')
    }


def test_s02_batches_leave_by_count_age_bytes_request_and_shutdown(
    start: Start, redis_server: Any
) -> None:
    """Nobody asks for a delivery; each bound is seen to cause one."""
    engine = start(l2_batch_items_max=5, l2_batch_age_ms=50, l2_batch_bytes_max=20_000)
    l2 = stores(engine).l2
    ids = [f"i{n}" for n in range(20)]
    for id in ids:
        engine.submit(id, b"v")
    until(lambda: len(l2.get_many(ids)) == 20)
    assert "count" in reasons(engine, "l2")

    engine.submit("alone", b"v")
    until(lambda: "alone" in l2.get_many(["alone"]))
    until(lambda: "age" in reasons(engine, "l2"))

    engine.pause("l2")
    for n in range(4):
        engine.submit(f"large{n}", bytes(15_000))
    engine.resume("l2")
    until(lambda: "bytes" in reasons(engine, "l2"))
    assert engine.flush(10).complete

    slow = start(engine_name="slow", l2_batch_age_ms=60_000, l3_batch_age_ms=60_000)
    slow.submit("asked", b"v")
    assert "asked" not in stores(slow).l2.get_many(["asked"])
    assert slow.flush(10).complete
    assert reasons(slow, "l2") == {"manual"}
    slow.submit("last", b"v")
    house: Any = slow._house
    slow.close()
    assert any('reason="shutdown"' in name for name in house.metrics.snapshot())
    assert len(l2.get_many(["asked", "last"])) == 2


# -- S3, S4: L2 -----------------------------------------------------------------------------------


def test_s03_redis_absent_at_start_is_attached_when_it_appears(
    start: Start, redis_server: Any
) -> None:
    redis_server.kill()
    engine = start()
    engine.submit("a", b"1")
    assert engine.get("a").content == b"1"  # type: ignore[union-attr]
    health = engine.health()
    assert health.ready
    assert not health.tiers["l2"].attached
    assert any(sentence.startswith("l2 does not answer") for sentence in health.degraded)

    redis_server.start()
    assert engine.flush(20).complete
    assert stores(engine).l2.get_many(["a"])["a"].content == b"1"
    until(lambda: engine.health().degraded == ())


def test_s04_redis_killed_under_ten_writers_hurts_nobody(
    start: Start, sql: tuple[str, Any], redis_server: Any
) -> None:
    engine = start(sql[0])
    errors: list[BaseException] = []
    acked: dict[str, bytes] = {}
    killed = threading.Event()

    def write(writer: int) -> None:
        try:
            for n in range(100):
                id, content = f"w{writer}.{n % 20}", b"%d:%d" % (writer, n)
                engine.submit(id, content)
                acked[id] = content
                if n == 50:
                    killed.wait(10)
                assert engine.get(id).content == content  # type: ignore[union-attr]
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(10)]
    for thread in threads:
        thread.start()
    redis_server.kill()
    killed.set()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads), "a caller hangs"
    assert errors == []
    assert all(engine.get(id).content == content for id, content in acked.items())  # type: ignore[union-attr]

    redis_server.start()
    assert engine.flush(30).complete
    for store in (stores(engine).l2, stores(engine).l3):
        assert {id: row.content for id, row in store.get_many(list(acked)).items()} == acked


# -- S5, S6: L3 -----------------------------------------------------------------------------------


def test_s05_sql_killed_and_back_drains_text_and_bytes_and_the_newest_wins(
    start: Start, sql: tuple[str, Any]
) -> None:
    url, server = sql
    engine = start(url)
    engine.submit("before", b"1")
    assert engine.flush(20).complete
    server.kill()
    for n in range(50):
        engine.submit(f"b{n % 25}", bytes([n]) * 100)
        engine.submit(SyncItem.from_json(f"j{n % 25}", {"n": n}))
    engine.delete("before")
    cold(engine)
    assert engine.get("b3").content == bytes([28]) * 100  # type: ignore[union-attr]
    assert engine.get("j3").json() == {"n": 28}  # type: ignore[union-attr]
    assert engine.get("before") is None

    server.start()
    assert engine.flush(60).complete
    rows = stores(engine).l3.get_many([f"{kind}{n}" for kind in "bj" for n in range(25)])
    assert all(rows[f"b{n}"].content == bytes([n + 25]) * 100 for n in range(25))
    assert all(json.loads(rows[f"j{n}"].content) == {"n": n + 25} for n in range(25))
    cold(engine)
    assert engine.get("before") is None
    assert all(engine.might_exist(id) for id in rows)


def test_s06_sql_absent_at_start_queues_and_archives_when_it_appears(
    start: Start, sql: tuple[str, Any]
) -> None:
    url, server = sql
    server.kill()
    engine = start(url)
    for n in range(20):
        engine.submit(f"i{n}", b"%d" % n)
    assert engine.get("i7").content == b"7"  # type: ignore[union-attr]
    health = engine.health()
    assert not health.ready
    assert "attach failed" in health.tiers["l3"].error
    with pytest.raises(StoreUnavailable):
        engine.get("never")

    server.start()
    assert engine.flush(60).complete
    assert len(stores(engine).l3.get_many([f"i{n}" for n in range(20)])) == 20
    assert engine.get("never") is None


# -- S20: circuits --------------------------------------------------------------------------------


def test_s20_a_dead_archive_is_left_alone_probed_and_taken_back(
    start: Start, sql: tuple[str, Any]
) -> None:
    url, server = sql
    engine = start(
        url, filter="off", l3_circuit_failures_max=3, l3_circuit_open_s=0.4, read_timeout_s=0.5
    )
    engine.submit("a", b"1")
    assert engine.flush(20).complete
    house: Any = engine._house
    breaker = house.l3.guard.breaker
    assert breaker.state.value == "closed"

    server.kill()
    for n in range(10):
        with pytest.raises(StoreUnavailable):
            engine.get(f"unknown{n}")
    assert breaker.state.value != "closed"

    clock = SystemClock()
    quick = []
    for n in range(200):  # while it is open, nobody waits for a timeout
        started = clock.monotonic()
        with pytest.raises(StoreUnavailable) as caught:
            engine.get(f"more{n}")
        if isinstance(caught.value, CircuitOpen):
            assert caught.value.retry_after_s >= 0
            quick.append(clock.monotonic() - started)
    assert len(quick) > 100
    assert sorted(quick)[len(quick) // 2] < 0.01

    server.start()
    until(lambda: breaker.state.value == "closed")
    assert engine.get("unknown0") is None
    cold(engine)
    assert engine.get("a").content == b"1"  # type: ignore[union-attr]
