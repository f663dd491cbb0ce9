"""Two engines on one archive issue no equal versions, whatever their logs are called."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from sync_engine import SyncEngine
from sync_engine.config import SyncEngineConfig
from sync_engine.house import Stores
from sync_engine.testing import FlakyStore, ManualRuntime, MemoryArchive


def test_engines_whose_logs_collide_take_numbers_of_their_own(tmp_path: Path) -> None:
    for name in "ab":
        SyncEngine.open(tmp_path / name, sql_url=f"sqlite:///{tmp_path / name}.db").close()
        _rename_log(tmp_path / name / "engine.log.db", "0000002a" + name * 24)
    url = f"sqlite:///{tmp_path / 'shared.db'}"

    with (
        SyncEngine.open(tmp_path / "a", sql_url=url) as a,
        SyncEngine.open(tmp_path / "b", sql_url=url) as b,
    ):
        numbers = {engine.submit("k", b"v").version & 1023 for engine in (a, b)}

    assert len(numbers) == 2


def test_the_claim_is_renewed_about_once_a_minute(tmp_path: Path) -> None:
    runtime = ManualRuntime()
    store = FlakyStore(MemoryArchive(runtime.clock))
    config = SyncEngineConfig(data_dir=tmp_path)
    with SyncEngine(config, runtime=runtime, stores=Stores(None, store)):
        runtime.run_for(30.0)
        assert store.calls["claim_number"] == 1
        runtime.run_for(10 * 60.0)
        assert 9 <= store.calls["claim_number"] <= 12


def test_a_claim_that_failed_is_made_again(tmp_path: Path) -> None:
    runtime = ManualRuntime()
    archive = MemoryArchive(runtime.clock)
    store = FlakyStore(archive)
    config = SyncEngineConfig(data_dir=tmp_path)
    store.fail("claim_number")
    with SyncEngine(config, runtime=runtime, stores=Stores(None, store)):
        runtime.run_for(30.0)
        assert store.calls["claim_number"] == 2


def _rename_log(path: Path, uuid: str) -> None:
    db = sqlite3.connect(path)
    try:
        with db:
            db.execute("UPDATE meta SET value = ? WHERE name = 'uuid'", (uuid,))
            db.execute("DELETE FROM meta WHERE name = 'engine_number'")
    finally:
        db.close()
