"""What a user relies on, with no server: the embedded engine through its public face."""

from __future__ import annotations

import os
import random
import threading
from pathlib import Path
from typing import Any

import pytest

from sync_engine.config import SyncEngineConfig
from sync_engine.core.item import SyncItem
from sync_engine.core.options import CacheTtl, Durability, SubmitOptions
from sync_engine.core.results import EngineState
from sync_engine.engine import SyncEngine
from sync_engine.errors import (
    ConfigError,
    Conflict,
    CorruptData,
    EngineClosed,
    InvalidItem,
)
from sync_engine.testing import SystemRuntime
from tests.scenarios.support_embedded import FAST, Servers, Start

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
