"""The guard: one attempt or several, never while the circuit is open."""

from __future__ import annotations

import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

import pytest

from sync_engine.core.policies import CircuitConfig, RetryConfig
from sync_engine.errors import (
    CircuitOpen,
    Conflict,
    CorruptData,
    StoreRejected,
    StoreUnavailable,
)
from sync_engine.flow.circuits import BackendCircuits, CircuitBreaker, CircuitState
from sync_engine.flow.guard import Backoff, Guard
from sync_engine.telemetry import HistogramValue, Metrics

CIRCUIT = CircuitConfig(failures_max=3, open_s=10.0, successes_min=1)
RETRY = RetryConfig(attempts_max=4, delay_s_min=1.0, delay_s_max=8.0)


class SteppedTime:
    """A clock on which sleeping passes the time at once, and a runtime around it."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.pauses: list[float] = []

    @property
    def clock(self) -> SteppedTime:
        return self

    def monotonic(self) -> float:
        return self.now_s

    def now_ms(self) -> int:
        raise AssertionError("a guard must not read the wall clock")

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now_s += seconds

    def lock(self) -> Any:
        return threading.Lock()

    def random(self) -> float:
        return 0.0

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"a guard must not use {name}")


class Store:
    """Answers or fails as told, and counts."""

    def __init__(self) -> None:
        self.calls = 0
        self.error: BaseException | None = None
        self.failures_left = 0

    def get(self, id: str = "a") -> str:
        self.calls += 1
        if self.error is not None:
            raise self.error
        if self.failures_left:
            self.failures_left -= 1
            raise StoreUnavailable("redis", "get")
        return id


@pytest.fixture
def time() -> SteppedTime:
    return SteppedTime()


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def guard(time: SteppedTime, metrics: Metrics) -> Guard:
    return Guard("l2", time, circuit=CIRCUIT, retry=RETRY, timeout_s=60.0, metrics=metrics)


def fail(guard: Guard, store: Store, times: int) -> None:
    store.failures_left = times
    for _ in range(times):
        with pytest.raises(StoreUnavailable):
            guard.call("get", store.get)


# -- the circuit ----------------------------------------------------------------------------------


def test_a_store_that_failed_too_often_is_left_alone(guard: Guard, store: Store) -> None:
    fail(guard, store, 3)

    with pytest.raises(CircuitOpen) as refused:
        guard.call("get", store.get)

    assert store.calls == 3
    assert refused.value.retry_after_s == 10.0
    assert refused.value.store == "l2"
    assert guard.breaker.state is CircuitState.OPEN


def test_a_success_in_between_starts_the_count_anew(guard: Guard, store: Store) -> None:
    for _ in range(5):
        fail(guard, store, 2)
        assert guard.call("get", store.get) == "a"

    assert guard.breaker.state is CircuitState.CLOSED


def test_the_call_that_trips_the_circuit_tells_its_own_error(guard: Guard, store: Store) -> None:
    store.error = StoreUnavailable("redis", "get", "the cause")
    for _ in range(3):
        with pytest.raises(StoreUnavailable) as told:
            guard.call("get", store.get)
        assert told.value is store.error

    shown = "".join(traceback.format_exception(told.value))
    assert "pybreaker" not in shown


@pytest.mark.parametrize(
    "answer",
    [
        StoreRejected("sql", "apply"),
        CorruptData("row", "checksum mismatch"),
        Conflict("a", 1, 2),
        ValueError("a bug of ours"),
    ],
)
def test_an_answer_is_no_failure_of_the_store(
    guard: Guard, store: Store, answer: Exception
) -> None:
    store.error = answer
    for _ in range(10):
        with pytest.raises(type(answer)):
            guard.call("get", store.get)

    assert guard.breaker.state is CircuitState.CLOSED
    assert store.calls == 10


def test_one_probe_closes_the_circuit_when_it_succeeds(
    guard: Guard, store: Store, time: SteppedTime
) -> None:
    fail(guard, store, 3)
    time.now_s += 10.0

    assert guard.call("get", store.get) == "a"
    assert guard.breaker.state is CircuitState.CLOSED
    fail(guard, store, 2)  # and the old failures are forgotten
    assert guard.breaker.state is CircuitState.CLOSED


def test_a_failed_probe_opens_the_circuit_for_another_while(
    guard: Guard, store: Store, time: SteppedTime
) -> None:
    fail(guard, store, 3)
    time.now_s += 10.0
    fail(guard, store, 1)

    time.now_s += 9.9
    with pytest.raises(CircuitOpen):
        guard.call("get", store.get)
    assert store.calls == 4


def test_only_one_caller_probes_at_a_time(guard: Guard, store: Store, time: SteppedTime) -> None:
    fail(guard, store, 3)
    time.now_s += 10.0
    refused: list[CircuitOpen] = []

    def probe() -> str:
        with pytest.raises(CircuitOpen) as caught:
            guard.call("get", store.get)
        refused.append(caught.value)
        return "found"

    assert guard.call("get", probe) == "found"
    assert len(refused) == 1
    assert store.calls == 3


def test_many_threads_meeting_a_half_open_circuit_send_one_probe(
    guard: Guard, store: Store, time: SteppedTime
) -> None:
    fail(guard, store, 3)
    time.now_s += 10.0
    answered = threading.Event()
    met = threading.Barrier(8)
    probes, refusals = [], []

    def probe() -> None:
        probes.append(1)
        assert answered.wait(30)

    def call() -> None:
        met.wait(30)
        try:
            guard.call("get", probe)
        except CircuitOpen:
            refusals.append(1)
            if len(refusals) == 7:
                answered.set()

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert (len(probes), len(refusals)) == (1, 7)
    assert guard.breaker.state is CircuitState.CLOSED


def test_a_probe_that_never_comes_back_loses_its_turn(
    guard: Guard, store: Store, time: SteppedTime
) -> None:
    fail(guard, store, 3)
    time.now_s += 10.0

    def hangs() -> str:
        time.now_s += 10.0
        return guard.call("get", store.get)

    assert guard.call("get", hangs) == "a"


def test_several_probes_have_to_succeed_where_asked(time: SteppedTime, store: Store) -> None:
    strict = CircuitConfig(failures_max=1, open_s=10.0, successes_min=3)
    guard = Guard("l3", time, circuit=strict)
    fail(guard, store, 1)
    time.now_s += 10.0

    states = []
    for _ in range(3):
        guard.call("get", store.get)
        states.append(guard.breaker.state)

    assert states == [CircuitState.HALF_OPEN, CircuitState.HALF_OPEN, CircuitState.CLOSED]


def test_an_interrupted_probe_has_not_succeeded(
    guard: Guard, store: Store, time: SteppedTime
) -> None:
    fail(guard, store, 3)
    time.now_s += 10.0
    store.error = KeyboardInterrupt()

    with pytest.raises(KeyboardInterrupt):
        guard.call("get", store.get)

    assert guard.breaker.state is CircuitState.OPEN


def test_a_failure_from_before_the_circuit_opened_does_not_prolong_it(
    guard: Guard, store: Store, time: SteppedTime
) -> None:
    def slow() -> None:
        fail(guard, store, 3)
        time.now_s += 4.0
        raise StoreUnavailable("redis", "get", "late")

    with pytest.raises(StoreUnavailable, match="late"):
        guard.call("get", slow)

    assert guard.breaker.retry_after_s == 6.0


def test_a_success_from_before_the_circuit_opened_does_not_close_it(
    guard: Guard, store: Store, time: SteppedTime
) -> None:
    guard.call("get", lambda: fail(guard, store, 3))

    assert guard.breaker.state is CircuitState.OPEN


def test_calls_run_side_by_side(guard: Guard) -> None:
    """No lock is held while a store is asked, healthy or not."""
    met = threading.Barrier(4)
    answers = []

    def call() -> None:
        answers.append(guard.call("get", met.wait, 30))

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert sorted(answers) == [0, 1, 2, 3]


def test_a_guard_does_not_import_a_driver_while_all_is_well() -> None:
    """pybreaker imports redis-py where that is installed."""
    program = (
        "import sys, threading, types;"
        "from sync_engine.flow.guard import Guard;"
        "clock = types.SimpleNamespace(monotonic=lambda: 0.0, sleep=None);"
        "runtime = types.SimpleNamespace(clock=clock, lock=threading.Lock, random=None);"
        "assert Guard('l3', runtime).call('get', str, 1) == '1';"
        "assert not {'redis', 'pybreaker'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_circuits_are_known_by_the_name_of_their_store(time: SteppedTime) -> None:
    circuits = BackendCircuits()
    for name in ("l2", "l3"):
        circuits.add(CircuitBreaker(name, time, CIRCUIT))
    assert circuits.retry_after_s == float("inf")

    for _ in range(3):
        circuits["l2"].failed(circuits["l2"].admit("get"))

    assert circuits.states() == {"l2": CircuitState.OPEN, "l3": CircuitState.CLOSED}
    assert circuits.retry_after_s == 10.0
    assert list(circuits) == ["l2", "l3"]
    assert len(circuits) == 2


# -- retries --------------------------------------------------------------------------------------


def test_a_waiting_caller_is_spared_short_failures(
    guard: Guard, store: Store, time: SteppedTime
) -> None:
    store.failures_left = 2

    assert guard.call_with_retry("get", store.get, id="b") == "b"
    assert store.calls == 3
    assert time.pauses == [1.0, 1.0]


def test_a_first_success_neither_waits_nor_repeats(
    guard: Guard, store: Store, time: SteppedTime
) -> None:
    assert guard.call_with_retry("get", store.get) == "a"
    assert (store.calls, time.pauses) == (1, [])


def test_attempts_end_at_their_bound_with_the_last_error(time: SteppedTime, store: Store) -> None:
    guard = Guard("l3", time, circuit=CircuitConfig(failures_max=99), retry=RETRY)
    store.failures_left = 99

    with pytest.raises(StoreUnavailable):
        guard.call_with_retry("get", store.get)

    assert store.calls == 4


def test_attempts_end_when_the_circuit_opens(guard: Guard, store: Store, time: SteppedTime) -> None:
    store.failures_left = 99

    with pytest.raises(CircuitOpen):
        guard.call_with_retry("get", store.get)

    assert store.calls == 3


def test_an_open_circuit_is_not_waited_for(guard: Guard, store: Store, time: SteppedTime) -> None:
    fail(guard, store, 3)

    with pytest.raises(CircuitOpen):
        guard.call_with_retry("get", store.get)

    assert time.pauses == []


def test_an_answer_is_not_asked_for_again(guard: Guard, store: Store) -> None:
    store.error = StoreRejected("sql", "get")

    with pytest.raises(StoreRejected):
        guard.call_with_retry("get", store.get)

    assert store.calls == 1


def test_no_pause_is_begun_that_ends_after_the_budget(time: SteppedTime, store: Store) -> None:
    guard = Guard("l3", time, circuit=CircuitConfig(failures_max=99), retry=RETRY, timeout_s=1.5)
    store.failures_left = 99

    with pytest.raises(StoreUnavailable):
        guard.call_with_retry("get", store.get)

    assert time.pauses == [1.0]
    assert store.calls == 2


def test_time_spent_in_attempts_counts_against_the_budget(time: SteppedTime) -> None:
    guard = Guard("l3", time, retry=RETRY, timeout_s=5.0)

    def hangs() -> None:
        time.now_s += 4.5
        raise StoreUnavailable("sql", "get", "timeout")

    with pytest.raises(StoreUnavailable):
        guard.call_with_retry("get", hangs)

    assert time.pauses == []


def test_concurrent_retries_do_not_share_their_attempts(store: Store, time: SteppedTime) -> None:
    """One tenacity object serves all callers, also one that retries inside another."""
    guard = Guard("l3", time, circuit=CircuitConfig(failures_max=99), retry=RETRY)
    failures = iter([True, False])

    def outer() -> str:
        store.failures_left = 2
        answer = guard.call_with_retry("inner", store.get)
        if next(failures):
            raise StoreUnavailable("sql", "outer")
        return answer

    assert guard.call_with_retry("outer", outer) == "a"
    assert store.calls == 6


def test_a_follower_waits_longer_after_each_failure_and_starts_anew() -> None:
    backoff = Backoff(RetryConfig(delay_s_min=1.0, delay_s_max=8.0), lambda: 0.5)

    pauses = [backoff.failed() for _ in range(5)]
    backoff.succeeded()

    assert pauses == [1.5, 2.5, 4.5, 4.5, 4.5]
    assert backoff.failed() == 1.5


# -- meters ---------------------------------------------------------------------------------------


def test_every_call_is_counted_by_its_outcome(
    guard: Guard, store: Store, metrics: Metrics, time: SteppedTime
) -> None:
    guard.call("get", store.get)
    for error in (StoreRejected("l2", "get"), Conflict("a", 0, 1), OSError()):
        store.error = error
        with pytest.raises(type(error)):
            guard.call("get", store.get)
    store.error = None
    fail(guard, store, 3)
    with pytest.raises(CircuitOpen):
        guard.call("get", store.get)

    seen = metrics.snapshot()
    counts = {
        outcome: seen[
            f'sync_engine_operations_total{{operation="get",outcome="{outcome}",tier="l2"}}'
        ]
        for outcome in ("ok", "rejected", "conflict", "error", "unavailable", "open")
    }
    assert counts == {
        "ok": 1, "rejected": 1, "conflict": 1, "error": 1, "unavailable": 3, "open": 1,
    }  # fmt: skip
    assert seen['sync_engine_circuit_openings_total{tier="l2"}'] == 1
    assert seen['sync_engine_circuit_state{tier="l2"}'] == 2
    timed = seen['sync_engine_operation_seconds{operation="get",tier="l2"}']
    assert isinstance(timed, HistogramValue)
    assert timed.count == 7


def test_a_call_is_timed_on_the_injected_clock(
    guard: Guard, metrics: Metrics, time: SteppedTime
) -> None:
    guard.call("get", lambda: time.sleep(2.5))

    timed = metrics.histogram("operation_seconds", tier="l2", operation="get").read()
    assert timed.sum == 2.5


def test_repetitions_are_counted(guard: Guard, store: Store, metrics: Metrics) -> None:
    store.failures_left = 2
    guard.call_with_retry("get", store.get)

    assert metrics.counter("retries", tier="l2", operation="get").value == 2


@pytest.mark.parametrize("succeeds", [True, False])
def test_a_call_runs_inside_a_span_where_spans_are_on(
    guard: Guard, metrics: Metrics, store: Store, succeeds: bool
) -> None:
    from contextlib import contextmanager

    spans: list[object] = []

    @contextmanager
    def span(name: str, attributes: Any) -> Any:
        spans.append((name, dict(attributes), store.calls))
        try:
            yield
        finally:
            spans.append(store.calls)

    metrics.spans = span
    call: Callable[[], object] = lambda: guard.call("get", store.get)  # noqa: E731
    if succeeds:
        call()
    else:
        fail(guard, store, 1)

    assert spans == [("l2.get", {"tier": "l2", "operation": "get"}, 0), 1]
