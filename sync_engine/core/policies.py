"""When to try again, and when to leave a store alone: plain values that decide and do nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sync_engine.errors import ConfigError

__all__ = ["CircuitConfig", "RetryConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryConfig:
    """How often a failed call is repeated, and after which pauses.

    Attributes:
        attempts_max: Attempts in all, the first one included; 0 is no bound.
        delay_s_min: Shortest pause, in seconds (above 0).
        delay_s_max: Longest pause, in seconds (at least `delay_s_min`).

    Raises:
        ConfigError: A bound is out of range.
    """

    attempts_max: int = 3
    delay_s_min: float = 0.05
    delay_s_max: float = 30.0

    def __post_init__(self) -> None:
        if self.attempts_max < 0:
            raise ConfigError(f"attempts_max must be 0 or more, got {self.attempts_max!r}")
        if not 0 < self.delay_s_min <= self.delay_s_max < math.inf:
            raise ConfigError(
                "delays must be 0 < delay_s_min <= delay_s_max, got "
                f"{self.delay_s_min!r} and {self.delay_s_max!r}"
            )

    @classmethod
    def startup(cls) -> RetryConfig:
        """Return the policy of connecting at start: patient for a few seconds."""
        return cls(attempts_max=5, delay_s_min=0.2, delay_s_max=2.0)

    @classmethod
    def query(cls) -> RetryConfig:
        """Return the policy of a read that somebody waits for: three attempts."""
        return cls(attempts_max=3, delay_s_min=0.05, delay_s_max=2.0)

    @classmethod
    def batch_write(cls) -> RetryConfig:
        """Return the policy of a write that somebody waits for: five attempts."""
        return cls(attempts_max=5, delay_s_min=0.1, delay_s_max=5.0)

    @classmethod
    def daemon(cls) -> RetryConfig:
        """Return the policy of background work: never gives up, at most 30 s apart."""
        return cls(attempts_max=0, delay_s_min=0.1, delay_s_max=30.0)

    def allows(self, attempt: int) -> bool:
        """Whether another attempt may follow the given number of failed ones."""
        return self.attempts_max == 0 or attempt < self.attempts_max

    def delay_s(self, attempt: int, jitter: float) -> float:
        """Return the pause after a failed attempt, in seconds.

        The pause lies anywhere between `delay_s_min` and a ceiling that doubles with every failure
        up to `delay_s_max`, so that callers who failed together do not come back together.

        Args:
            attempt: Failures so far, at least 1; any size.
            jitter: A random number in [0, 1); 0 gives the shortest pause.

        Source: "full jitter" of Brooker, Exponential Backoff And Jitter (AWS, 2015), with a floor.
        """
        try:
            ceiling = min(self.delay_s_max, math.ldexp(self.delay_s_min, attempt))
        except OverflowError:
            ceiling = self.delay_s_max
        return self.delay_s_min + jitter * (ceiling - self.delay_s_min)


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitConfig:
    """When a failing store is left alone, and when it is trusted again.

    Attributes:
        failures_max: Failures in a row that open the circuit (at least 1).
        open_s: Seconds it stays open before one call may probe (above 0).
        successes_min: Probes in a row that must succeed before it closes (at least 1).

    Raises:
        ConfigError: A bound is out of range.
    """

    failures_max: int = 5
    open_s: float = 5.0
    successes_min: int = 1

    def __post_init__(self) -> None:
        for name in ("failures_max", "successes_min"):
            if not getattr(self, name) >= 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)!r}")
        if not 0 < self.open_s < math.inf:
            raise ConfigError(f"open_s must be above 0 seconds, got {self.open_s!r}")

    @classmethod
    def cache(cls) -> CircuitConfig:
        """Return the policy for L2: cheap to probe, so tried again soon."""
        return cls(failures_max=5, open_s=2.0, successes_min=1)

    @classmethod
    def archive(cls) -> CircuitConfig:
        """Return the policy for L3: slow to recover, so two probes have to succeed."""
        return cls(failures_max=3, open_s=5.0, successes_min=2)
