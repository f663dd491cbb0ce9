"""Scenarios on real servers: Redis before SQLite, MariaDB and PostgreSQL."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sync_engine import (
    CacheTtl,
    CircuitOpen,
    Durability,
    EngineState,
    FlushReason,
    StoreUnavailable,
    SubmitOptions,
    SyncEngine,
    SyncEngineConfig,
    SyncItem,
)
from sync_engine.stores.redis.keys import bucket_of
from sync_engine.testing import SystemClock

pytestmark = [pytest.mark.external, pytest.mark.timeout(120)]

Start = Callable[..., SyncEngine]
FAST = {
    "l2_timeout_s": 0.3,
    "l2_connect_timeout_s": 0.3,
    "l2_circuit_open_s": 0.1,
    "l3_timeout_s": 1.0,
    "l3_connect_timeout_s": 1.0,
    "l3_circuit_open_s": 0.1,
    "delivery_delay_s_max": 0.2,
    "read_timeout_s": 1.0,
}


@pytest.fixture
def start(tmp_path: Path, redis_server: Any) -> Iterator[Start]:
    engines: list[SyncEngine] = []

    def start_(sql_url: str | None = None, **settings: Any) -> SyncEngine:
        chosen = {"data_dir": tmp_path / "data", "redis_url": redis_server.url, **FAST, **settings}
        engines.append(SyncEngine(SyncEngineConfig(sql_url=sql_url, **chosen)).start())
        return engines[-1]

    yield start_
    for engine in engines:
        engine.close(timeout=5)


@pytest.fixture(params=["mariadb", "postgres"])
def sql(request: pytest.FixtureRequest) -> tuple[str, Any]:
    url = request.getfixturevalue("archive_url")(request.param)
    return url, request.getfixturevalue(f"{request.param}_server")


def cold(engine: SyncEngine) -> None:
    house: Any = engine._house
    house.l1.clear()


def stores(engine: SyncEngine) -> Any:
    house: Any = engine._house
    return house.stores


def until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """Wait for something that other threads do."""
    clock = SystemClock()
    deadline = clock.monotonic() + timeout_s
    while not condition():
        assert clock.monotonic() < deadline, "it did not happen in time"
        clock.sleep(0.01)


def value_key(server: Any, change_id: str) -> bytes:
    """Return the key under which Redis holds a value."""
    head = b"se:{%02x}:" % bucket_of(change_id.encode())
    (key,) = [
        key
        for key in server.execute("KEYS", "*")
        if key.startswith(head) and key.endswith(b":" + change_id.encode())
    ]
    return bytes(key)


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


# -- S8: what Redis may hold in our place ---------------------------------------------------------


def test_s08_garbage_and_truncated_values_fall_through_and_are_counted(
    start: Start, any_sql_url: str, redis_server: Any
) -> None:
    engine = start(any_sql_url)
    ids = [f"i{n}" for n in range(8)]
    for id in ids:
        engine.submit(id, b"the value of " + id.encode())
    assert engine.flush(20).complete
    keys = [value_key(redis_server, id) for id in ids]
    stored = redis_server.execute("GET", keys[0])
    redis_server.execute("SET", keys[0], b"garbage")
    redis_server.execute("SET", keys[1], b"")
    redis_server.execute("SET", keys[2], stored[:-3])
    redis_server.execute("SET", keys[3], stored[:25])
    redis_server.execute("SET", keys[4], stored[:-1] + bytes([stored[-1] ^ 1]))
    redis_server.execute("SET", keys[5], stored)  # a whole value, of another id
    redis_server.execute("DEL", keys[6])
    redis_server.execute("LPUSH", keys[6], b"a list")
    cold(engine)

    for id in ids:
        assert engine.get(id).content == b"the value of " + id.encode()  # type: ignore[union-attr]
    cold(engine)
    assert all(engine.get_many(ids))

    counted = engine.stats()["l2"]
    assert counted["corrupt"] + counted["foreign"] >= 5
    for id in ids:
        engine.submit(id, b"written anew")
    assert engine.flush(20).complete
    cold(engine)
    assert all(item.content == b"written anew" for item in engine.get_many(ids))  # type: ignore[union-attr]


# -- S11: delete ----------------------------------------------------------------------------------


def test_s11_a_deleted_item_is_gone_from_every_tier_and_stays_so(
    start: Start, any_sql_url: str, redis_server: Any
) -> None:
    engine = start(any_sql_url)
    engine.submit("a", b"1")
    engine.submit("keep", b"1")
    assert engine.flush(20).complete
    assert engine.delete("a")
    assert not engine.delete("never")
    assert engine.flush(20).complete
    cold(engine)

    status = engine.status("a")
    assert (status.in_l1, status.in_l2, status.in_l3) == (False, False, False)
    engine.close()
    redis_server.flush()
    again = start(any_sql_url)
    assert again.get("a") is None
    assert list(again.ids()) == ["keep"]


# -- S12, S13: states and prefixes ----------------------------------------------------------------


def test_s12_states_agree_in_every_tier(start: Start, any_sql_url: str) -> None:
    engine = start(any_sql_url)
    for n in range(10):
        state = "delta" if n < 5 else "base" if n < 8 else "default"
        engine.submit(SyncItem(f"i{n}", b"v", state=state))
    assert engine.flush(20).complete
    assert [engine.count_by_state(s) for s in ("delta", "base", "default", "Delta")] == [5, 3, 2, 0]

    engine.submit(SyncItem("i9", b"v"), SubmitOptions(state="delta"))
    assert engine.set_state("i5", "delta")
    assert engine.count_by_state("delta") == 7
    assert engine.flush(20).complete
    cold(engine)
    assert [item.id for item in engine.get_by_state("delta")] == [
        *(f"i{n}" for n in range(6)),
        "i9",
    ]
    for store in (stores(engine).l2, stores(engine).l3):
        assert store.get_many(["i5"])["i5"].state == "delta"
    assert engine.delete_by_state("delta") == 7
    assert engine.flush(20).complete
    assert sorted(engine.ids()) == ["i6", "i7", "i8"]


def test_s13_prefixes_are_literal_and_case_exact_in_every_database(
    start: Start, any_sql_url: str
) -> None:
    engine = start(any_sql_url)
    ids = [
        *(f"delta:user.123:{n}" for n in range(3)), "delta:user.456:0", "DELTA:user.123:0",
        "delta:user.123", "a%b", "a_b", "axb", "a[b]", "a\\b", "a*b", "ab ", "ab",
        "\u00e4", "a\u0308",
    ]  # fmt: skip
    for id in ids:
        engine.submit(id, b"v")
    assert engine.flush(20).complete

    for prefix in (
        "delta:user.123:",
        "a%",
        "a_",
        "a[",
        "a\\",
        "a*",
        "ab",
        "ab ",
        "DELTA",
        "\u00e4",
        "a",
    ):
        expected = sorted((id for id in ids if id.startswith(prefix)), key=str.encode)
        assert list(engine.ids(prefix)) == expected, prefix
        assert engine.count_prefix(prefix) == len(expected), prefix
    assert [i.id for i in engine.scan_prefix("delta:", limit=2)] == [
        "delta:user.123",
        "delta:user.123:0",
    ]
    assert engine.delete_prefix("delta:user.123:") == 3
    assert engine.count_prefix("delta:") == 2


# -- S16: routing ---------------------------------------------------------------------------------


def test_s16_one_batch_goes_three_ways_and_a_restart_changes_nothing(
    start: Start, any_sql_url: str
) -> None:
    """Where an item goes is said with the item; nothing has to be registered again."""
    engine = start(any_sql_url)
    engine.pause("l2")
    engine.pause("l3")
    for n in range(5):
        engine.submit(f"session.{n}", b"v", SubmitOptions.cache(CacheTtl.HOUR))
        engine.submit(f"record.{n}", b"v", SubmitOptions.durable())
        engine.submit(f"item.{n}", b"v")
    engine.close(timeout=0)

    engine = start(any_sql_url)
    assert engine.flush(20).complete
    ids = [f"{kind}.{n}" for kind in ("session", "record", "item") for n in range(5)]
    live = {
        name: {
            id.partition(".")[0]
            for id, change in store.get_many(ids).items()
            if change.content is not None
        }
        for name, store in (("l2", stores(engine).l2), ("l3", stores(engine).l3))
    }
    assert live == {"l2": {"session", "item"}, "l3": {"record", "item"}}
    cold(engine)
    assert all(engine.get_many(ids))
    assert engine.count_prefix() == 10
    engine.submit("item.0", b"newer", SubmitOptions.cache(CacheTtl.HOUR))
    assert engine.flush(20).complete
    assert engine.count_prefix() == 9, "what goes to the caches alone now has left the archive"


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


# -- what else may happen -------------------------------------------------------------------------


def test_s26_two_engines_on_one_archive_and_one_redis_settle_on_the_larger_version(
    start: Start, any_sql_url: str, tmp_path: Path
) -> None:
    engines = [
        start(any_sql_url, data_dir=tmp_path / name, lease_ttl_s=0.5) for name in ("one", "two")
    ]
    versions: dict[str, dict[int, bytes]] = {}
    lock = threading.Lock()

    def write(number: int) -> None:
        for n in range(100):
            id, content = f"k{n % 10}", b"%d:%d" % (number, n)
            version = engines[number].submit(id, content).version
            with lock:
                versions.setdefault(id, {})[version] = content

    threads = [threading.Thread(target=write, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for engine in engines:
        assert engine.flush(60).complete

    expected = {id: written[max(written)] for id, written in versions.items()}
    for store in (stores(engines[0]).l2, stores(engines[0]).l3):
        assert {id: row.content for id, row in store.get_many(list(expected)).items()} == expected
    for engine in engines:
        cold(engine)
        assert {id: engine.get(id).content for id in expected} == expected  # type: ignore[union-attr]


def test_s26_an_old_batch_that_arrives_late_changes_nothing(start: Start, any_sql_url: str) -> None:
    """Also where the newer change is a delete: nothing comes back to life."""
    engine = start(any_sql_url)
    for id in ("put", "deleted"):
        engine.submit(id, b"old")
    assert engine.flush(20).complete
    tiers = stores(engine)
    late = list(tiers.l3.get_many(["put", "deleted"]).values())
    engine.submit("put", b"new")
    engine.delete("deleted")
    assert engine.flush(20).complete

    for store in (tiers.l3, tiers.l2):
        store.apply(late)
    cold(engine)

    assert engine.get("put").content == b"new"  # type: ignore[union-attr]
    assert engine.get("deleted") is None


def test_s26_a_flushed_redis_loses_nothing_and_answers_nothing_old(
    start: Start, any_sql_url: str, redis_server: Any
) -> None:
    engine = start(any_sql_url)
    for n in range(50):
        engine.submit(f"i{n}", b"old")
    assert engine.flush(20).complete
    for n in range(0, 50, 2):
        engine.submit(f"i{n}", b"new")
    redis_server.flush()
    cold(engine)

    for n in range(50):
        assert engine.get(f"i{n}").content == (b"old" if n % 2 else b"new")  # type: ignore[union-attr]
    assert engine.flush(20).complete


def test_s26_json_and_look_alikes_come_back_byte_for_byte_from_every_tier(
    start: Start, any_sql_url: str
) -> None:
    engine = start(any_sql_url)
    payloads = {
        "json": b'{ "b": 1.0,\t"a":1e2, "a":2 }\n',
        "zstd": bytes.fromhex("28b52ffd") + b"not really",
        "utf-16": "ü".encode("utf-16"),
        "all": bytes(range(256)),
        "empty": b"",
    }
    for id, content in payloads.items():
        engine.submit(id, content, SubmitOptions(durability=Durability.ARCHIVE))
    assert engine.flush(20).complete
    tiers = stores(engine)

    for found in (tiers.l2.get_many(list(payloads)), tiers.l3.get_many(list(payloads))):
        assert {id: change.content for id, change in found.items()} == payloads
