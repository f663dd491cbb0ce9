"""A target that is down for longer than the stage has room for: the application goes on."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import pytest

from sync_engine.sinks.snapshot.capture import Capture, Origin
from sync_engine.sinks.snapshot.database import Database
from sync_engine.sinks.snapshot.keys import SegmentKey
from sync_engine.sinks.snapshot.settings import ReplicationSettings
from sync_engine.sinks.snapshot.stage import Stage, StageFull
from sync_engine.sinks.snapshot.state import StateFile
from sync_engine.testing import ManualRuntime
from tests.snapshot.kit import Replica, assert_identical, until
from tests.snapshot.test_capture import fill, grow

SMALL = (
    "--interval", "100ms", "--option", "stage_bytes_max=200000", "--option", "part_bytes=65536",
    "--no-lease",
)  # fmt: skip
BUSY_TIMEOUT_S = 5.0
"""What Python's `sqlite3` waits unless told otherwise."""


@contextmanager
def down(rep: Replica) -> Iterator[None]:
    """Let the target refuse: a file is where its directory has to be."""
    v1 = Path(rep.target) / "v1"
    v1.rename(rep.dir / "away")
    v1.touch()
    yield
    v1.unlink()
    (rep.dir / "away").rename(v1)


def change(c: sqlite3.Connection, first: int, last: int) -> None:
    """Write to rows that are there: a database that grows tells by itself what was missed."""
    c.execute("UPDATE t SET v = randomblob(4000) WHERE id BETWEEN ? AND ?", (first, last))


def fill_up(rep: Replica, c: sqlite3.Connection) -> None:
    """Write until the stage takes nothing more."""

    def full() -> bool:
        change(c, 1, 10)
        return bool(rep.status()["stage_full"])

    until(full)


@pytest.mark.parametrize("mode", ["FULL", "RESTART", "TRUNCATE"])
def test_a_full_stage_holds_up_no_checkpoint_of_the_application(rep: Replica, mode: str) -> None:
    c = rep.connect()
    fill(c, 80, 4000)
    rep.start(*SMALL, SLOW_PUT_S="0.3")  # room comes object by object
    rep.durable()
    c.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_S * 1000:.0f}")
    took, busy, log_bytes = [], [], []

    with down(rep):
        fill_up(rep, c)
        for first in (11, 31, 51):
            change(c, first, first + 19)
            began = time.monotonic()
            busy.append(c.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()[0])
            took.append(time.monotonic() - began)
            change(c, 1, 1)
            log_bytes.append(Path(f"{rep.db}-wal").stat().st_size)
        staged = rep.status()["staged_bytes"]
        assert rep.status()["stage_full"]

    assert busy == [0, 0, 0]
    assert max(took) < BUSY_TIMEOUT_S / 2, took
    assert took[2] < 0.5  # nothing is held any more: it is not found out anew every time
    if mode == "TRUNCATE":
        assert max(log_bytes) < 50_000
    assert 0 < staged <= 200_000
    rep.durable()
    capture = rep.status()["capture"]
    assert (capture["yields"], capture["full_scans"]) == (1, 1)
    assert capture["comparisons"] <= 2  # one that found no room, and one when nothing else waited
    fill(c, 20)  # and the pins are back: nothing is compared from here on
    rep.durable()
    assert rep.status()["capture"]["comparisons"] == capture["comparisons"]
    c.close()
    rep.stop()
    assert_identical(rep.db, rep.restore())


def test_what_was_missed_is_not_compared_again_for_every_object_that_leaves(
    tmp_path: Path, runtime: ManualRuntime
) -> None:
    stage = Stage(tmp_path / "stage", 100, runtime)
    for txid in (2, 3, 4):
        key = SegmentKey("0" * 32, 1, 0, txid, txid)
        stage.admit(key, stage.write(key, b"x" * 30))

    stage.drain()

    seen = []
    while (waiting := stage.next()) is not None:
        seen.append(stage.full)
        stage.done(waiting)
    assert seen == [True, True, True]
    assert not stage.full


def test_no_image_is_taken_while_the_stage_is_full(tmp_path: Path, runtime: ManualRuntime) -> None:
    """It would take the pins again that were dropped."""

    class Untouched:
        page_size = 4096

    settings = ReplicationSettings()
    stage = Stage(tmp_path / "stage", 100, runtime)
    database = cast("Database", Untouched())
    capture = Capture(database, StateFile(tmp_path), stage, runtime, settings, lambda: None)
    capture.full = "the quota is reached"

    assert capture.open_image() is None


def test_a_full_stage_keeps_its_place_where_nobody_waits(rep: Replica) -> None:
    c = rep.connect()
    fill(c, 20, 4000)
    rep.start(*SMALL)
    rep.durable()

    with down(rep):
        fill_up(rep, c)
        for _ in range(10):  # idle, busy, and the passive checkpoints of every commit
            time.sleep(0.15)
            fill(c, 50, 4000)
        time.sleep(1.2)

    rep.durable()
    capture = rep.status()["capture"]
    assert (capture["yields"], capture["comparisons"]) == (0, 0)
    c.close()
    rep.stop()
    assert_identical(rep.db, rep.restore())


@pytest.mark.parametrize("full", [True, False])
def test_a_snapshot_that_found_no_room_holds_up_no_checkpoint_either(
    rep: Replica, full: bool
) -> None:
    """Its image is a read pin too, and it has more chunks than may wait at once."""
    c = rep.connect()
    fill(c, 10, 4000)
    rep.once("--no-lease")
    grow(c, 300, 4000)
    rep.once("--no-lease")
    c.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_S * 1000:.0f}")

    rep.start(*SMALL, "--snapshot-interval", "1ms", "--option", "chunk_bytes=65536")

    with down(rep):
        fill(c, 1)
        until(lambda: rep.status()["snapshot"]["error"])  # it reads, and has to wait
        assert not rep.status()["stage_full"]
        if full:
            fill_up(rep, c)
        began = time.monotonic()
        (busy, *_) = c.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        took = time.monotonic() - began

    assert busy == 0
    assert took < BUSY_TIMEOUT_S / 2
    rep.durable()
    made = rep.status()["snapshot"]["made"]
    fill(c, 1)
    until(lambda: rep.status()["snapshot"]["made"] > made)
    c.close()
    rep.stop()
    assert_identical(rep.db, rep.restore())


def elsewhere(path: Path, script: str) -> None:
    """Write from another process: the replicator shares its own with nobody."""
    program = "import sqlite3, sys; sqlite3.connect(sys.argv[1]).executescript(sys.argv[2])"
    subprocess.run([sys.executable, "-c", program, path, script], check=True)


def test_a_full_disk_is_not_answered_by_comparing_all_pages_all_the_time(
    tmp_path: Path, runtime: ManualRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere(
        tmp_path / "a.db", "PRAGMA journal_mode=WAL; CREATE TABLE t(v); INSERT INTO t VALUES(1);"
    )
    database = Database(tmp_path / "a.db")
    file = StateFile(tmp_path)
    stage = Stage(tmp_path / "stage", 1 << 20, runtime)
    capture = Capture(database, file, stage, runtime, ReplicationSettings(), lambda: None)
    capture.begin(Origin("0" * 32, 1, 1))

    def no_space(*_: object) -> Path:
        raise StageFull("No space left on device")

    try:
        with monkeypatch.context() as patched:
            patched.setattr(stage, "write", no_space)
            capture.release()
            elsewhere(tmp_path / "a.db", "UPDATE t SET v = 2;")
            for _ in range(20):
                capture.step()
                runtime.clock.advance(0.1)
            assert capture.full
            assert capture.counts.comparisons == 1
        runtime.clock.advance(5.0)
        for _ in range(3):
            capture.step()
            runtime.clock.advance(1.0)
        assert not capture.full
        assert stage.next() is not None
    finally:
        capture.close_image()
        database.close()
        file.close()
