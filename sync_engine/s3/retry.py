"""Attempts with full jitter until one succeeds or the operation's deadline is over."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextvars import ContextVar
from typing import Final, TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception

from sync_engine.core.policies import RetryConfig
from sync_engine.errors import CircuitOpen, StoreBusy, StoreUnavailable
from sync_engine.ports import Clock

__all__ = ["Attempts", "time_left_s"]

R = TypeVar("R")

_deadline: ContextVar[tuple[Clock, float] | None] = ContextVar("s3_deadline", default=None)
_POLICY: Final = RetryConfig(attempts_max=0, delay_s_min=0.05, delay_s_max=10.0)


def time_left_s() -> float:
    """Return the seconds until the deadline of the operation that this thread is in."""
    held = _deadline.get()
    return math.inf if held is None else held[1] - held[0].monotonic()


class Attempts:
    """Repeats what failed for a passing reason, within a total time.

    Thread-safety: any thread. Blocking: sleeps on the clock between attempts. A closing runtime
    ends that early; one more attempt is made then, and none after it.

    Args:
        clock: Measures and sleeps.
        random: Gives numbers in [0, 1).
        deadline_s: Seconds for all attempts and pauses of one operation (above 0).
        policy: Pauses; None is 50 ms doubling to 10 s, without a bound on attempts.
    """

    def __init__(
        self,
        clock: Clock,
        random: Callable[[], float],
        deadline_s: float,
        policy: RetryConfig | None = None,
    ) -> None:
        self._clock = clock
        self._random = random
        self._deadline_s = deadline_s
        self._policy = policy or _POLICY
        self.retries = 0

    def run(self, attempt: Callable[[int], R], *, once: bool = False) -> R:
        """Call `attempt` with its number, from 1, until it succeeds.

        A nested call keeps the deadline of the outer one. What the server says in Retry-After is
        waited for, unless the deadline is sooner: then the error is raised at once.

        Args:
            attempt: Makes one attempt.
            once: Make one attempt alone, still under the deadline.

        Raises:
            StoreUnavailable: The error of the last attempt that the deadline did not cut short.
            Exception: Whatever else an attempt raises, unchanged.
        """
        until = min(self._clock.monotonic() + self._deadline_s, self._outer())
        token = _deadline.set((self._clock, until))
        try:
            if once:
                return attempt(1)
            told: StoreUnavailable | None = None
            for made in self._retrying(until):
                with made:
                    number = made.retry_state.attempt_number
                    self.retries += number > 1
                    try:
                        return attempt(number)
                    except StoreUnavailable as exc:
                        if told is not None and self._clock.monotonic() >= until:
                            raise told from exc  # that time was up says nothing of the server
                        told = exc
                        raise
        finally:
            _deadline.reset(token)
        raise AssertionError("tenacity raises the last error")

    def _outer(self) -> float:
        held = _deadline.get()
        return math.inf if held is None else held[1]

    def _retrying(self, until: float) -> Retrying:
        def pause_s(state: RetryCallState) -> float:
            delay_s = self._policy.delay_s(state.attempt_number, self._random())
            exc = state.outcome.exception() if state.outcome is not None else None
            asked_s = exc.retry_after_s if isinstance(exc, StoreBusy) else 0.0
            return max(delay_s, asked_s * (1.0 + 0.25 * self._random()))

        cut_short = False

        def sleep(seconds: float) -> None:
            nonlocal cut_short
            began = self._clock.monotonic()
            self._clock.sleep(seconds)
            cut_short = self._clock.monotonic() - began < seconds / 2

        def ends(state: RetryCallState) -> bool:
            late = self._clock.monotonic() + state.upcoming_sleep >= until
            return late or cut_short or not self._policy.allows(state.attempt_number)

        return Retrying(
            sleep=sleep,
            retry=retry_if_exception(_passes),
            wait=pause_s,
            stop=ends,
            reraise=True,
        )


def _passes(exc: BaseException) -> bool:
    return isinstance(exc, StoreUnavailable) and not isinstance(exc, CircuitOpen)
