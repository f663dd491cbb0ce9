"""Two engines on one archive issue no equal versions, whatever their logs are called."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from sync_engine import SyncEngine


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


def _rename_log(path: Path, uuid: str) -> None:
    db = sqlite3.connect(path)
    try:
        with db:
            db.execute("UPDATE meta SET value = ? WHERE name = 'uuid'", (uuid,))
            db.execute("DELETE FROM meta WHERE name = 'engine_number'")
    finally:
        db.close()
