"""A runtime that a test drives by hand."""

from __future__ import annotations

import math

import pytest

from sync_engine.errors import EngineClosed
from sync_engine.ports import Clock, Runtime
from sync_engine.testing import ManualClock, ManualRuntime


def test_it_is_a_runtime_to_the_type_checker(runtime: ManualRuntime, clock: ManualClock) -> None:
    port: Runtime = runtime
    assert port.clock is clock


def test_time_stands_still_until_advanced(clock: ManualClock) -> None:
    port: Clock = clock
    wall, mono = port.now_ms(), port.monotonic()
    assert (port.now_ms(), port.monotonic()) == (wall, mono)

    clock.advance(1.5)
    port.sleep(0.5)
    assert (port.now_ms(), port.monotonic()) == (wall + 2000, mono + 2.0)


def test_the_wall_clock_may_go_back_and_the_other_does_not(clock: ManualClock) -> None:
    wall, mono = clock.now_ms(), clock.monotonic()
    clock.advance(-3600)
    clock.jump(-1)
    clock.jump(+2)
    assert clock.now_ms() == wall - 3600_000 + 1000
    assert clock.monotonic() == mono


def test_a_sleep_without_end_is_an_error_not_a_hang(clock: ManualClock) -> None:
    with pytest.raises(RuntimeError, match="without end"):
        clock.sleep(math.inf)


def test_jobs_run_only_when_stepped(runtime: ManualRuntime) -> None:
    calls: list[str] = []
    runtime.add_job("a", lambda: calls.append("a") or 2.5)  # type: ignore[func-returns-value]
    assert calls == []
    assert runtime.step("a") == 2.5
    assert calls == ["a"]
    with pytest.raises(KeyError):
        runtime.step("unknown")


def test_woken_jobs_are_known(runtime: ManualRuntime) -> None:
    runtime.add_job("a", lambda: math.inf)
    runtime.wake("a")
    runtime.wake("a")
    runtime.wake("unknown")
    assert runtime.woken == {"a"}
    assert runtime.wakes["a"] == 2
    runtime.step("a")
    assert runtime.woken == set()


def test_run_until_idle_steps_what_is_due_or_woken(
    runtime: ManualRuntime, clock: ManualClock
) -> None:
    calls: list[str] = []
    left = [3]

    def busy() -> float:
        calls.append("busy")
        left[0] -= 1
        runtime.wake("idle")
        return 0.0 if left[0] else math.inf

    def idle() -> float:
        calls.append("idle")
        return 5.0

    runtime.add_job("busy", busy)
    runtime.add_job("idle", idle)
    before = clock.monotonic()

    steps = runtime.run_until_idle()

    assert calls.count("busy") == 3
    assert steps == len(calls)
    assert clock.monotonic() == before
    assert runtime.run_until_idle() == 0
    clock.advance(5)
    assert runtime.run_until_idle() == 1


def test_jobs_that_never_rest_are_reported(runtime: ManualRuntime) -> None:
    runtime.add_job("mad", lambda: 0.0)
    with pytest.raises(RuntimeError, match="still busy"):
        runtime.run_until_idle(limit=50)


def test_run_for_keeps_each_jobs_pace(runtime: ManualRuntime, clock: ManualClock) -> None:
    at: list[float] = []
    start = clock.monotonic()
    runtime.add_job("paced", lambda: at.append(clock.monotonic() - start) or 1.0)  # type: ignore[func-returns-value]
    runtime.run_for(3.5)
    assert at == [0.0, 1.0, 2.0, 3.0]
    assert clock.monotonic() == start + 3.5


def test_a_wait_nobody_ends_lets_its_timeout_pass(
    runtime: ManualRuntime, clock: ManualClock
) -> None:
    event = runtime.event()
    before = clock.monotonic()
    assert not event.wait(2.0)
    assert clock.monotonic() == before + 2.0
    with pytest.raises(RuntimeError, match="without end"):
        event.wait()
    event.set()
    assert event.wait()
    event.clear()
    assert not event.is_set()


def test_waits_may_run_the_jobs(clock: ManualClock) -> None:
    runtime = ManualRuntime(clock, waits_run_jobs=True)
    event = runtime.event()
    before = clock.monotonic()
    due: list[float] = [1.0, 1.0]

    def step() -> float:
        if due:
            return due.pop()
        event.set()
        return math.inf

    runtime.add_job("setter", step)
    assert event.wait(10.0)
    assert clock.monotonic() == before + 2.0
    event.clear()
    with pytest.raises(RuntimeError, match="without end"):
        event.wait()


def test_errors_of_a_step_come_through(runtime: ManualRuntime) -> None:
    def step() -> float:
        raise ValueError("mine")

    runtime.add_job("a", step)
    with pytest.raises(ValueError, match="mine"):
        runtime.run_until_idle()


def test_names_are_unique_and_free_after_removal(runtime: ManualRuntime) -> None:
    runtime.add_job("a", lambda: 0.0)
    with pytest.raises(ValueError, match="a"):
        runtime.add_job("a", lambda: 0.0)
    assert runtime.remove_job("a", 1)
    runtime.add_job("a", lambda: 0.0)
    assert runtime.jobs == ["a"]


def test_a_closed_runtime_takes_no_jobs(runtime: ManualRuntime) -> None:
    runtime.add_job("a", lambda: 0.0)
    assert runtime.close(1) == []
    assert runtime.jobs == []
    with pytest.raises(EngineClosed):
        runtime.add_job("a", lambda: 0.0)


def test_randomness_is_replayable() -> None:
    def draw(seed: int) -> list[float]:
        runtime = ManualRuntime(seed=seed)
        return [runtime.random() for _ in range(5)]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_a_lock_excludes(runtime: ManualRuntime) -> None:
    lock = runtime.lock()
    with lock:
        assert not lock.acquire(blocking=False)
    assert lock.acquire(blocking=False)


def test_the_exit_callback_is_kept_for_the_test_to_call(runtime: ManualRuntime) -> None:
    def callback() -> None: ...

    runtime.at_exit(callback)
    assert runtime.exit_callback is callback
