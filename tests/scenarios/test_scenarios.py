"""Scenarios that need no server, through the public face."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sync_engine import (
    Backpressure,
    BackpressureLevel,
    CircuitConfig,
    CircuitOpen,
    RetryConfig,
    StoreRejected,
    StoreUnavailable,
    SubmitOptions,
    SyncEngine,
    SyncEngineConfig,
    SyncItem,
)
from sync_engine.flow.guard import Guard
from sync_engine.house import Stores
from sync_engine.testing import FlakyStore, ManualRuntime, MemoryArchive, SystemClock

Start = Callable[..., SyncEngine]


class Archive:
    """An archive with switches, and several clients."""

    def __init__(self) -> None:
        self.rows = MemoryArchive(clock=SystemClock())

    def client(self) -> FlakyStore:
        return FlakyStore(self.rows.client())


@pytest.fixture
def archive() -> Archive:
    return Archive()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    engines: list[SyncEngine] = []

    def start_(l3: Any = None, **chosen: Any) -> SyncEngine:
        stores = None if l3 is None else Stores(None, l3)
        fast = {
            "data_dir": tmp_path / "data",
            "l3_circuit_open_s": 0.05,
            "delivery_delay_s_max": 0.1,
            "read_timeout_s": 0.3,
            "lease_ttl_s": 0.5,
        }
        engines.append(SyncEngine(SyncEngineConfig(**{**fast, **chosen}), stores=stores).start())
        return engines[-1]

    yield start_
    for engine in engines:
        engine.close(timeout=5)


def until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """Wait for something that other threads do."""
    clock = SystemClock()
    deadline = clock.monotonic() + timeout_s
    while not condition():
        assert clock.monotonic() < deadline, "it did not happen in time"
        clock.sleep(0.01)


# -- S1: lifecycle --------------------------------------------------------------------------------


def test_s01_who_watches_sees_it_start_run_drain_and_close(tmp_path: Path) -> None:
    """A store asks at each of its calls; what waits is delivered while the engine drains."""
    store = FlakyStore(MemoryArchive(clock=SystemClock()))
    config = SyncEngineConfig(data_dir=tmp_path, l3_batch_age_ms=60_000, filter="off")
    engine = SyncEngine(config, stores=Stores(None, store))
    seen = [engine.state]

    def watch(operation: str) -> None:
        if operation in {"attach", "get_many", "apply"} and seen[-1] is not engine.state:
            seen.append(engine.state)

    store.on_call = watch
    engine.start()
    engine.get("never")
    engine.submit("a", b"1")
    assert engine.close().complete
    seen.append(engine.state)

    assert [state.value for state in seen] == [
        "created",
        "starting",
        "running",
        "draining",
        "closed",
    ]


# -- S7: the existence filter ---------------------------------------------------------------------


def test_s07_the_filter_knows_an_id_before_anybody_else_does(
    start: Start, archive: Archive
) -> None:
    """Also one whose delivery failed: it is a superset of archive, log and what is under way."""
    l3 = archive.client()
    engine = start(l3)
    until(lambda: engine.definitely_missing("a"))
    l3.down = True

    engine.submit("a", b"1")
    assert not engine.flush(0.2).complete
    assert engine.might_exist("a")

    l3.down = False
    assert engine.flush(10).complete
    assert engine.might_exist("a")


def test_s07_a_kept_filter_is_made_anew_where_somebody_else_wrote_meanwhile(
    start: Start, archive: Archive, tmp_path: Path
) -> None:
    engine = start(archive.client())
    engine.submit("mine", b"1")
    assert engine.flush(10).complete
    until(lambda: engine.definitely_missing("theirs"))
    engine.close()
    other = start(archive.client(), data_dir=tmp_path / "other")
    other.submit("theirs", b"2")
    assert other.flush(10).complete
    other.close()

    again = start(archive.client())
    assert not again.definitely_missing("theirs")
    until(lambda: again.stats()["filter"]["trusted"] and again.definitely_missing("nobody's"))
    assert again.stats()["filter"]["snapshots_refused"] == 1
    assert again.get("theirs").content == b"2"  # type: ignore[union-attr]
    assert again.might_exist("mine")


# -- S10: a small cache ---------------------------------------------------------------------------


def test_s10_ten_kilobytes_of_l1_are_never_exceeded_while_500_items_pass(start: Start) -> None:
    engine = start(l1_bytes_max=10_000, l1_policy="tan-curve")
    house: Any = engine._house
    most = 0
    for n in range(500):
        engine.submit(f"i{n}", b"%d" % n * 20)
        most = max(most, house.l1.bytes)
        assert engine.get(f"i{n // 2}").content == b"%d" % (n // 2) * 20  # type: ignore[union-attr]
    engine.flush()
    engine.submit("larger than all of it", bytes(20_000))
    engine.flush()

    assert len(engine.get("larger than all of it").content) == 20_000  # type: ignore[union-attr]
    assert max(most, house.l1.bytes) <= 10_000


# -- S18: the log's bounds ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bounds",
    [{"pending_items_max": 200}, {"pending_bytes_max": 200 * 1128}],
    ids=["items", "bytes"],
)
def test_s18_the_log_warns_then_refuses_survives_a_restart_and_serves_again(
    start: Start, archive: Archive, bounds: dict[str, int]
) -> None:
    l3 = archive.client()
    l3.down = True
    engine = start(l3, **bounds)
    levels: list[BackpressureLevel] = []
    accepted = 0
    with pytest.raises(Backpressure):
        for n in range(300):
            engine.submit(f"i{n}", bytes(1000), SubmitOptions(timeout=0.001))
            accepted += 1
            if not levels or levels[-1] is not engine.backpressure():
                levels.append(engine.backpressure())
    assert levels == sorted(levels)
    assert BackpressureLevel.WARN in levels
    assert accepted <= 200
    engine.close(timeout=0)

    l3 = archive.client()
    l3.down = True
    again = start(l3, **bounds)
    assert again.health().pending_items == accepted
    assert again.get("i0") is not None
    l3.down = False
    assert again.flush(20).complete
    again.submit("after", b"v")
    assert again.flush(20).complete
    assert archive.rows.count() == accepted + 1
    assert again.backpressure() is BackpressureLevel.NORMAL


# -- S19: health ----------------------------------------------------------------------------------


def test_s19_three_failures_flip_the_circuit_and_one_success_resets_the_count(
    start: Start, archive: Archive
) -> None:
    l3 = archive.client()
    engine = start(l3, filter="off", l3_circuit_failures_max=3, read_attempts_max=1)
    until(lambda: engine.health().ready)
    assert engine.health().tiers["l3"].latency_s is not None
    engine.pause("l3")

    for _ in range(5):  # two failures, one success: never three in a row
        for _ in range(2):
            l3.fail("get_many")
            with pytest.raises(StoreUnavailable):
                engine.get("unknown")
        assert engine.get("unknown") is None
    assert engine.health().tiers["l3"].circuit == "closed"

    l3.down = True
    for _ in range(3):
        with pytest.raises(StoreUnavailable):
            engine.get("unknown")
    health = engine.health()
    assert health.tiers["l3"].circuit == "open"
    assert not health.ready

    l3.down = False
    until(lambda: engine.health().tiers["l3"].circuit != "open" or _asked(engine))
    until(lambda: _asked(engine) and engine.health().ready)


def _asked(engine: SyncEngine) -> bool:
    try:
        engine.get("unknown")
    except StoreUnavailable:
        return False
    return True


# -- S20: retries and breakers --------------------------------------------------------------------


class Calls:
    """Fails so many times, then answers."""

    def __init__(self, failures: int, error: Exception | None = None) -> None:
        self.failures = failures
        self.error = error or StoreUnavailable("l3", "get")
        self.count = 0

    def __call__(self) -> str:
        self.count += 1
        if self.count <= self.failures:
            raise self.error
        return "answer"


def guard(runtime: ManualRuntime, **retry: Any) -> Guard:
    retrying = RetryConfig(**{"attempts_max": 4, "delay_s_min": 0.1, "delay_s_max": 1.0, **retry})
    circuit = CircuitConfig(failures_max=5, open_s=10, successes_min=2)
    return Guard("l3", runtime, circuit=circuit, retry=retrying)


@pytest.mark.parametrize("failures", [0, 1, 3])
def test_s20_a_call_succeeds_at_the_first_or_the_nth_try(failures: int) -> None:
    runtime, calls = ManualRuntime(), Calls(failures)

    assert guard(runtime).call_with_retry("get", calls) == "answer"

    assert calls.count == failures + 1


def test_s20_tries_are_exhausted_and_the_last_error_is_told() -> None:
    runtime, calls = ManualRuntime(), Calls(99)

    with pytest.raises(StoreUnavailable) as caught:
        guard(runtime).call_with_retry("get", calls)

    assert caught.value is calls.error
    assert calls.count == 4


def test_s20_pauses_grow_and_are_capped() -> None:
    config = RetryConfig(attempts_max=0, delay_s_min=0.1, delay_s_max=1.0)

    longest = [config.delay_s(attempt, 1.0) for attempt in range(1, 200)]

    assert longest == sorted(longest)
    assert max(longest) <= 1.0
    assert min(config.delay_s(attempt, 0.0) for attempt in range(1, 200)) >= 0.0
    assert longest[0] < longest[3]


def test_s20_what_can_never_be_done_is_not_tried_twice() -> None:
    calls = Calls(99, StoreRejected("l3", "get"))

    with pytest.raises(StoreRejected):
        guard(ManualRuntime()).call_with_retry("get", calls)

    assert calls.count == 1


def test_s20_a_circuit_opens_rejects_probes_and_closes() -> None:
    runtime = ManualRuntime()
    watch = guard(runtime)
    down, up = Calls(10**9), Calls(0)
    for _ in range(5):
        with pytest.raises(StoreUnavailable):
            watch.call("get", down)
    assert watch.breaker.state.value == "open"

    with pytest.raises(CircuitOpen) as caught:
        watch.call("get", up)
    assert 0 < caught.value.retry_after_s <= 10
    assert up.count == 0, "it is rejected at once, and asks nobody"

    runtime.clock.advance(10.1)
    assert watch.call("get", up) == "answer"
    assert watch.breaker.state.value == "half_open"
    assert watch.call("get", up) == "answer"
    assert watch.breaker.state.value == "closed"


def test_s20_a_probe_that_fails_opens_the_circuit_again() -> None:
    runtime = ManualRuntime()
    watch = guard(runtime)
    down = Calls(10**9)
    for _ in range(5):
        with pytest.raises(StoreUnavailable):
            watch.call("get", down)
    runtime.clock.advance(10.1)
    with pytest.raises(StoreUnavailable):
        watch.call("get", down)

    with pytest.raises(CircuitOpen):
        watch.call("get", down)
    assert down.count == 6


def test_s20_concurrent_callers_of_a_dead_store_ask_it_a_few_times_only(
    start: Start, archive: Archive
) -> None:
    l3 = archive.client()
    engine = start(l3, filter="off", l3_circuit_open_s=30, l3_circuit_failures_max=3)
    until(lambda: engine.health().ready)
    l3.down = True
    before = l3.calls["get_many"]
    refused: list[StoreUnavailable] = []

    def read(number: int) -> None:
        for n in range(50):
            try:
                engine.get(f"{number}.{n}")
            except StoreUnavailable as exc:
                refused.append(exc)

    threads = [threading.Thread(target=read, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert len(refused) == 400
    assert l3.calls["get_many"] - before <= 3 + 8


# -- what else may happen -------------------------------------------------------------------------


def test_s26_an_item_that_l1_let_go_while_it_waits_for_the_archive_is_still_read(
    start: Start, archive: Archive
) -> None:
    l3 = archive.client()
    l3.down = True
    engine = start(l3, l1_bytes_max=2_000, overlay_bytes_max=2_000)
    for n in range(100):
        engine.submit(f"i{n}", b"%d" % n * 100)

    assert all(engine.get(f"i{n}").content == b"%d" % n * 100 for n in range(100))  # type: ignore[union-attr]


def test_s26_a_delete_that_races_a_delivery_and_a_crash_stays_a_delete(
    start: Start, archive: Archive, tmp_path: Path
) -> None:
    l3 = archive.client()
    engine = start(l3)
    for n in range(50):
        engine.submit(f"i{n}", b"v")
        engine.delete(f"i{n}")
    l3.down = True
    for n in range(50, 100):
        engine.submit(f"i{n}", b"v")
        engine.delete(f"i{n}")
    engine.close(timeout=0)

    again = start(archive.client())
    assert again.flush(20).complete
    assert all(again.get(f"i{n}") is None for n in range(100))
    assert all(
        row.content is None for row in archive.rows.get_many([f"i{n}" for n in range(100)]).values()
    )


def test_s26_ids_that_others_use_for_themselves_are_ids_like_any_other(start: Start) -> None:
    engine = start()
    ids = ["a", "a.b", "a:b", "a%b", "a_b", "a*b", "merkle:hash:", "cdc", ":cdc", "data:a", "mark"]
    for n, id in enumerate(ids):
        engine.submit(id, b"%d" % n)
    engine.flush()
    engine._house.l1.clear()  # type: ignore[union-attr]

    assert [item.content for item in engine.get_many(ids)] == [b"%d" % n for n in range(len(ids))]  # type: ignore[union-attr]
    assert engine.delete("a")
    engine.flush()
    engine._house.l1.clear()  # type: ignore[union-attr]
    assert engine.get("a.b").content == b"1"  # type: ignore[union-attr]


def test_s26_a_filter_of_50_000_ids_and_deletes_denies_nothing_that_is_there(
    start: Start, archive: Archive
) -> None:
    engine = start(archive.client(), filter_capacity=10_000)
    ids = [f"item.{n}" for n in range(50_000)]
    for begin in range(0, len(ids), 5_000):
        engine.submit_many([SyncItem(id, b"") for id in ids[begin : begin + 5_000]])
    engine.delete_many(ids[::3])
    assert engine.flush(60).complete
    engine.submit_many([SyncItem(id, b"") for id in ids[::9]])

    gone = set(ids[::3]) - set(ids[::9])
    assert not any(engine.definitely_missing(id) for id in ids if id not in gone)
    assert engine.flush(60).complete
    assert not any(engine.definitely_missing(id) for id in ids if id not in gone)
