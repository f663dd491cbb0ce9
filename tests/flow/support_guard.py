"""A clock, a store and settings for the tests of the guard."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from sync_engine.core.policies import CircuitConfig, RetryConfig
from sync_engine.errors import (
    StoreUnavailable,
)
from sync_engine.flow.guard import Guard

CIRCUIT = CircuitConfig(failures_max=3, open_s=10.0, successes_min=1)


RETRY = RetryConfig(attempts_max=4, delay_s_min=1.0, delay_s_max=8.0)


class SteppedTime:
    """A clock on which sleeping passes the time at once, and a runtime around it."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.pauses: list[float] = []

    @property
    def clock(self) -> SteppedTime:
        return self

    def monotonic(self) -> float:
        return self.now_s

    def now_ms(self) -> int:
        raise AssertionError("a guard must not read the wall clock")

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now_s += seconds

    def lock(self) -> Any:
        return threading.Lock()

    def random(self) -> float:
        return 0.0

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"a guard must not use {name}")


class Store:
    """Answers or fails as told, and counts."""

    def __init__(self) -> None:
        self.calls = 0
        self.error: BaseException | None = None
        self.failures_left = 0

    def get(self, id: str = "a") -> str:
        self.calls += 1
        if self.error is not None:
            raise self.error
        if self.failures_left:
            self.failures_left -= 1
            raise StoreUnavailable("redis", "get")
        return id


def fail(guard: Guard, store: Store, times: int) -> None:
    store.failures_left = times
    for _ in range(times):
        with pytest.raises(StoreUnavailable):
            guard.call("get", store.get)
