"""The one wrapper around every call of a store: circuit breaker, retries, timing."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception

from sync_engine.core.policies import CircuitConfig, RetryConfig
from sync_engine.errors import (
    CircuitOpen,
    Conflict,
    StoreBusy,
    StoreRejected,
    StoreUnavailable,
)
from sync_engine.flow.circuits import CircuitBreaker, CircuitState
from sync_engine.ports import Runtime
from sync_engine.telemetry import Counter, Histogram, Metrics

__all__ = ["Backoff", "Guard"]

P = ParamSpec("P")
R = TypeVar("R")

_LEVELS = {CircuitState.CLOSED: 0, CircuitState.HALF_OPEN: 1, CircuitState.OPEN: 2}


class Guard:
    """Calls a store: never while its circuit is open, again where that may help, always timed.

    Only `StoreUnavailable` counts against the store. Any other error is an answer: the store was
    there to give it.

    Thread-safety: any thread. Cost: about 0.8 µs a call; nothing is held while the call runs.

    Args:
        name: The tier or sink, for errors and as the label ``tier``.
        runtime: Gives clock, randomness and lock.
        circuit: When the store is left alone.
        retry: How often and after which pauses `call_with_retry` repeats.
        timeout_s: Seconds that all attempts and pauses of one `call_with_retry` may take together;
            infinity is no bound. A single attempt is bounded by the store's own timeouts.
        metrics: Where calls are counted; None keeps them to itself.
    """

    def __init__(
        self,
        name: str,
        runtime: Runtime,
        *,
        circuit: CircuitConfig | None = None,
        retry: RetryConfig | None = None,
        timeout_s: float = math.inf,
        metrics: Metrics | None = None,
    ) -> None:
        self.name = name
        self.retry = RetryConfig.query() if retry is None else retry
        self.timeout_s = timeout_s
        self._clock = runtime.clock
        self._random = runtime.random
        self._metrics = Metrics() if metrics is None else metrics
        self._meters: dict[str, _Meters] = {}
        self._openings = self._metrics.counter("circuit_openings", tier=name)
        self.breaker = CircuitBreaker(
            name, runtime, CircuitConfig() if circuit is None else circuit, self._circuit_changed
        )
        breaker = self.breaker
        self._metrics.gauge_callback("circuit_state", lambda: _LEVELS[breaker.state], tier=name)
        self._retrying = Retrying(
            sleep=runtime.clock.sleep,
            retry=retry_if_exception(_passes),
            wait=_wait,
            stop=_stop,
            reraise=True,
        )

    def call(self, operation: str, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Make one attempt: call `fn` with the arguments that follow it.

        The operation says what is tried; it is a label, so it comes from a small fixed set.

        Raises:
            CircuitOpen: Not tried: the store is left alone for ``retry_after_s`` more seconds.
            StoreUnavailable: Tried in vain; the next attempt may succeed.
            Exception: Whatever else the call raises, unchanged.
        """
        meters = self._meters.get(operation) or self._meters_of(operation)
        breaker, monotonic = self.breaker, self._clock.monotonic
        try:
            ticket = breaker.admit(operation)
        except CircuitOpen:
            meters.count("open")
            raise
        started = monotonic()
        try:
            spans = self._metrics.spans
            if spans is None:
                answer = fn(*args, **kwargs)
            else:
                with spans(f"{self.name}.{operation}", meters.labels):
                    answer = fn(*args, **kwargs)
        except BaseException as exc:
            meters.seconds.observe(monotonic() - started)
            meters.count(_outcome(exc))
            if isinstance(exc, StoreBusy) or (
                isinstance(exc, Exception) and not isinstance(exc, StoreUnavailable)
            ):
                breaker.succeeded(ticket)
            else:  # an interrupt proves nothing, so a probe that met one has not succeeded
                breaker.failed(ticket)
            raise
        meters.seconds.observe(monotonic() - started)
        meters.ok.inc()
        breaker.succeeded(ticket)
        return answer

    def call_with_retry(
        self, operation: str, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Make attempts for a caller who waits, until one succeeds or it makes no sense to go on.

        Only `StoreUnavailable` is repeated, and not `CircuitOpen`. No pause is begun that would end
        after `timeout_s`. Blocking: sleeps between attempts; a closing engine ends that early.

        Raises:
            CircuitOpen: The store is left alone for ``retry_after_s`` more seconds.
            StoreUnavailable: The error of the last attempt.
            Exception: Whatever else the call raises, unchanged.
        """
        deadline = self._clock.monotonic() + self.timeout_s
        try:
            return self.call(operation, fn, *args, **kwargs)
        except StoreUnavailable as exc:
            if not _passes(exc):
                raise
            # A first success has cost nothing; from here on tenacity counts, starting with this.
            first = exc
        retries = self._meters_of(operation).retries

        def attempt() -> R:
            retries.inc()
            return self.call(operation, fn, *args, **kwargs)

        def pause_s(failures: int) -> float:
            return self.retry.delay_s(failures, self._random())

        def ends(failures: int, pause_s: float) -> bool:
            late = self._clock.monotonic() + pause_s >= deadline
            return late or not self.retry.allows(failures)

        return self._retrying(_Again(first, attempt, pause_s, ends))

    def _meters_of(self, operation: str) -> _Meters:
        return self._meters.setdefault(operation, _Meters(self._metrics, self.name, operation))

    def _circuit_changed(self, state: CircuitState) -> None:
        if state is CircuitState.OPEN:
            self._openings.inc()


class _Meters:
    """The meters of one operation."""

    def __init__(self, metrics: Metrics, tier: str, operation: str) -> None:
        self._metrics = metrics
        self.labels = {"tier": tier, "operation": operation}
        self.seconds: Histogram = metrics.histogram("operation_seconds", **self.labels)
        self.retries: Counter = metrics.counter("retries", **self.labels)
        self.ok: Counter = metrics.counter("operations", outcome="ok", **self.labels)

    def count(self, outcome: str) -> None:
        self._metrics.counter("operations", outcome=outcome, **self.labels).inc()


class _Again(Generic[R]):
    """The repeated attempts of one call; the first one has failed already and is only told."""

    def __init__(
        self,
        first: StoreUnavailable,
        attempt: Callable[[], R],
        pause_s: Callable[[int], float],
        ends: Callable[[int, float], bool],
    ) -> None:
        self._first: StoreUnavailable | None = first
        self._attempt = attempt
        self.pause_s = pause_s
        self.ends = ends

    def __call__(self) -> R:
        first, self._first = self._first, None
        if first is not None:
            raise first
        return self._attempt()


def _wait(state: RetryCallState) -> float:
    again: _Again[Any] = state.fn  # type: ignore[assignment]
    return again.pause_s(state.attempt_number)


def _stop(state: RetryCallState) -> bool:
    again: _Again[Any] = state.fn  # type: ignore[assignment]
    return again.ends(state.attempt_number, state.upcoming_sleep)


def _passes(exc: BaseException) -> bool:
    """Whether waiting a little may help."""
    return isinstance(exc, StoreUnavailable) and not isinstance(exc, CircuitOpen)


def _outcome(exc: BaseException) -> str:
    if isinstance(exc, StoreUnavailable):
        return "unavailable"
    if isinstance(exc, StoreRejected):
        return "rejected"
    return "conflict" if isinstance(exc, Conflict) else "error"


class Backoff:
    """The pauses of a follower, which returns them instead of sleeping. One owner at a time.

    Attributes:
        attempts: Failures since the last success.
    """

    def __init__(self, retry: RetryConfig, random: Callable[[], float]) -> None:
        self._retry = retry
        self._random = random
        self.attempts = 0

    def failed(self) -> float:
        """Count a failure; return the seconds to wait before the next attempt."""
        self.attempts += 1
        return self._retry.delay_s(self.attempts, self._random())

    def succeeded(self) -> None:
        """Start anew."""
        self.attempts = 0
