"""What the tests of listings begin with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sync_engine.testing import SystemRuntime


@pytest.fixture
def real() -> Iterator[SystemRuntime]:
    runtime = SystemRuntime("test")
    yield runtime
    runtime.close(1)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state.db"
