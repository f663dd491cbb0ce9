"""A clock that moves when told, and a runtime whose jobs run when told: no threads, no waiting."""

from __future__ import annotations

import math
import random
import threading
from collections import Counter
from collections.abc import Callable

from sync_engine.errors import EngineClosed

__all__ = ["ManualClock", "ManualRuntime"]

_START_MS = 1_750_000_000_000


class ManualClock:
    """A clock that stands still until a test advances it; implements `ports.Clock`.

    Args:
        now_ms: Wall-clock milliseconds since 1970 to begin with.

    Thread-safety: any thread may read it; one may move it.
    """

    def __init__(self, now_ms: int = _START_MS) -> None:
        self._now_ms = float(now_ms)
        self._monotonic = 1000.0

    def now_ms(self) -> int:
        """Return wall-clock milliseconds since 1970."""
        return int(self._now_ms)

    def monotonic(self) -> float:
        """Return seconds that never go back."""
        return self._monotonic

    def sleep(self, seconds: float) -> None:
        """Advance by the seconds, and return.

        Raises:
            RuntimeError: The sleep has no end: nothing here could interrupt it.
        """
        if math.isinf(seconds):
            raise RuntimeError("a sleep without end, on a clock that nobody else moves")
        self.advance(max(0.0, seconds))

    def advance(self, seconds: float) -> None:
        """Let time pass. Negative seconds set the wall clock back, and that alone."""
        self._now_ms += seconds * 1000
        self._monotonic += max(0.0, seconds)

    def jump(self, seconds: float) -> None:
        """Step the wall clock, in either direction, without time passing."""
        self._now_ms += seconds * 1000


class _Event:
    """An event for one thread: to wait for what nobody will do only lets time pass."""

    def __init__(self, runtime: ManualRuntime) -> None:
        self._runtime = runtime
        self._raised = False

    def set(self) -> None:
        self._raised = True

    def clear(self) -> None:
        self._raised = False

    def is_set(self) -> bool:
        return self._raised

    def wait(self, timeout: float | None = None) -> bool:
        if not self._raised:
            self._runtime.wait_for(self.is_set, timeout)
        return self._raised


class _Job:
    def __init__(self, step: Callable[[], float], due_at: float) -> None:
        self.step = step
        self.due_at = due_at


class ManualRuntime:
    """A runtime for one thread: jobs are kept, and stepped by the test; implements `ports.Runtime`.

    Locks are real, so that taking one twice hangs here as it would there. Randomness is seeded.

    Args:
        clock: The clock; None makes one.
        seed: Of `random`.
        waits_run_jobs: What waiting for an event does: with False it lets the timeout pass at once;
            with True it runs jobs, and lets time pass between them, until the event or the timeout.

    Attributes:
        clock: The clock.
        woken: Jobs that were woken and not stepped since.
        wakes: How often each job was woken.
        closed: Whether `close` was called.
        exit_callback: What `at_exit` was given.
    """

    def __init__(
        self, clock: ManualClock | None = None, *, seed: int = 0, waits_run_jobs: bool = False
    ) -> None:
        self._clock = clock or ManualClock()
        self._random = random.Random(seed)
        self._waits_run_jobs = waits_run_jobs
        self._jobs: dict[str, _Job] = {}
        self.woken: set[str] = set()
        self.wakes: Counter[str] = Counter()
        self.closed = False
        self.exit_callback: Callable[[], object] | None = None

    @property
    def clock(self) -> ManualClock:
        """The clock."""
        return self._clock

    @property
    def jobs(self) -> list[str]:
        """Names of the jobs, in the order they were added."""
        return list(self._jobs)

    def lock(self) -> threading.Lock:
        """Make a real lock."""
        return threading.Lock()

    def event(self) -> _Event:
        """Make an event; see `waits_run_jobs`."""
        return _Event(self)

    def random(self) -> float:
        """Return the next number of the seeded sequence, in [0, 1)."""
        return self._random.random()

    def at_exit(self, callback: Callable[[], object] | None) -> None:
        """Remember the callback, and never call it."""
        self.exit_callback = callback

    # -- jobs -------------------------------------------------------------------------------------

    def add_job(self, name: str, step: Callable[[], float]) -> None:
        """Keep a job, due at once.

        Raises:
            EngineClosed: The runtime is closed.
            ValueError: There is a job of this name.
        """
        if self.closed:
            raise EngineClosed("the runtime is closed: it takes no more jobs")
        if name in self._jobs:
            raise ValueError(f"there is a job {name!r} already")
        self._jobs[name] = _Job(step, self._clock.monotonic())

    def wake(self, name: str) -> None:
        """Note that a job is woken; unknown names are ignored."""
        if name in self._jobs:
            self.woken.add(name)
            self.wakes[name] += 1

    def remove_job(self, name: str, timeout_s: float) -> bool:
        """Forget a job."""
        self._jobs.pop(name, None)
        self.woken.discard(name)
        return True

    def close(self, timeout_s: float) -> list[str]:
        """Forget all jobs and take no more."""
        self.closed = True
        self._jobs.clear()
        self.woken.clear()
        return []

    # -- driving ----------------------------------------------------------------------------------

    def step(self, name: str) -> float:
        """Step one job, due or not; return the seconds it asks to wait. Its errors come through.

        Raises:
            KeyError: There is no such job.
        """
        job = self._jobs[name]
        self.woken.discard(name)
        delay_s = job.step()
        job.due_at = self._clock.monotonic() + max(0.0, delay_s)
        return delay_s

    def run_until_idle(self, limit: int = 10_000) -> int:
        """Step jobs that are due or woken until there are none; return the number of steps.

        Time stands still meanwhile, unless a step sleeps.

        Raises:
            RuntimeError: The jobs were still busy after `limit` steps.
        """
        for count in range(limit):
            name = self._next()
            if name is None:
                return count
            self.step(name)
        raise RuntimeError(f"still busy after {limit} steps; woken: {sorted(self.woken)}")

    def run_for(self, seconds: float, limit: int = 100_000) -> int:
        """Let time pass, stepping each job when it is due; return the number of steps.

        Raises:
            RuntimeError: More than `limit` steps.
        """
        return self._run(lambda: False, self._clock.monotonic() + seconds, limit)

    def wait_for(self, condition: Callable[[], bool], timeout: float | None) -> None:
        """Let time pass, running jobs if `waits_run_jobs`, until a condition holds or the timeout.

        Raises:
            RuntimeError: There is no timeout and nothing left that could make the condition true.
        """
        until = math.inf if timeout is None else self._clock.monotonic() + max(0.0, timeout)
        if self._waits_run_jobs:
            self._run(condition, until, 100_000)
        elif timeout is None:
            raise RuntimeError("waiting without end for what no thread is there to do")
        else:
            self._clock.sleep(timeout)

    def _next(self) -> str | None:
        """Return the job to step now: the one due longest, woken ones being due now."""
        now = self._clock.monotonic()
        ready = [n for n, job in self._jobs.items() if n in self.woken or job.due_at <= now]
        return min(ready, key=lambda name: self._jobs[name].due_at, default=None)

    def _run(self, condition: Callable[[], bool], until: float, limit: int) -> int:
        for count in range(limit):
            if condition():
                return count
            name = self._next()
            if name is not None:
                self.step(name)
                continue
            due_at = min((job.due_at for job in self._jobs.values()), default=math.inf)
            target = min(due_at, until)
            if math.isinf(target):
                raise RuntimeError("waiting without end: every job waits to be woken")
            self._clock.advance(max(0.0, target - self._clock.monotonic()))
            if due_at > until:
                return count
        raise RuntimeError(f"still busy after {limit} steps")
