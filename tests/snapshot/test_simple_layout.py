"""Replicas of the simple layout are read, and read better than by the greatest number."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard

from sync_engine.errors import CorruptData
from sync_engine.sinks.snapshot.errors import NoBackup
from sync_engine.sinks.snapshot.objects import DirectoryObjects
from sync_engine.sinks.snapshot.simple_layout import SimpleRestored, restore_simple
from tests.snapshot.kit import Replica, assert_identical, rows
from tests.snapshot.test_capture import fill


class SimpleWriter:
    """Writes the layout as documented; the time of every object is one second after the last."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "target"
        self.db = directory / "a.db"
        self.out = directory / "out.db"
        self.seconds = 1_790_000_000
        self.c = sqlite3.connect(self.db, isolation_level=None)
        self.c.execute("PRAGMA journal_mode=WAL")
        self.c.execute("PRAGMA wal_autocheckpoint=0")

    def _store(self, key: str, data: bytes) -> None:
        path = self.root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        self.seconds += 1
        os.utime(path, (self.seconds, self.seconds))

    def begin(self, count: int) -> None:
        """Make a snapshot of so many rows, behind an empty log."""
        fill(self.c, count)
        self.checkpoint("TRUNCATE")
        self.snapshot("20260101_100000")

    def checkpoint(self, mode: str) -> None:
        self.c.execute(f"PRAGMA wal_checkpoint({mode})").fetchall()

    def snapshot(self, name: str) -> None:
        key = f"snapshots/{name}.sqlite.zst"
        self._store(key, zstandard.ZstdCompressor().compress(self.db.read_bytes()))
        self._store("metadata.json", json.dumps({"latest_snapshot": key}).encode())

    def segment(self) -> None:
        data = Path(f"{self.db}-wal").read_bytes()
        frames = (len(data) - 32) // 4120
        self._store(f"wal/{frames:020}.wal.zst", zstandard.ZstdCompressor().compress(data))

    def restored(self) -> SimpleRestored:
        return restore_simple(DirectoryObjects(self.root), self.out)

    def assert_restored(self) -> None:
        """Compare what was restored with the database, which nobody uses any more."""
        self.c.close()
        assert_identical(self.db, self.out)


@pytest.fixture
def simple(tmp_path: Path) -> Iterator[SimpleWriter]:
    made = SimpleWriter(tmp_path)
    yield made
    made.c.close()


def test_a_snapshot_and_its_log_are_restored(simple: SimpleWriter) -> None:
    simple.begin(50)
    for _ in range(3):
        fill(simple.c, 20)
        simple.segment()

    done = simple.restored()

    assert len(done.logs) == 1
    assert rows(simple.out) == 110
    simple.assert_restored()


def test_a_long_old_log_never_wins_over_a_newer_snapshot(simple: SimpleWriter) -> None:
    """The greatest number is the oldest state here."""
    fill(simple.c, 100)
    simple.segment()
    simple.c.execute("DELETE FROM t WHERE id > 46")
    simple.checkpoint("TRUNCATE")
    simple.c.execute("VACUUM")
    simple.checkpoint("TRUNCATE")
    simple.snapshot("20260101_100000")
    fill(simple.c, 4)
    simple.segment()

    done = simple.restored()

    assert rows(simple.out) == 50
    assert any("older than the snapshot" in line for line in done.ignored)


def test_successive_logs_are_applied_in_the_order_of_their_restarts(simple: SimpleWriter) -> None:
    simple.begin(10)
    fill(simple.c, 60)
    simple.segment()
    simple.checkpoint("TRUNCATE")
    fill(simple.c, 5)  # its number is smaller than that of the log before it
    simple.segment()

    done = simple.restored()

    assert len(done.logs) == 2
    assert rows(simple.out) == 75
    simple.assert_restored()


def test_a_log_that_was_overwritten_is_not_guessed_at(simple: SimpleWriter) -> None:
    """A log that restarts in place keeps its length, so it takes the key of the one before."""
    simple.begin(10)
    fill(simple.c, 60)
    simple.segment()
    simple.checkpoint("RESTART")
    fill(simple.c, 5)
    simple.segment()

    done = simple.restored()

    assert rows(simple.out) == 10
    assert done.ignored


def test_damage_is_told_and_an_empty_target_is_none(simple: SimpleWriter, tmp_path: Path) -> None:
    simple.begin(10)
    path = next(simple.root.glob("snapshots/*"))
    path.write_bytes(path.read_bytes()[:100])

    with pytest.raises(CorruptData):
        simple.restored()
    (tmp_path / "empty").mkdir()
    with pytest.raises(NoBackup):
        restore_simple(DirectoryObjects(tmp_path / "empty"), simple.out)

    assert not simple.out.exists()


def test_the_command_restores_it(simple: SimpleWriter, tmp_path: Path) -> None:
    simple.begin(10)
    rep = Replica(tmp_path, str(simple.root))

    path = rep.restore(None, "--layout", "simple")

    assert rows(path) == 10
