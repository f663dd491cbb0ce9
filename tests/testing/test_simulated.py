"""Planted races are found, and every finding can be replayed by its seed."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from sync_engine.errors import EngineClosed
from sync_engine.ports import Runtime
from sync_engine.testing import Deadlock, SimulatedRuntime

HERE = [__file__]


class Buffer:
    """A write-behind buffer with a bug to choose."""

    def __init__(self, runtime: Runtime, bug: str) -> None:
        self.bug = bug
        self.state, self.flushing = runtime.lock(), runtime.lock()
        self.dirty: dict[str, int] = {}
        self.stored: dict[str, int] = {}

    def put(self, key: str, version: int) -> None:
        with self.state:
            self.dirty[key] = max(version, self.dirty.get(key, 0))
            if self.bug == "lock order":
                with self.flushing:
                    pass

    def flush(self) -> None:
        with self.flushing:
            with self.state:
                batch = dict(self.dirty)
            for key, version in batch.items():
                self.stored[key] = max(version, self.stored.get(key, 0))
            if self.bug == "clears what came meanwhile":
                self.dirty.clear()
                return
            with self.state:
                for key, version in batch.items():
                    if self.dirty.get(key) == version:
                        del self.dirty[key]


def trial(seed: int, bug: str) -> tuple[bool, str]:
    """Run one schedule; return whether all went well, and the schedule's fingerprint."""
    runtime = SimulatedRuntime(seed, trace=HERE)
    buffer = Buffer(runtime, bug)

    def write(offset: int) -> None:
        for number in range(1, 6):
            buffer.put("k", number * 2 + offset)

    def flush() -> None:
        for _ in range(4):
            buffer.flush()

    try:
        runtime.run(lambda: write(0), lambda: write(1), flush)
    except Deadlock:
        return False, runtime.scheduler.fingerprint
    newest = max(buffer.stored.get("k", 0), buffer.dirty.get("k", 0))
    return newest == 11, runtime.scheduler.fingerprint


def test_a_correct_buffer_passes_every_schedule() -> None:
    assert all(trial(seed, "")[0] for seed in range(150))


@pytest.mark.parametrize("bug", ["clears what came meanwhile", "lock order"])
def test_a_planted_race_is_found_and_replayed(bug: str) -> None:
    failed = [seed for seed in range(150) if not trial(seed, bug)[0]]
    assert len(failed) >= 5
    assert trial(failed[0], bug) == trial(failed[0], bug)


def test_seeds_give_different_schedules() -> None:
    assert len({trial(seed, "")[1] for seed in range(20)}) == 20


def test_a_race_between_two_lines_needs_no_lock_to_be_found() -> None:
    def lost_update(seed: int) -> bool:
        runtime = SimulatedRuntime(seed, trace=HERE)
        counter = [0]

        def add() -> None:
            for _ in range(5):
                value = counter[0]
                counter[0] = value + 1

        runtime.run(add, add)
        return counter[0] < 10

    assert any(lost_update(seed) for seed in range(20))


def test_a_deadlock_says_who_waits_for_what() -> None:
    runtime = SimulatedRuntime(1)
    event = runtime.event()
    with pytest.raises(Deadlock, match="client-1 waits for an event"):
        runtime.run(event.wait)


def test_an_endless_run_is_ended() -> None:
    runtime = SimulatedRuntime(1, trace=HERE, steps_max=500)

    def spin() -> None:
        while True:
            pass

    with pytest.raises(AssertionError, match="still running"):
        runtime.run(spin)


def test_the_error_of_any_thread_comes_through() -> None:
    def fail() -> None:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        SimulatedRuntime(1).run(fail, lambda: None)


def test_time_moves_only_when_nobody_can_run() -> None:
    runtime = SimulatedRuntime(3)
    woke: list[tuple[str, float]] = []

    def sleep(name: str, seconds: float) -> Callable[[], None]:
        def work() -> None:
            start = runtime.clock.monotonic()
            runtime.clock.sleep(seconds)
            woke.append((name, runtime.clock.monotonic() - start))

        return work

    before = runtime.clock.now_ms()
    runtime.run(sleep("hour", 3600), sleep("second", 1))
    assert woke == [("second", 1.0), ("hour", 3600.0)]
    assert runtime.clock.now_ms() - before == 3_600_000


def test_an_event_wakes_its_waiter_or_times_out() -> None:
    runtime = SimulatedRuntime(3)
    event, answers = runtime.event(), []

    def wait() -> None:
        answers.append(event.wait(1.0))
        answers.append(event.wait(None))

    def signal() -> None:
        runtime.clock.sleep(2.0)
        event.set()

    runtime.run(wait, signal)
    assert answers == [False, True]


@pytest.mark.parametrize("seed", range(20))
def test_jobs_are_stepped_woken_and_removed(seed: int) -> None:
    runtime = SimulatedRuntime(seed)
    queue: list[int] = []
    done: list[int] = []
    changed = runtime.event()

    def step() -> float:
        while queue:
            done.append(queue.pop(0))
        changed.set()
        return math.inf

    def client() -> None:
        runtime.add_job("worker", step)
        with pytest.raises(ValueError, match="worker"):
            runtime.add_job("worker", step)
        for number in range(5):
            queue.append(number)
            runtime.wake("worker")
            while len(done) <= number:
                changed.wait()
                changed.clear()
        assert runtime.remove_job("worker", 1.0)
        assert runtime.remove_job("worker", 1.0)
        runtime.add_job("worker", lambda: 1.0)
        assert runtime.close(1.0) == []
        with pytest.raises(EngineClosed):
            runtime.add_job("late", step)

    runtime.run(client)
    assert done == [0, 1, 2, 3, 4]


def test_a_stuck_job_is_named_at_close_and_ended_with_the_run() -> None:
    runtime = SimulatedRuntime(5)
    never = runtime.event()
    stuck: list[str] = []

    def client() -> None:
        runtime.add_job("stuck", lambda: float(never.wait()))
        runtime.clock.sleep(1)
        stuck.extend(runtime.close(1.0))

    runtime.run(client)
    assert stuck == ["stuck"]


def test_a_job_may_remove_itself() -> None:
    runtime = SimulatedRuntime(5)
    answers: list[bool] = []

    def step() -> float:
        answers.append(runtime.remove_job("self", 1.0))
        return 0.0

    def client() -> None:
        runtime.add_job("self", step)
        runtime.clock.sleep(1)

    runtime.run(client)
    assert answers == [True]


def test_errors_of_jobs_end_the_run_or_are_retried() -> None:
    def fail() -> float:
        raise OSError("down")

    def client(runtime: SimulatedRuntime) -> None:
        runtime.add_job("job", fail)
        runtime.clock.sleep(60)

    strict = SimulatedRuntime(1)
    with pytest.raises(OSError, match="down"):
        strict.run(lambda: client(strict))

    lenient = SimulatedRuntime(1, fail_on_job_error=False)
    lenient.run(lambda: client(lenient))
    assert 4 <= len(lenient.job_errors) < 100


def test_locks_work_before_a_run() -> None:
    runtime = SimulatedRuntime(1)
    lock = runtime.lock()
    with lock, pytest.raises(RuntimeError, match="nobody runs"), lock:
        pass
