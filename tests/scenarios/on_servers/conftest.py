"""Engines before Redis and a SQL server; closed at the end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sync_engine import (
    SyncEngine,
    SyncEngineConfig,
)
from tests.scenarios.on_servers.support import FAST, Start


@pytest.fixture
def start(tmp_path: Path, redis_server: Any) -> Iterator[Start]:
    engines: list[SyncEngine] = []

    def start_(sql_url: str | None = None, **settings: Any) -> SyncEngine:
        chosen = {"data_dir": tmp_path / "data", "redis_url": redis_server.url, **FAST, **settings}
        engines.append(SyncEngine(SyncEngineConfig(sql_url=sql_url, **chosen)).start())
        return engines[-1]

    yield start_
    for engine in engines:
        engine.close(timeout=5)


@pytest.fixture(params=["mariadb", "postgres"])
def sql(request: pytest.FixtureRequest) -> tuple[str, Any]:
    url = request.getfixturevalue("archive_url")(request.param)
    return url, request.getfixturevalue(f"{request.param}_server")
