"""Real time, real threads: the only module that starts threads or reads clocks."""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
import math
import os
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor

from sync_engine.core.policies import RetryConfig
from sync_engine.errors import EngineClosed

__all__ = ["SystemClock", "SystemRuntime"]

_log = logging.getLogger("sync_engine.runtime")
_REPORT_EVERY_S = 10.0
_CALLERS_MAX = 8
# A lease must not outlive a suspended machine's sleep: CLOCK_MONOTONIC stands still meanwhile.
_seconds: Callable[[], float] = (
    functools.partial(time.clock_gettime, time.CLOCK_BOOTTIME)
    if hasattr(time, "CLOCK_BOOTTIME")
    else time.monotonic
)


class SystemClock:
    """The clock of this machine.

    Thread-safety: every method may be called from any thread.
    """

    __slots__ = ("_over",)

    def __init__(self) -> None:
        self._over = threading.Event()

    def now_ms(self) -> int:
        """Return wall-clock milliseconds since 1970; it may jump either way."""
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        """Return seconds that never go back, and go on while the machine is suspended."""
        return _seconds()

    def sleep(self, seconds: float) -> None:
        """Block for some seconds, or until `end_sleeps`; infinity waits for that alone."""
        if seconds > 0:
            self._over.wait(min(seconds, threading.TIMEOUT_MAX))

    def end_sleeps(self) -> None:
        """End every sleep, those of the future included."""
        self._over.set()


class _Job:
    """One step function and the thread that repeats it.

    The gate is a lock used as a flag: open (released) means "step now". `woken` spares a waker the
    release when the gate is open already. The thread closes the gate *before* it lowers `woken`, so
    a wake that comes in between opens the gate again instead of being lost.
    """

    __slots__ = ("gate", "name", "step", "stopping", "thread", "woken")

    def __init__(self, name: str, step: Callable[[], float]) -> None:
        self.name = name
        self.step = step
        self.stopping = False
        self.woken = False
        self.gate = threading.Lock()
        self.gate.acquire()
        self.thread: threading.Thread | None = None

    def open_gate(self) -> None:
        with contextlib.suppress(RuntimeError):  # open already, by another waker: just as well
            self.gate.release()

    def stop(self) -> None:
        self.stopping = True
        self.woken = True
        self.open_gate()

    def close_gate(self) -> None:
        self.gate.acquire(blocking=False)
        self.woken = False

    def wait(self, seconds: float) -> None:
        if seconds > 0:
            self.gate.acquire(timeout=min(seconds, threading.TIMEOUT_MAX))

    def pause(self, seconds: float) -> None:
        """Wait without being woken: only `stop` ends a pause early."""
        until = time.monotonic() + seconds
        while not self.stopping and (left := until - time.monotonic()) > 0:
            self.wait(left)

    def ended(self, timeout_s: float) -> bool:
        """Join, but never oneself; tell whether the thread is gone."""
        thread = self.thread
        if thread is None:
            return True
        if thread is not threading.current_thread():
            thread.join(max(0.0, timeout_s))
        return not thread.is_alive()


class SystemRuntime:
    """Time, locks and jobs of the real world; implements `ports.Runtime`.

    Every job has a daemon thread of its own, named ``<name>:<job>``, so that one slow destination
    never holds up another. A daemon thread dies with the interpreter without a word: who needs an
    orderly end registers it with `at_exit`.

    After a fork the child has the parent's jobs without their threads: there, `add_job` raises,
    `wake` and `close` do nothing, and `forked` is true.

    Thread-safety: every method may be called from any thread, jobs included.

    Args:
        name: Name of the engine, used in thread names and reports.
        on_error: Called with the job's name and the exception whenever a step raises, in the job's
            thread; what it raises itself is logged.
        retry: Pauses after steps that raise.
    """

    def __init__(
        self,
        name: str = "sync-engine",
        *,
        on_error: Callable[[str, BaseException], None] | None = None,
        retry: RetryConfig | None = None,
    ) -> None:
        self.name = name
        self.on_error = on_error
        self._retry = retry or RetryConfig(attempts_max=0, delay_s_min=0.05, delay_s_max=30.0)
        self._clock = SystemClock()
        self._random = random.Random()  # noqa: S311 - jitter, no secret
        self._lock = threading.Lock()
        self._jobs: dict[str, _Job] = {}
        self._closed = False
        self._pid = os.getpid()
        self._at_exit: Callable[[], object] | None = None
        self._executor: ThreadPoolExecutor | None = None

    @property
    def clock(self) -> SystemClock:
        """The clock of this machine; its sleeps end when the runtime closes."""
        return self._clock

    @property
    def forked(self) -> bool:
        """Whether this process is a child of the one that made the runtime."""
        return os.getpid() != self._pid

    def lock(self) -> threading.Lock:
        """Make a lock that its holder must not take again."""
        return threading.Lock()

    def event(self) -> threading.Event:
        """Make an event."""
        return threading.Event()

    def random(self) -> float:
        """Return a number in [0, 1); for jitter and sampling only."""
        return self._random.random()

    # -- jobs -------------------------------------------------------------------------------------

    def add_job(self, name: str, step: Callable[[], float]) -> None:
        """Run a bounded step again and again, in a thread of its own.

        Args:
            name: Unique among the jobs.
            step: Returns the seconds to wait before it is called again: 0 is at once, infinity is
                until `wake`. When it raises, that is logged (at most every 10 s a job), given to
                `on_error`, and the step is repeated after a jittered pause that doubles from 50 ms
                to 30 s and that `wake` does not shorten.

        Raises:
            EngineClosed: The runtime is closed, or belongs to the parent process.
            ValueError: There is a job of this name.
        """
        if self.forked:
            raise EngineClosed("this runtime belongs to the parent process")
        job = _Job(name, step)
        thread = threading.Thread(
            target=self._run, args=(job,), name=f"{self.name}:{name}", daemon=True
        )
        with self._lock:
            if self._closed:
                raise EngineClosed("the runtime is closed: it takes no more jobs")
            if name in self._jobs:
                raise ValueError(f"there is a job {name!r} already")
            self._jobs[name] = job
            job.thread = thread
            try:
                thread.start()
            except RuntimeError:  # no more threads on this machine
                del self._jobs[name]
                raise

    def wake(self, name: str) -> None:
        """Call a job's step now, or once more if it is being called.

        Never blocks. Cost: about 100 ns when the job is woken already. Unknown names are ignored.
        """
        job = self._jobs.get(name)
        if job is not None and not job.woken:
            job.woken = True
            job.open_gate()

    def remove_job(self, name: str, timeout_s: float) -> bool:
        """Stop a job and join its thread.

        A job may remove itself: it ends after its current step, and nothing is joined.

        Args:
            name: The job; an unknown one counts as stopped.
            timeout_s: Seconds to wait for its step, 0 or more.

        Returns:
            False if the step did not end in time. The job ends with it, and keeps its name until
            then.
        """
        job = self._jobs.get(name)
        if job is None or self.forked:
            return True
        job.stop()
        return job.ended(timeout_s) or job.thread is threading.current_thread()

    def close(self, timeout_s: float) -> list[str]:
        """Stop and join every job, end every sleep; safe twice.

        Args:
            timeout_s: Seconds to wait in all, 0 or more.

        Returns:
            Names of the jobs whose step did not end in time, the calling job included.
        """
        if self.forked:
            return []
        until = time.monotonic() + timeout_s
        with self._lock:
            self._closed = True
            jobs = list(self._jobs.values())
        self.at_exit(None)
        self._clock.end_sleeps()
        if self._executor is not None:
            self._executor.shutdown(wait=False)
        for job in jobs:
            job.stop()
        return [job.name for job in jobs if not job.ended(until - time.monotonic())]

    def executor(self) -> Executor:
        """Return a pool of up to eight threads for calls that block; made on first use.

        Raises:
            EngineClosed: The runtime is closed, or belongs to the parent process.
        """
        with self._lock:
            if self._closed or self.forked:
                raise EngineClosed("the runtime is closed: it takes no more calls")
            if self._executor is None:
                self._executor = ThreadPoolExecutor(_CALLERS_MAX, f"{self.name}:call")
            return self._executor

    def at_exit(self, callback: Callable[[], object] | None) -> None:
        """Call something when the interpreter exits, while daemon threads still run.

        Each call replaces the callback of the one before; None forgets it. A forked child never
        calls it. Nothing is called after `close`, a kill, or ``os._exit``.
        """
        self._at_exit = callback
        atexit.unregister(self._exit)
        if callback is not None:
            atexit.register(self._exit)

    def _exit(self) -> None:
        callback, self._at_exit = self._at_exit, None
        if callback is not None and not self.forked:
            callback()

    # -- in the job's thread ----------------------------------------------------------------------

    def _run(self, job: _Job) -> None:
        failures = 0
        reported_at = -math.inf
        try:
            while not job.stopping:
                job.close_gate()
                if job.stopping:  # `stop` came before the gate was closed
                    break
                try:
                    delay_s = job.step()
                except BaseException as exc:  # even SystemExit must not end a job silently
                    failures += 1
                    reported_at = self._report(job, exc, failures, reported_at)
                    job.pause(self._retry.delay_s(failures, self._random.random()))
                else:
                    failures = 0
                    job.wait(delay_s)
        finally:
            with self._lock:
                self._jobs.pop(job.name, None)

    def _report(self, job: _Job, exc: BaseException, failures: int, reported_at: float) -> float:
        """Log and pass on a failure; return when one was logged last."""
        now = time.monotonic()
        if now - reported_at >= _REPORT_EVERY_S:
            reported_at = now
            _log.error(
                "job_failed engine=%s job=%s failures=%d",
                self.name,
                job.name,
                failures,
                exc_info=exc,
            )
        if self.on_error is not None:
            try:
                self.on_error(job.name, exc)
            except Exception:
                _log.exception("on_error_failed engine=%s job=%s", self.name, job.name)
        return reported_at
