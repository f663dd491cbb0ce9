"""The guard: no store is asked while its circuit is open."""

from __future__ import annotations

import subprocess
import sys
import threading
import traceback

import pytest

from sync_engine.core.policies import CircuitConfig
from sync_engine.errors import (
    CircuitOpen,
    Conflict,
    CorruptData,
    StoreRejected,
    StoreUnavailable,
)
from sync_engine.flow.circuits import BackendCircuits, CircuitBreaker, CircuitState
from sync_engine.flow.guard import Guard
from tests.flow.support_guard import CIRCUIT, SteppedTime, Store, fail

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
