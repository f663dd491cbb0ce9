"""A runtime on a deterministic scheduler: real threads, virtual time, replayable races."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from sync_engine.core.policies import RetryConfig
from sync_engine.errors import EngineClosed
from sync_engine.testing.schedule import Scheduler, Task

__all__ = ["SimulatedClock", "SimulatedRuntime"]

_START_MS = 1_750_000_000_000


class SimulatedClock:
    """Virtual time: it moves when no thread can run; implements `ports.Clock`."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._over = False

    def now_ms(self) -> int:
        """Return wall-clock milliseconds since 1970."""
        return _START_MS + int(self._scheduler.now * 1000)

    def monotonic(self) -> float:
        """Return seconds that never go back."""
        return 1000.0 + self._scheduler.now

    def sleep(self, seconds: float) -> None:
        """Let others run for some virtual seconds, or until `end_sleeps`."""
        if seconds > 0 and self._scheduler.inside:
            until = self._scheduler.now + seconds
            self._scheduler.block(lambda: self._over, until=until, why="its sleep to end")

    def end_sleeps(self) -> None:
        """End every sleep, those of the future included."""
        self._over = True


class _Lock:
    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._held = False

    def __enter__(self) -> bool:
        scheduler = self._scheduler
        if scheduler.inside and not scheduler.aborting:
            scheduler.switch()
            scheduler.block(lambda: not self._held, why="a lock")
        elif self._held and not scheduler.aborting:
            raise RuntimeError("a lock of the simulation is held, and nobody runs")
        self._held = True
        return True

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._held = False
        if self._scheduler.inside:
            self._scheduler.switch()


class _Event:
    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._raised = False

    def set(self) -> None:
        self._raised = True
        if self._scheduler.inside:
            self._scheduler.switch()

    def clear(self) -> None:
        self._raised = False

    def is_set(self) -> bool:
        return self._raised

    def wait(self, timeout: float | None = None) -> bool:
        scheduler = self._scheduler
        if self._raised or not scheduler.inside:
            return self._raised
        until = math.inf if timeout is None else scheduler.now + max(0.0, timeout)
        return scheduler.block(self.is_set, until=until, why="an event")


class _Job:
    def __init__(self) -> None:
        self.woken = False
        self.stopping = False
        self.task: Task | None = None


class SimulatedRuntime:
    """A runtime whose threads run one at a time, in an order that a seed decides.

    Give it to an engine (or to any part of one), and let `run` do the work of the test: everything
    inside runs under the scheduler. Implements `ports.Runtime`.

    Example:
        >>> def test(seed: int) -> None:
        ...     runtime = SimulatedRuntime(seed, trace=[sync_engine.wal.__path__[0]])
        ...     runtime.run(scenario_a, scenario_b)

    Args:
        seed: Of the schedule and of `random`.
        trace: Files or directories whose every line is a place to be interrupted at.
        switch_probability: How likely that is, from 0 to 1.
        steps_max: Lines and switches after which a run counts as endless.
        fail_on_job_error: Whether a job's step that raises ends the run, with its error. Otherwise
            it is kept in `job_errors` and the step is repeated, as by `SystemRuntime`.

    Attributes:
        scheduler: The scheduler; its ``fingerprint`` tells schedules apart.
        clock: Virtual time.
        job_errors: Job names and what their steps raised.
    """

    def __init__(
        self,
        seed: int,
        *,
        trace: Sequence[str | Path] = (),
        switch_probability: float = 0.15,
        steps_max: int = 500_000,
        fail_on_job_error: bool = True,
    ) -> None:
        self.scheduler = Scheduler(
            seed, trace=trace, switch_probability=switch_probability, steps_max=steps_max
        )
        self.job_errors: list[tuple[str, Exception]] = []
        self._clock = SimulatedClock(self.scheduler)
        self._fail_on_job_error = fail_on_job_error
        self._retry = RetryConfig(attempts_max=0, delay_s_min=0.05, delay_s_max=30.0)
        self._jobs: dict[str, _Job] = {}
        self._closed = False
        self._clients = 0

    @property
    def clock(self) -> SimulatedClock:
        """Virtual time."""
        return self._clock

    def run(self, *work: Callable[[], object]) -> None:
        """Run some functions, each in a thread of its own, until all have returned.

        Jobs that are left then are ended wherever they stand.

        Raises:
            Deadlock: Nobody can go on.
            AssertionError: The run does not end.
            BaseException: The first error of any thread.
        """
        for function in work:
            self.spawn(function)
        self.scheduler.run()

    def spawn(self, work: Callable[[], object]) -> None:
        """Add a thread that `run` waits for; callable before and during a run."""
        self._clients += 1
        self.scheduler.spawn(f"client-{self._clients}", work)

    def lock(self) -> contextlib.AbstractContextManager[bool]:
        """Make a lock at which others may get their turn."""
        return _Lock(self.scheduler)

    def event(self) -> _Event:
        """Make an event at which others may get their turn."""
        return _Event(self.scheduler)

    def random(self) -> float:
        """Return the next number of the seeded sequence, in [0, 1)."""
        return self.scheduler.random.random()

    def at_exit(self, callback: Callable[[], object] | None) -> None:
        """Do nothing: a simulated interpreter never exits in order."""

    # -- jobs -------------------------------------------------------------------------------------

    def add_job(self, name: str, step: Callable[[], float]) -> None:
        """Run a bounded step again and again, in a thread of its own.

        Raises:
            EngineClosed: The runtime is closed.
            ValueError: There is a job of this name.
        """
        if self._closed:
            raise EngineClosed("the runtime is closed: it takes no more jobs")
        if name in self._jobs:
            raise ValueError(f"there is a job {name!r} already")
        job = self._jobs[name] = _Job()
        job.task = self.scheduler.spawn(name, lambda: self._repeat(name, job, step), daemon=True)

    def wake(self, name: str) -> None:
        """Call a job's step now, or once more if it is being called."""
        job = self._jobs.get(name)
        if job is not None:
            job.woken = True

    def remove_job(self, name: str, timeout_s: float) -> bool:
        """Stop a job and wait for its end; return False if its step did not end in time."""
        job = self._jobs.get(name)
        if job is None:
            return True
        job.stopping = True
        task = job.task
        if task is None or not self.scheduler.inside or self.scheduler.aborting:
            return True
        if task is self.scheduler.current:
            return True
        until = self.scheduler.now + timeout_s
        return self.scheduler.block(lambda: task.done, until=until, why=f"job {name} to end")

    def close(self, timeout_s: float) -> list[str]:
        """Stop every job and end every sleep; return the names of those that did not stop."""
        self._closed = True
        self._clock.end_sleeps()
        until = self.scheduler.now + timeout_s
        for job in self._jobs.values():
            job.stopping = True
        return [
            name
            for name in list(self._jobs)
            if not self.remove_job(name, until - self.scheduler.now)
        ]

    def _repeat(self, name: str, job: _Job, step: Callable[[], float]) -> None:
        failures = 0
        scheduler = self.scheduler
        while not job.stopping:
            job.woken = False
            try:
                delay_s = step()
            except Exception as exc:
                if self._fail_on_job_error:
                    raise
                self.job_errors.append((name, exc))
                failures += 1
                pause_s = self._retry.delay_s(failures, self.random())
                scheduler.block(
                    lambda: job.stopping, until=scheduler.now + pause_s, why="its pause to end"
                )
            else:
                failures = 0
                until = scheduler.now + max(0.0, delay_s)
                scheduler.block(lambda: job.woken or job.stopping, until=until, why="a wake")
                scheduler.switch()
        self._jobs.pop(name, None)
