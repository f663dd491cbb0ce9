"""Scenarios on real servers: what each tier holds, whoever wrote it and whatever it was."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from sync_engine import (
    CacheTtl,
    Durability,
    SubmitOptions,
    SyncItem,
)
from tests.scenarios.on_servers.support import Start, cold, stores, value_key

pytestmark = [pytest.mark.external, pytest.mark.timeout(120)]


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
