"""A deterministic scheduler of threads: one runs at a time, and a seed decides who is next."""

from __future__ import annotations

import hashlib
import math
import random
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

__all__ = ["Deadlock", "Scheduler", "Task"]

_REAL_S_MAX = 60.0
_Tracer = Callable[[FrameType, str, Any], Any]


class Deadlock(AssertionError):
    """No thread can go on; the message says what each one waits for."""


class _Aborted(BaseException):
    """Ends the threads that are left when a run is over."""


class Task:
    """One thread under the scheduler.

    Attributes:
        name: As messages name it.
        daemon: A run does not wait for it.
        done: It has ended.
    """

    def __init__(self, name: str, work: Callable[[], object], *, daemon: bool) -> None:
        self.name = name
        self.work = work
        self.daemon = daemon
        self.done = False
        self.baton = threading.Semaphore(0)
        self.thread: threading.Thread | None = None
        self.condition: Callable[[], bool] | None = None
        self.until = math.inf
        self.why = ""


class Scheduler:
    """Runs threads in lockstep, in an order that its seed decides, in virtual time.

    The baton may change hands wherever a thread calls `switch` or `block`, and at every line of
    the traced files. When nobody can run, time moves to the earliest deadline; when there is none,
    that is a `Deadlock`. The same seed gives the same order, so every failure can be replayed.

    Locks that the code under test takes must be made by `SimulatedRuntime`: a thread that loses the
    baton while it holds a real lock stops everybody else (a run ends after 60 s of real time).

    Args:
        seed: Of every choice.
        trace: Files, or directories of files, in which a thread may be interrupted at any line.
        switch_probability: How likely it is at a line, from 0 to 1.
        steps_max: Lines and switches after which a run counts as endless.

    Source: systematic concurrency testing as in CHESS (Musuvathi et al., OSDI 2008), with random
    instead of exhaustive choice.
    """

    def __init__(
        self,
        seed: int,
        *,
        trace: Sequence[str | Path] = (),
        switch_probability: float = 0.15,
        steps_max: int = 500_000,
    ) -> None:
        self.random = random.Random(seed)
        self.now = 0.0
        self.steps = 0
        self._trace_paths = tuple(str(Path(path)) for path in trace)
        self._traced: dict[str, bool] = {}
        self._probability = switch_probability
        self._steps_max = steps_max
        self._tasks: list[Task] = []
        self._current: Task | None = None
        self._over = threading.Event()
        self._aborting = False
        self._error: BaseException | None = None
        self._digest = hashlib.blake2b(digest_size=8)

    @property
    def fingerprint(self) -> str:
        """Digest of every choice made: equal for equal schedules."""
        return self._digest.hexdigest()

    @property
    def inside(self) -> bool:
        """Whether the calling thread is the one that holds the baton."""
        task = self._current
        return task is not None and task.thread is threading.current_thread()

    @property
    def current(self) -> Task | None:
        """The thread that holds the baton."""
        return self._current

    @property
    def aborting(self) -> bool:
        """Whether the run is over and its threads are being ended."""
        return self._aborting

    def spawn(self, name: str, work: Callable[[], object], *, daemon: bool = False) -> Task:
        """Add a thread, before or during a run; it waits for its turn."""
        task = Task(name, work, daemon=daemon)
        task.thread = threading.Thread(
            target=self._run_task, args=(task,), name=f"sim:{name}", daemon=True
        )
        self._tasks.append(task)
        task.thread.start()
        return task

    def run(self) -> None:
        """Run until every thread that is no daemon has ended; the others are ended then.

        Raises:
            Deadlock: Nobody can go on.
            AssertionError: The run does not end.
            BaseException: The first error of any thread.
        """
        self._pass_on(None)
        if not self._over.wait(_REAL_S_MAX):
            self._error = self._error or Deadlock(
                f"{self._name()} is stuck outside the scheduler (a real lock?)"
            )
        self._aborting = True
        for task in self._tasks:
            if not task.done and task.thread is not None:
                task.baton.release()
                task.thread.join(5.0)
        if self._error is not None:
            raise self._error

    # -- called by the threads --------------------------------------------------------------------

    def switch(self) -> None:
        """Offer the baton; return when it is this thread's turn (again)."""
        self._yield()

    def block(
        self, condition: Callable[[], bool], *, until: float = math.inf, why: str = "a condition"
    ) -> bool:
        """Give the baton away until a condition holds or the time has come; return the condition.

        The condition is asked by other threads: it must only read.
        """
        task = self._current
        if task is None or self._aborting:
            raise _Aborted
        while not condition():
            if self.now >= until:
                return False
            task.condition, task.until, task.why = condition, until, why
            self._yield()
        return True

    def _yield(self) -> None:
        task = self._current
        if task is None or self._aborting:
            return
        self._count()
        following = self._pass_on(task)
        if following is not task:
            task.baton.acquire()
            if self._aborting:
                raise _Aborted
        task.condition, task.until = None, math.inf

    def _count(self) -> None:
        self.steps += 1
        if self.steps > self._steps_max:
            message = f"still running after {self._steps_max} steps, in {self._name()}"
            self._error = self._error or AssertionError(message)
            raise _Aborted

    def _pass_on(self, giver: Task | None) -> Task | None:
        """Choose who is next and hand over the baton; end the run if there is nobody."""
        following = self._choose()
        if following is None:
            self._current = None
            self._over.set()
            return None
        self._digest.update(following.name.encode() + b";")
        self._current = following
        if following is not giver:
            following.baton.release()
        return following

    def _choose(self) -> Task | None:
        if self._error is not None or all(task.done or task.daemon for task in self._tasks):
            return None
        ready = self._ready()
        if not ready:
            until = min((task.until for task in self._tasks if not task.done), default=math.inf)
            if math.isinf(until):
                waits = [f"{t.name} waits for {t.why}" for t in self._tasks if not t.done]
                self._error = Deadlock("; ".join(waits))
                return None
            self.now = until
            ready = self._ready()
        return self.random.choice(ready)

    def _ready(self) -> list[Task]:
        return [
            task
            for task in self._tasks
            if not task.done
            and (task.condition is None or task.until <= self.now or task.condition())
        ]

    def _name(self) -> str:
        return self._current.name if self._current is not None else "nobody"

    # -- a thread's life --------------------------------------------------------------------------

    def _run_task(self, task: Task) -> None:
        task.baton.acquire()
        try:
            if not self._aborting:
                if self._trace_paths:
                    sys.settrace(self._trace_call)
                task.work()
        except _Aborted:
            pass
        except BaseException as exc:
            self._error = self._error or exc
        finally:
            sys.settrace(None)
            task.done = True
            if not self._aborting:
                self._pass_on(task)

    def _trace_call(self, frame: FrameType, event: str, arg: Any) -> _Tracer | None:
        file = frame.f_code.co_filename
        traced = self._traced.get(file)
        if traced is None:
            parents = {file, *map(str, Path(file).parents)}
            traced = self._traced[file] = not parents.isdisjoint(self._trace_paths)
        return self._trace_line if traced else None

    def _trace_line(self, frame: FrameType, event: str, arg: Any) -> _Tracer:
        if event == "line" and not self._aborting:
            self._count()
            if self.random.random() < self._probability:
                self._digest.update(b"%d," % frame.f_lineno)
                self._yield()
        return self._trace_line
