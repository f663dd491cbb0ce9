"""Circuit breakers: a store that failed several times in a row is left alone for a while.

The states and their counting are pybreaker's; when a call may pass is decided here, because
pybreaker reads the wall clock, and lets every waiting caller through a half-open circuit at once.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

from sync_engine.core.policies import CircuitConfig
from sync_engine.errors import CircuitOpen
from sync_engine.ports import Runtime

__all__ = ["BackendCircuits", "CircuitBreaker", "CircuitState"]


class CircuitState(enum.StrEnum):
    """Whether calls pass."""

    CLOSED = "closed"
    HALF_OPEN = "half_open"
    OPEN = "open"


class CircuitBreaker:
    """Counts failures in a row and refuses calls once there were too many.

    A call asks `admit` for a ticket and hands it back to `succeeded` or `failed`. Nothing is held
    while it runs. Once the circuit was open for `open_s`, one call at a time may probe; a probe
    that has not come back after another `open_s` loses its turn. A result that arrives after the
    circuit changed its state says nothing about the new one and is ignored.

    Thread-safety: any thread. Cost: about 0.3 µs a call while all is well.

    Args:
        name: The store's name, for errors.
        runtime: Gives clock and lock.
        config: When to open, for how long, when to close.
        on_change: Told the new state after each change, under the breaker's lock: must be quick.
    """

    def __init__(
        self,
        name: str,
        runtime: Runtime,
        config: CircuitConfig,
        on_change: Callable[[CircuitState], None] | None = None,
    ) -> None:
        self.name = name
        self.config = config
        self._clock = runtime.clock
        self._lock = runtime.lock()
        self._on_change = on_change
        self._state = CircuitState.CLOSED
        self._unblemished = True  # closed, and no failure since the last success
        self._ticket = 0  # grows with every change of state
        self._admit_at = 0.0  # monotonic seconds from which the next probe may pass
        self._machine: Any = None

    @property
    def state(self) -> CircuitState:
        """The state as of the last call; an open circuit turns half-open with the next probe."""
        return self._state

    @property
    def retry_after_s(self) -> float:
        """Seconds until a call has a chance; 0 where it has one now."""
        if self._state is CircuitState.CLOSED:
            return 0.0
        return max(0.0, self._admit_at - self._clock.monotonic())

    def admit(self, operation: str) -> int:
        """Return a ticket for one call.

        Raises:
            CircuitOpen: The store is left alone, or another caller is probing it.
        """
        if self._state is CircuitState.CLOSED:
            return self._ticket
        with self._lock:
            if self.state is CircuitState.CLOSED:
                return self._ticket
            now = self._clock.monotonic()
            if now < self._admit_at:
                raise CircuitOpen(self.name, operation, self._admit_at - now)
            if self._state is CircuitState.OPEN:
                self._machine.half_open()
            self._admit_at = now + self.config.open_s
            return self._ticket

    def succeeded(self, ticket: int) -> None:
        """Report that the store did its part, whatever the answer was."""
        if self._unblemished:
            return
        with self._lock:
            if ticket == self._ticket:
                self._admit_at = 0.0  # the next probe need not wait
                self._machine.call(_succeed)
                self._unblemished = self._state is CircuitState.CLOSED

    def failed(self, ticket: int) -> None:
        """Report that the store did not answer, or that the call was torn away."""
        machine = self._machine or self._build()
        with self._lock:
            if ticket == self._ticket:
                self._unblemished = False
                try:
                    machine.call(_fail)
                except _Failure:
                    return

    def _build(self) -> Any:
        # Only a failure needs pybreaker, and importing it imports redis-py where that is installed:
        # an engine without Redis should not pay for it at start.
        import pybreaker

        breaker = self

        class Watch(pybreaker.CircuitBreakerListener):
            def state_change(self, cb: Any, old_state: Any, new_state: Any) -> None:
                breaker._changed(CircuitState(new_state.name.replace("-", "_")))

        machine: Any = pybreaker.CircuitBreaker(
            fail_max=self.config.failures_max,
            success_threshold=self.config.successes_min,
            listeners=[Watch()],
            name=self.name,
            throw_new_error_on_trip=False,
        )
        with self._lock:
            if self._machine is None:
                self._machine = machine
            return self._machine

    def _changed(self, state: CircuitState) -> None:
        self._state = state
        self._ticket += 1
        if state is CircuitState.OPEN:
            self._admit_at = self._clock.monotonic() + self.config.open_s
        if self._on_change is not None:
            self._on_change(state)


class _Failure(Exception):
    """Stands in for the store's error, whose traceback stays as it is."""


def _fail() -> NoReturn:
    raise _Failure


def _succeed() -> None:
    pass


class BackendCircuits(Mapping[str, CircuitBreaker]):
    """The breakers of an engine by the name of their store, for `health()`."""

    def __init__(self) -> None:
        self._breakers: dict[str, CircuitBreaker] = {}

    def add(self, breaker: CircuitBreaker) -> None:
        """Include a breaker; one of the same name is replaced."""
        self._breakers[breaker.name] = breaker

    def __getitem__(self, name: str) -> CircuitBreaker:
        return self._breakers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._breakers)

    def __len__(self) -> int:
        return len(self._breakers)

    def states(self) -> dict[str, CircuitState]:
        """Return the state of each circuit."""
        return {name: breaker.state for name, breaker in self._breakers.items()}

    @property
    def retry_after_s(self) -> float:
        """Seconds until some store may be tried again; infinity where no circuit is open."""
        waits = [b.retry_after_s for b in self._breakers.values() if b.state != CircuitState.CLOSED]
        return min(waits, default=math.inf)
