"""Time, locks and jobs."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from typing import Any, Protocol

__all__ = ["Clock", "Event", "Runtime"]


class Clock(Protocol):
    """The only way to learn or let pass time."""

    def now_ms(self) -> int:
        """Return wall-clock milliseconds since 1970."""

    def monotonic(self) -> float:
        """Return seconds that never go back."""

    def sleep(self, seconds: float) -> None:
        """Block the calling thread; ends early when the runtime closes."""


class Event(Protocol):
    """A flag to wait on, as ``threading.Event``."""

    def set(self) -> None:
        """Raise the flag."""

    def clear(self) -> None:
        """Lower the flag."""

    def is_set(self) -> bool:
        """Tell whether it is raised."""

    def wait(self, timeout: float | None = None) -> bool:
        """Block until raised; return False at the timeout."""


class Runtime(Protocol):
    """Time, randomness, locks and jobs; a test runs the engine on a runtime of its own."""

    @property
    def clock(self) -> Clock:
        """The clock."""

    def lock(self) -> AbstractContextManager[Any]:
        """Make a lock, used as a context manager only."""

    def event(self) -> Event:
        """Make an event."""

    def random(self) -> float:
        """Return a number in [0, 1)."""

    def add_job(self, name: str, step: Callable[[], float]) -> None:
        """Run a bounded step again and again, in a thread of its own.

        The step returns the seconds to wait before the next one; infinity waits for `wake`. A step
        that raises is reported and repeated after a jittered, growing delay.
        """

    def wake(self, name: str) -> None:
        """End the waiting of a job now. Cheap, never blocks, unknown names are ignored."""

    def remove_job(self, name: str, timeout_s: float) -> bool:
        """Stop a job and join it; return False if its step did not end in time."""

    def executor(self) -> Executor:
        """Return a small pool of threads for calls that block; made on first use."""

    def at_exit(self, callback: Callable[[], object] | None) -> None:
        """Call back when the interpreter exits, before its threads die; None takes that back."""

    def close(self, timeout_s: float) -> list[str]:
        """Stop and join every job; return the names of those that did not stop in time."""
