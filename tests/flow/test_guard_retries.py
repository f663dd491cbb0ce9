"""The guard: a waiting caller is spared short failures, and every call is counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sync_engine.core.policies import CircuitConfig, RetryConfig
from sync_engine.errors import (
    CircuitOpen,
    Conflict,
    StoreRejected,
    StoreUnavailable,
)
from sync_engine.flow.guard import Backoff, Guard
from sync_engine.telemetry import HistogramValue, Metrics
from tests.flow.support_guard import RETRY, SteppedTime, Store, fail

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
