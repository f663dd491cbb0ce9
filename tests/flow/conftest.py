from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sync_engine.flow.guard import Guard
from sync_engine.telemetry import Metrics
from tests.flow.support_ends import Bench
from tests.flow.support_guard import CIRCUIT, RETRY, SteppedTime, Store


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """One engine whose jobs run when told."""
    made = Bench(tmp_path)
    yield made
    made.engine.close(0)


@pytest.fixture
def time() -> SteppedTime:
    return SteppedTime()


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def guard(time: SteppedTime, metrics: Metrics) -> Guard:
    return Guard("l2", time, circuit=CIRCUIT, retry=RETRY, timeout_s=60.0, metrics=metrics)
