"""What a user relies on, with no server: the embedded engine through its public face."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sync_engine.config import SyncEngineConfig
from sync_engine.core import failpoints
from sync_engine.core.item import SyncItem
from sync_engine.core.options import CacheTtl, Durability, SubmitOptions
from sync_engine.core.pressure import BackpressureLevel
from sync_engine.core.results import EngineState
from sync_engine.engine import SyncEngine
from sync_engine.errors import (
    Backpressure,
    ConfigError,
    Conflict,
    CorruptData,
    EngineClosed,
    InvalidItem,
    StoreRejected,
    StoreUnavailable,
)
from sync_engine.house import Stores
from sync_engine.testing import FlakyStore, MemoryArchive, MemoryCacheStore, SystemRuntime

Start = Callable[..., SyncEngine]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    engines: list[SyncEngine] = []

    def start_(stores: Stores | None = None, **settings: Any) -> SyncEngine:
        settings.setdefault("data_dir", tmp_path / "data")
        engine = SyncEngine(SyncEngineConfig(**settings), stores=stores).start()
        engines.append(engine)
        return engine

    yield start_
    for engine in engines:
        engine.close(timeout=5)


@pytest.fixture
def engine(start: Start) -> SyncEngine:
    return start()


class Servers:
    """In-memory tiers with switches."""

    def __init__(self) -> None:
        clock = SystemRuntime().clock
        self.archive, self.cache = MemoryArchive(clock=clock), MemoryCacheStore(clock=clock)
        self.l3, self.l2 = FlakyStore(self.archive), FlakyStore(self.cache)
        self.stores = Stores(self.l2, self.l3)


@pytest.fixture
def servers() -> Servers:
    return Servers()


FAST = {
    "l3_circuit_open_s": 0.05,
    "l2_circuit_open_s": 0.05,
    "delivery_delay_s_max": 0.1,
    "read_timeout_s": 0.3,
    "read_delay_s_min": 0.01,
    "read_delay_s_max": 0.02,
}


# -- lifecycle (S1, S9) ---------------------------------------------------------------------------


def test_s01_states_are_visible_and_items_come_back(tmp_path: Path) -> None:
    engine = SyncEngine(SyncEngineConfig(data_dir=tmp_path))
    assert engine.state is EngineState.CREATED

    with engine:
        assert engine.state is EngineState.RUNNING
        for n in range(10):
            engine.submit(SyncItem(f"uk.nhs.patient.{n}", b"%d" % n))
        assert engine.count_prefix("uk.nhs.") == 10
        assert [item.content for item in engine.scan_prefix("uk.")] == [
            b"%d" % n for n in range(10)
        ]

    assert engine.state is EngineState.CLOSED


def test_s09_double_start_double_close_and_use_after_close(tmp_path: Path) -> None:
    engine = SyncEngine(SyncEngineConfig(data_dir=tmp_path))
    with pytest.raises(EngineClosed):
        engine.get("a")
    assert engine.start() is engine.start()
    engine.submit("a", b"1")
    assert engine.close().complete
    assert engine.close().complete
    for call in (lambda: engine.get("a"), lambda: engine.submit("a", b"1"), engine.start):
        with pytest.raises(EngineClosed):
            call()


def test_s09_closing_before_starting_is_fine(tmp_path: Path) -> None:
    engine = SyncEngine(SyncEngineConfig(data_dir=tmp_path))
    engine.close()
    assert engine.state is EngineState.CLOSED


def test_s09_rapid_cycles_leak_no_threads_and_no_files(tmp_path: Path) -> None:
    def cycle() -> None:
        with SyncEngine(SyncEngineConfig(data_dir=tmp_path)) as engine:
            engine.submit("a", b"1")

    cycle()
    files, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    for _ in range(5):
        cycle()

    assert len(os.listdir("/proc/self/fd")) <= files
    assert threading.active_count() <= threads


def test_the_last_pending_item_survives_close(start: Start, tmp_path: Path) -> None:
    """The documented system takes the last batch and drops it."""
    engine = start(l3_batch_age_ms=60_000)
    engine.submit("last", b"batch", SubmitOptions(durability=Durability.MEMORY))

    report = engine.close()

    assert report.complete
    again = start()
    assert again.get("last") == SyncItem("last", b"batch", version=again.get("last").version)  # type: ignore[union-attr]
    assert again.status("last").in_l3


def test_two_processes_on_one_directory_are_refused_with_the_way_out(start: Start) -> None:
    start()
    with pytest.raises(ConfigError, match="engine_name"):
        start()


def test_a_child_of_a_fork_has_to_open_its_own(engine: SyncEngine) -> None:
    engine.submit("a", b"1")
    pid = os.fork()
    if pid == 0:
        try:
            engine.get("b")
        except EngineClosed:
            os._exit(7)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    assert engine.get("a") is not None


# -- writing and reading --------------------------------------------------------------------------


def test_newest_write_wins_and_is_read_at_once(engine: SyncEngine) -> None:
    for n in range(100):
        engine.submit("a", b"%d" % n)
        assert engine.get("a").content == b"%d" % n  # type: ignore[union-attr]


@pytest.mark.parametrize("durability", list(Durability))
def test_every_durability_acknowledges_and_archives(
    engine: SyncEngine, durability: Durability
) -> None:
    receipt = engine.submit("a", b"1", SubmitOptions(durability=durability))

    receipt.wait("archive", timeout=10)

    assert engine.status("a").in_l3
    assert engine.status("a").pending == ()


def test_exact_bytes_come_back_whatever_they_look_like(engine: SyncEngine) -> None:
    """Nothing is re-serialised, decompressed or sniffed."""
    payloads = {
        "json": b'{"b": 1.0, "a":1,"a":2 }\n',
        "zstd": bytes.fromhex("28b52ffd") + b"not really",
        "gzip": b"\x1f\x8b\x08" + bytes(20),
        "empty": b"",
        "nul": b"\0" * 1000,
        "big": random.Random(1).randbytes(1 << 20),
    }
    for id, content in payloads.items():
        engine.submit(id, content)
    assert engine.flush().complete
    engine._house.l1.clear()  # type: ignore[union-attr]

    for id, content in payloads.items():
        assert engine.get(id).content == content  # type: ignore[union-attr]


HOSTILE_IDS = [
    "a", "A", "a ", " a", "a\t", "ä", "a\u0308", "😀", "😁", "%", "_", "*", "[", "\\", "a%b", "a_b",
    "a*b", "x" * 512, "ü" * 256, "'; DROP TABLE sync_items; --", "a.b", "a.b.c", "../x",
    ".",    "cdc", "merkle:hash:", "state:x", "se:epoch", "\r\n", "\u202e", "{tag}", "a:b",
]  # fmt: skip


def test_hostile_ids_are_kept_apart_and_listed_bytewise(engine: SyncEngine) -> None:
    for n, id in enumerate(HOSTILE_IDS):
        engine.submit(id, b"%d" % n)
    assert engine.flush().complete
    engine._house.l1.clear()  # type: ignore[union-attr]

    for n, id in enumerate(HOSTILE_IDS):
        assert engine.get(id).content == b"%d" % n  # type: ignore[union-attr]
    assert list(engine.ids()) == sorted(HOSTILE_IDS, key=lambda id: id.encode())


@pytest.mark.parametrize(
    "prefix", ["%", "_", "*", "[", "\\", "a%", "a_", "A", "a ", "ä", "\U0010ffff"]
)
def test_s13_prefixes_are_literal(engine: SyncEngine, prefix: str) -> None:
    for id in HOSTILE_IDS:
        engine.submit(id, b"v")
    expected = sorted(
        (id for id in HOSTILE_IDS if id.startswith(prefix)), key=lambda id: id.encode()
    )

    assert list(engine.ids(prefix)) == expected  # pending
    engine.flush()
    assert list(engine.ids(prefix)) == expected  # archived
    assert engine.count_prefix(prefix) == len(expected)


@pytest.mark.parametrize(
    "call",
    [
        lambda e: e.submit("", b""),
        lambda e: e.submit("x" * 513, b""),
        lambda e: e.submit("ü" * 257, b""),
        lambda e: e.submit("a\0b", b""),
        lambda e: e.submit("\ud800", b""),
        lambda e: e.submit(b"bytes", b""),
        lambda e: e.submit(None, b""),
        lambda e: e.submit(1, b""),
        lambda e: e.submit("a", "text"),
        lambda e: e.submit("a", bytearray(b"x")),
        lambda e: e.submit("a", None),
        lambda e: e.submit("a", b"x" * 1001),
        lambda e: e.submit(SyncItem("a", b"", state="")),
        lambda e: e.submit(SyncItem("a", b"", state="s" * 65)),
        lambda e: e.get(""),
        lambda e: e.get(b"a"),
        lambda e: e.get_many(["a", "\0"]),
        lambda e: e.delete("\ud800"),
        lambda e: e.delete_prefix(""),
        lambda e: SubmitOptions(l2=False, l3=False),
        lambda e: SubmitOptions(ttl=0),
        lambda e: SubmitOptions(ttl=-1),
        lambda e: SubmitOptions(ttl=True),
        lambda e: SubmitOptions(ttl="10"),
        lambda e: SubmitOptions(ttl=float("nan")),
        lambda e: SubmitOptions(if_version=-1),
        lambda e: SubmitOptions(durability="never"),
        lambda e: SyncItem.from_json("a", float("nan")),
    ],
)
def test_bad_input_is_refused_before_anything_is_accepted(start: Start, call: Any) -> None:
    engine = start(max_payload_bytes=1000)

    with pytest.raises(InvalidItem):
        call(engine)

    assert engine.stats()["log"]["head"] == 0


def test_a_bad_item_in_a_batch_is_refused_alone(engine: SyncEngine) -> None:
    items = [SyncItem("a", b"1"), SyncItem("", b"2"), SyncItem("c", b"3")]

    result = engine.submit_many(items)

    assert (result.total, result.accepted, list(result.errors)) == (3, 2, [1])
    with pytest.raises(InvalidItem):
        result.raise_for_errors()
    assert [item and item.content for item in engine.get_many(["a", "c", "x", "a"])] == [
        b"1",
        b"3",
        None,
        b"1",
    ]


def test_compare_and_set(engine: SyncEngine) -> None:
    first = engine.submit("a", b"1", SubmitOptions(if_absent=True))
    with pytest.raises(Conflict):
        engine.submit("a", b"2", SubmitOptions(if_absent=True))
    second = engine.submit("a", b"2", SubmitOptions(if_version=first.version))
    with pytest.raises(Conflict) as caught:
        engine.submit("a", b"3", SubmitOptions(if_version=first.version))
    assert (caught.value.expected, caught.value.actual) == (first.version, second.version)

    engine.flush()
    engine._house.l1.clear()  # type: ignore[union-attr]
    engine.submit("a", b"4", SubmitOptions(if_version=second.version))


def test_updates_of_many_threads_lose_nothing(engine: SyncEngine) -> None:
    def work() -> None:
        for _ in range(50):
            engine.update("n", lambda item: b"%d" % (int(item.content if item else b"0") + 1))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert engine.get("n").content == b"200"  # type: ignore[union-attr]


def test_s11_delete_is_gone_everywhere_and_unknown_ids_are_told(
    start: Start, servers: Servers
) -> None:
    engine = start(servers.stores)
    engine.submit("a", b"1")
    engine.flush()

    assert engine.delete("a")
    assert not engine.delete("never")
    assert engine.get("a") is None
    engine.flush()
    engine._house.l1.clear()  # type: ignore[union-attr]

    assert engine.get("a") is None
    status = engine.status("a")
    assert (status.in_l1, status.in_l2, status.in_l3) == (False, False, False)


def test_delete_wins_over_a_pending_put(start: Start, servers: Servers) -> None:
    servers.l3.down = True
    engine = start(servers.stores, **FAST)
    engine.submit("a", b"1")
    engine.delete("a")
    servers.l3.down = False
    assert engine.flush(10).complete

    assert engine.get("a") is None
    assert servers.archive.get_many(["a"])["a"].content is None


def test_s12_states_are_queried_counted_set_and_deleted(engine: SyncEngine) -> None:
    for n in range(10):
        state = "delta" if n < 5 else "base" if n < 8 else "default"
        engine.submit(SyncItem(f"i{n}", b"v", state=state))
    engine.flush()
    engine.submit(SyncItem("i9", b"v"), SubmitOptions(state="delta"))  # pending, by options

    assert engine.count_by_state("delta") == 6
    assert [item.id for item in engine.get_by_state("base")] == ["i5", "i6", "i7"]
    assert engine.set_state("i5", "delta")
    assert not engine.set_state("never", "delta")
    assert engine.count_by_state("base") == 2
    assert engine.get("i5").content == b"v"  # type: ignore[union-attr]
    assert engine.delete_by_state("delta") == 7
    assert engine.count_prefix() == 3
    engine.flush()
    assert engine.count_by_state("delta") == 0


def test_s13_delete_prefix_takes_neither_more_nor_less(engine: SyncEngine) -> None:
    ids = ["delta:user.123:a", "delta:user.123:b", "delta:user.456:a", "DELTA:user.123:a", "delta"]
    for id in ids:
        engine.submit(id, b"v")
    engine.flush()

    assert engine.delete_prefix("delta:user.123:") == 2
    assert sorted(engine.ids()) == sorted(ids[2:])


def test_ttl_is_one_deadline_in_every_tier(start: Start, servers: Servers) -> None:
    engine = start(servers.stores)
    engine.submit("a", b"1", SubmitOptions(ttl=2))
    assert engine.get("a").expires_at_ms > 0  # type: ignore[union-attr]
    engine.flush()
    assert engine.get("a") is not None

    SystemRuntime().clock.sleep(2.05)

    assert engine.get("a") is None
    assert engine.get_many(["a"]) == [None]
    engine._house.l1.clear()  # type: ignore[union-attr]
    assert engine.get("a") is None
    assert list(engine.ids()) == []


def test_cache_items_shadow_archived_ones_for_good(start: Start, servers: Servers) -> None:
    """When the time to live of the cached value runs out, the old value must not come back."""
    engine = start(servers.stores)
    engine.submit("a", b"archived")
    engine.flush()
    engine.submit("a", b"cached", SubmitOptions.cache(CacheTtl.MINUTE))
    engine.flush()
    engine._house.l1.clear()  # type: ignore[union-attr]
    assert engine.get("a").content == b"cached"  # type: ignore[union-attr]

    servers.cache.forget("a")
    engine._house.l1.clear()  # type: ignore[union-attr]
    assert engine.get("a") is None


def test_durable_items_invalidate_what_l2_had(start: Start, servers: Servers) -> None:
    engine = start(servers.stores)
    engine.submit("a", b"old")
    engine.flush()
    engine.submit("a", b"new", SubmitOptions.durable())
    engine.flush()
    engine._house.l1.clear()  # type: ignore[union-attr]

    assert engine.get("a").content == b"new"  # type: ignore[union-attr]


def test_verified_reads_and_currency(engine: SyncEngine) -> None:
    engine.submit("a", b"1")
    digest = engine.get("a").content_hash  # type: ignore[union-attr]

    assert engine.is_current("a", digest)
    assert engine.get_verified("a", digest) is not None
    with pytest.raises(CorruptData):
        engine.get_verified("a", "0" * 64)
    assert not engine.is_current("a", "0" * 64)


def test_json_items(engine: SyncEngine) -> None:
    engine.submit(SyncItem.from_json("s", {"user": "alice", "n": [1, None]}))
    engine.flush()

    assert engine.get("s").json() == {"user": "alice", "n": [1, None]}  # type: ignore[union-attr]


def test_thousand_misses_make_one_load(engine: SyncEngine) -> None:
    calls = []
    gate = threading.Event()

    def loader() -> bytes:
        calls.append(1)
        gate.wait(10)
        return b"loaded"

    results: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: results.append(engine.get_or_load("a", loader, 60).content))  # type: ignore[union-attr]
        for _ in range(32)
    ]
    for thread in threads:
        thread.start()
    gate.set()
    for thread in threads:
        thread.join()

    assert len(calls) == 1
    assert results == [b"loaded"] * 32


def test_cached_functions(engine: SyncEngine) -> None:
    calls = []

    @engine.cached(key="square:{}", ttl=60)
    def square(n: int) -> bytes:
        calls.append(n)
        return b"%d" % (n * n)

    assert [square(3), square(3), square(4)] == [b"9", b"9", b"16"]
    assert calls == [3, 4]


# -- outages (S3 to S7, S10, S16, S18, S19) -------------------------------------------------------


def test_s04_l2_down_hurts_nobody_and_converges(start: Start, servers: Servers) -> None:
    engine = start(servers.stores, **FAST)
    servers.l2.down = True
    for n in range(50):
        engine.submit(f"i{n}", b"%d" % n)
    assert all(engine.get(f"i{n}").content == b"%d" % n for n in range(50))  # type: ignore[union-attr]

    servers.l2.down = False
    assert engine.flush(10).complete
    assert len(servers.cache.get_many([f"i{n}" for n in range(50)])) == 50


def test_s05_s06_l3_down_at_start_queues_and_drains_newest_wins(
    start: Start, servers: Servers
) -> None:
    servers.l3.down = True
    engine = start(servers.stores, **FAST)
    for n in range(30):
        engine.submit(f"i{n % 10}", b"%d" % n)
    assert engine.get("i5").content == b"25"  # type: ignore[union-attr]
    assert not engine.health().ready
    with pytest.raises(StoreUnavailable):
        engine.submit("x", b"1", SubmitOptions(durability=Durability.ARCHIVE, timeout=0.2))

    servers.l3.down = False
    assert engine.flush(10).complete
    rows = servers.archive.get_many([f"i{n}" for n in range(10)])
    assert {row.content for row in rows.values()} == {b"%d" % n for n in range(20, 30)}
    assert engine.health().ready


def test_an_error_is_never_an_absence(start: Start, servers: Servers) -> None:
    engine = start(servers.stores, filter="off", **FAST)
    engine.submit("a", b"1")
    engine.flush()
    engine._house.l1.clear()  # type: ignore[union-attr]
    servers.cache.forget("a")
    servers.l3.down = True

    for call in (
        lambda: engine.get("a"),
        lambda: engine.get_many(["a"]),
        lambda: engine.contains("never"),
        lambda: list(engine.scan_prefix("a")),
        lambda: engine.count_prefix("a"),
        lambda: engine.get_or_load("a", lambda: b"overwrite"),
    ):
        with pytest.raises(StoreUnavailable):
            call()


def test_one_poison_item_goes_to_the_dead_letters_and_its_neighbours_flow(
    start: Start, servers: Servers
) -> None:
    engine = start(servers.stores, **FAST)
    servers.l3.reject = {"poison"}
    engine.pause("l3")
    receipts = {
        id: engine.submit(id, b"v")
        for id in [*(f"n{i}" for i in range(20)), "poison", *(f"m{i}" for i in range(20))]
    }
    engine.resume("l3")
    assert engine.flush(10).dead_letters == 1

    assert len(servers.archive.get_many(list(receipts))) == 40
    assert engine.get("poison").content == b"v"  # type: ignore[union-attr]
    with pytest.raises(StoreRejected):
        receipts["poison"].wait("archive", timeout=5)
    (letter,) = engine.dead_letters()
    assert letter.change.id == "poison"

    servers.l3.reject = set()
    assert engine.requeue_dead_letters() == 1
    engine.flush(10)
    assert servers.archive.get_many(["poison"])["poison"].content == b"v"
    assert engine.dead_letters() == []


def test_s10_tiny_caches_are_bounded_and_never_wrong(start: Start, servers: Servers) -> None:
    engine = start(servers.stores, l1_bytes_max=10_000, overlay_bytes_max=5_000)
    for n in range(500):
        engine.submit(f"i{n}", b"%d" % n * 30)

    for n in range(500):
        assert engine.get(f"i{n}").content == b"%d" % n * 30  # type: ignore[union-attr]
    assert engine._house.l1.bytes <= 10_000  # type: ignore[union-attr]


def test_s18_back_pressure_is_explicit_and_deletes_and_reads_go_on(
    start: Start, servers: Servers
) -> None:
    servers.l3.down = True
    engine = start(servers.stores, pending_items_max=100, **FAST)
    with pytest.raises(Backpressure) as caught:
        for n in range(101):
            engine.submit(f"i{n}", b"v", SubmitOptions(timeout=0.001))
    assert caught.value.retry_after_s > 0
    assert engine.backpressure() is BackpressureLevel.CRITICAL
    assert engine.get("i5").content == b"v"  # type: ignore[union-attr]
    assert engine.delete("i5")

    servers.l3.down = False
    assert engine.flush(10).complete
    engine.submit("again", b"v")
    assert engine.backpressure() is BackpressureLevel.NORMAL


def test_s19_health_names_what_is_amiss(start: Start, servers: Servers, tmp_path: Path) -> None:
    assert not SyncEngine(SyncEngineConfig(data_dir=tmp_path / "n")).health().live
    engine = start(servers.stores, **FAST)
    health = engine.health()
    assert health.ready
    assert not health.degraded
    assert health.tiers["l3"].latency_s is not None

    servers.l2.down = True
    degraded = engine.health()
    assert degraded.ready
    assert any("l2" in sentence for sentence in degraded.degraded)


def test_l2_that_falls_too_far_behind_is_cut_off_and_its_old_values_never_read(
    start: Start, servers: Servers
) -> None:
    engine = start(servers.stores, l2_lag_items_max=20, **FAST)
    engine.submit("a", b"old")
    engine.flush()
    servers.l2.down = True
    engine.submit("a", b"new")
    for n in range(50):
        engine.submit(f"i{n}", b"v")
    engine.submit("only-cached", b"kept", SubmitOptions.cache(60))
    assert set(engine.flush(0.5).left) <= {"l2"}

    engine._house.l1.clear()  # type: ignore[union-attr]
    servers.l2.down = False
    assert engine.get("a").content == b"new"  # type: ignore[union-attr]
    assert engine.flush(10).complete
    engine._house.l1.clear()  # type: ignore[union-attr]
    assert engine.get("a").content == b"new"  # type: ignore[union-attr]
    assert engine.get("only-cached").content == b"kept"  # type: ignore[union-attr]


def test_detach_and_attach_while_running(start: Start, servers: Servers) -> None:
    engine = start(servers.stores, **FAST)
    engine.detach("l2")
    engine.submit("a", b"1")
    assert engine.get("a").content == b"1"  # type: ignore[union-attr]
    assert "l2" in engine.flush(0.3).left

    engine.attach("l2")
    assert engine.flush(10).complete
    assert servers.cache.get_many(["a"])["a"].content == b"1"


def test_orphans_of_dead_processes_are_adopted(start: Start, tmp_path: Path) -> None:
    servers = Servers()
    servers.l3.down = True
    dead = SyncEngine(
        SyncEngineConfig(data_dir=tmp_path / "data", engine_name="dead", **FAST),
        stores=servers.stores,
    ).start()
    dead.submit("left", b"behind")
    house: Any = dead._house
    house.runtime.close(5)
    house.log._file.close()
    house.owner.release()

    servers.l3.down = False
    engine = start(servers.stores, engine_name="heir")

    assert engine.get("left").content == b"behind"  # type: ignore[union-attr]
    assert engine.flush(10).complete
    assert sorted(p.name for p in (tmp_path / "data").glob("*.db")) == ["heir.log.db"]


def test_s07_the_filter_spares_the_archive_and_survives_a_restart(
    start: Start, servers: Servers
) -> None:
    engine = start(servers.stores)
    engine.submit("a", b"1")
    engine.flush()
    assert engine.definitely_missing("never")
    assert engine.might_exist("a")
    engine.close()

    again = start(servers.stores)
    assert again.stats()["filter"]["trusted"]
    assert again.get("a").content == b"1"  # type: ignore[union-attr]
    asked = servers.l3.calls["get_many"]
    for n in range(50):
        assert again.get(f"never{n}") is None
    assert servers.l3.calls["get_many"] - asked <= 2


def test_a_second_engine_on_the_archive_makes_the_first_say_maybe(
    start: Start, servers: Servers
) -> None:
    first = start(servers.stores, engine_name="first", lease_ttl_s=0.3)
    assert first.definitely_missing("b")
    theirs = Stores(servers.l2, servers.archive.client())
    second = start(theirs, engine_name="second", lease_ttl_s=0.3)
    second.submit("b", b"theirs")
    assert second.flush(20).complete

    assert first.get("b").content == b"theirs"  # type: ignore[union-attr]
    assert not first.definitely_missing("b")


@pytest.mark.parametrize(
    "point",
    [
        "writer.filtered",
        "log.append",
        "log.committed",
        "writer.committed",
        "log.save",
        "l3.delivered",
        "log.advance",
    ],
)
def test_a_failure_at_any_failpoint_loses_nothing_acknowledged(
    start: Start, servers: Servers, point: str
) -> None:
    engine = start(servers.stores, **FAST)
    engine.submit("before", b"1")
    hits = []

    def fail() -> None:
        if not hits:
            hits.append(1)
            raise StoreUnavailable("test", point)

    acked = {}
    with failpoints.during(point, fail):
        for n in range(20):
            try:
                acked[f"i{n}"] = engine.submit(f"i{n}", b"%d" % n).version
            except StoreUnavailable:
                continue
        engine.flush(5)

    assert engine.flush(10).complete
    for id, version in {**acked}.items():
        assert engine.get(id).version >= version  # type: ignore[union-attr]
    rows = servers.archive.get_many(["before", *acked])
    assert set(rows) == {"before", *acked}


def test_cache_items_without_a_cache_tier_keep_their_promise(start: Start) -> None:
    """What was acknowledged in the log is there after a restart, Redis or not."""
    engine = start()
    engine.submit("a", b"1", SubmitOptions.cache(60))
    engine.close()

    assert start().get("a").content == b"1"  # type: ignore[union-attr]


def test_a_full_disk_ends_acknowledgements_at_memory_durability_too(
    start: Start, servers: Servers
) -> None:
    servers.l3.down = True
    engine = start(servers.stores, **FAST)
    options = SubmitOptions(durability=Durability.MEMORY, timeout=0.01)

    def full() -> None:
        raise StoreUnavailable("log", "append", "database or disk is full")

    accepted = 0
    with failpoints.during("log.append", full), pytest.raises(Backpressure):
        while accepted < 1_000_000:
            engine.submit(f"i{accepted % 100}", b"%d" % accepted, options)
            accepted += 1
    assert engine.get(f"i{(accepted - 1) % 100}").content == b"%d" % (accepted - 1)  # type: ignore[union-attr]

    servers.l3.down = False
    assert engine.flush(20).complete


def test_a_value_that_l2_refuses_leaves_no_older_one_behind(start: Start, servers: Servers) -> None:
    engine = start(servers.stores, **FAST)
    engine.submit("a", b"old")
    assert engine.flush(10).complete
    refuse = servers.l2.store.apply
    servers.l2.store.apply = lambda changes: (  # type: ignore[method-assign]
        refuse(changes) if all(c.content is None for c in changes) else _reject()
    )

    engine.submit("a", b"too large for L2")
    report = engine.flush(10)
    engine._house.l1.clear()  # type: ignore[union-attr]

    assert (report.complete, report.dead_letters) == (True, 0)
    assert engine.get("a").content == b"too large for L2"  # type: ignore[union-attr]


def test_an_l2_that_refuses_everything_lags_and_nothing_old_is_read(
    start: Start, servers: Servers
) -> None:
    """As with a password that was changed while we run."""
    engine = start(servers.stores, **FAST)
    engine.submit("a", b"old")
    assert engine.flush(10).complete
    servers.l2.store.apply = lambda changes: _reject()  # type: ignore[method-assign]

    engine.submit("a", b"new")
    assert set(engine.flush(0.5).left) == {"l2"}
    engine._house.l1.clear()  # type: ignore[union-attr]

    assert engine.get("a").content == b"new"  # type: ignore[union-attr]
    assert engine.dead_letters() == []


def test_an_archive_that_answers_and_takes_nothing_fills_no_dead_letters(
    start: Start, servers: Servers
) -> None:
    """A dropped table is not the items' fault; one item that alone cannot be taken is."""
    engine = start(servers.stores, **FAST, l3_circuit_failures_max=1000)
    broken = {"everything": True}
    apply = servers.l3.store.apply

    def picky(changes: Any) -> None:
        if broken["everything"] or any(c.id == "odd" for c in changes):
            raise StoreUnavailable("l3", "apply", "no such table")
        apply(changes)

    servers.l3.store.apply = picky  # type: ignore[method-assign]
    for id in ("odd", "b", "c"):
        engine.submit(id, b"v")
    engine.flush(3)
    assert engine.dead_letters() == []

    broken["everything"] = False
    assert engine.flush(20).complete
    assert [letter.change.id for letter in engine.dead_letters()] == ["odd"]
    assert set(servers.archive.get_many(["b", "c"])) == {"b", "c"}


def _reject() -> None:
    raise StoreRejected("l2", "apply", "a value is larger than the server takes")
