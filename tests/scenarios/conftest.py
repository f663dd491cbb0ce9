from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sync_engine.config import SyncEngineConfig
from sync_engine.engine import SyncEngine
from sync_engine.house import Stores
from tests.scenarios.support_embedded import Servers, Start


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start engines in one place, embedded unless stores are given; closed at the end."""
    engines: list[SyncEngine] = []

    def start_(stores: Stores | None = None, **settings: Any) -> SyncEngine:
        settings.setdefault("data_dir", tmp_path / "data")
        engine = SyncEngine(SyncEngineConfig(**settings), stores=stores).start()
        engines.append(engine)
        return engine

    yield start_
    for engine in engines:
        engine.close(timeout=5)


@pytest.fixture
def engine(start: Start) -> SyncEngine:
    return start()


@pytest.fixture
def servers() -> Servers:
    return Servers()
