"""Retry and circuit policies decide from numbers alone."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sync_engine.core.policies import CircuitConfig, RetryConfig
from sync_engine.errors import ConfigError

SECONDS = st.floats(min_value=1e-3, max_value=1e6)
JITTER = st.floats(min_value=0, max_value=1, exclude_max=True)


@given(a=SECONDS, b=SECONDS, attempt=st.integers(min_value=1, max_value=10**30), jitter=JITTER)
def test_every_pause_lies_within_the_bounds(
    a: float, b: float, attempt: int, jitter: float
) -> None:
    retry = RetryConfig(delay_s_min=min(a, b), delay_s_max=max(a, b))

    assert min(a, b) <= retry.delay_s(attempt, jitter) <= max(a, b) * (1 + 1e-12)


def test_the_longest_pause_doubles_until_its_bound() -> None:
    retry = RetryConfig(delay_s_min=0.1, delay_s_max=1.0)

    longest = [retry.delay_s(attempt, 1 - 1e-12) for attempt in range(1, 7)]

    assert longest == pytest.approx([0.2, 0.4, 0.8, 1.0, 1.0, 1.0])


def test_callers_that_failed_together_do_not_come_back_together() -> None:
    retry = RetryConfig(delay_s_min=0.1, delay_s_max=10.0)

    pauses = {retry.delay_s(1, jitter / 100) for jitter in range(100)}

    assert len(pauses) == 100


def test_attempts_are_counted_in_all() -> None:
    retry = RetryConfig(attempts_max=3)

    assert [retry.allows(failed) for failed in (1, 2, 3, 4)] == [True, True, False, False]


def test_zero_attempts_is_no_bound() -> None:
    assert RetryConfig.daemon().allows(10**30)


def test_presets_suit_their_purpose() -> None:
    for preset in (RetryConfig.startup(), RetryConfig.query(), RetryConfig.batch_write()):
        worst_s = sum(preset.delay_s(n, 0.999) for n in range(1, preset.attempts_max))
        assert 0 < worst_s < 20
    assert RetryConfig.daemon().delay_s(10**6, 0.999) <= 30
    assert CircuitConfig.cache().open_s < CircuitConfig.archive().open_s


@pytest.mark.parametrize(
    "bounds",
    [
        {"attempts_max": -1},
        {"delay_s_min": 0.0},
        {"delay_s_min": 2.0, "delay_s_max": 1.0},
        {"delay_s_max": math.inf},
        {"delay_s_min": math.nan},
    ],
)
def test_a_retry_policy_out_of_range_is_refused(bounds: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        RetryConfig(**bounds)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "bounds",
    [{"failures_max": 0}, {"successes_min": 0}, {"open_s": 0.0}, {"open_s": math.nan}],
)
def test_a_circuit_policy_out_of_range_is_refused(bounds: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        CircuitConfig(**bounds)  # type: ignore[arg-type]
