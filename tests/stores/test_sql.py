"""The SQL archive keeps the contract of `ports.ArchiveStore` on every database."""

from __future__ import annotations

import pytest

from sync_engine.stores.sql import SqlArchive
from sync_engine.testing import ManualClock
from sync_engine.testing.contracts.archive import (
    ArchiveContract,
    EngineNumberContract,
    MakeArchive,
    SoleWriterContract,
)


@pytest.fixture
def make_archive(any_sql_url: str, clock: ManualClock) -> MakeArchive:
    return lambda: SqlArchive(any_sql_url, clock=clock, timeout_s=5.0)


class TestSqlArchive(ArchiveContract):
    pass


class TestSoleWriter(SoleWriterContract):
    pass


class TestEngineNumbers(EngineNumberContract):
    pass
