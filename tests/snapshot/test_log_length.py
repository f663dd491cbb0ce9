"""A fast writer's log stays short: it is begun anew, and nothing slow is done while it grows."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sync_engine.sinks.snapshot.capture import Capture, Origin
from sync_engine.sinks.snapshot.database import Database
from sync_engine.sinks.snapshot.format import (
    SEGMENT_HEADER_SIZE,
    compress,
    decompress,
    read_segment_header,
)
from sync_engine.sinks.snapshot.settings import ReplicationSettings
from sync_engine.sinks.snapshot.stage import Stage
from sync_engine.sinks.snapshot.state import StateFile
from sync_engine.testing import ManualClock, ManualRuntime

LEVEL = 19
SETTINGS = ReplicationSettings(seal_pages=50, checkpoint_pages=1000, compression_level=LEVEL)
WORDS = (
    "PRAGMA wal_autocheckpoint=0; WITH RECURSIVE s(i) AS"
    " (SELECT 1 UNION ALL SELECT i + 1 FROM s WHERE i < {})"
    " INSERT INTO t SELECT printf('%d and %d are %d', i, i * i % 7919, i * 17 % 101) FROM s;"
)
COPYING = """
import fcntl, sys
shared = open(sys.argv[1], "r+b")
fcntl.lockf(shared, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 121)  # what a checkpoint holds
print("held", flush=True)
sys.stdin.readline()
fcntl.lockf(shared, fcntl.LOCK_UN, 1, 121)
print("free", flush=True)
sys.stdin.readline()
"""


class NoticedClock(ManualClock):
    """A manual clock that tells of every sleep."""

    slept: Callable[[], object] = staticmethod(lambda: None)

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        self.slept()


def elsewhere(path: Path, script: str) -> None:
    """Write from another process: the replicator shares its own with nobody."""
    program = "import sqlite3, sys; sqlite3.connect(sys.argv[1]).executescript(sys.argv[2])"
    subprocess.run([sys.executable, "-c", program, path, script], check=True)


@pytest.fixture
def clock() -> NoticedClock:
    return NoticedClock()


@pytest.fixture
def stage(tmp_path: Path, clock: NoticedClock) -> Stage:
    return Stage(tmp_path / "stage", 1 << 20, ManualRuntime(clock))


@pytest.fixture
def capture(tmp_path: Path, clock: NoticedClock, stage: Stage) -> Iterator[Capture]:
    elsewhere(tmp_path / "a.db", "PRAGMA journal_mode=WAL; CREATE TABLE t(v);")
    database = Database(tmp_path / "a.db")
    file = StateFile(tmp_path)
    made = Capture(database, file, stage, ManualRuntime(clock), SETTINGS, lambda: None)
    made.begin(Origin("0" * 32, 1, 1))
    yield made
    made.close_image()
    database.close()
    file.close()


def salts(database: Path) -> bytes:
    return Path(f"{database}-wal").read_bytes()[16:24]


def level_of_next(stage: Stage) -> int:
    """Return which of two levels the next segment in the stage was compressed with."""
    staged = stage.next()
    assert staged is not None
    data = staged.path.read_bytes()
    body = data[SEGMENT_HEADER_SIZE:]
    header = read_segment_header("x", data)
    raw = decompress("x", body, (4 + header.page_size) * header.page_count)
    stage.done(staged)
    by_level = {compress(raw, level): level for level in (1, LEVEL)}
    assert len(by_level) == 2
    return by_level[body]


def test_a_long_log_is_begun_anew_though_a_writer_copies_it_itself(
    tmp_path: Path, capture: Capture, clock: NoticedClock
) -> None:
    elsewhere(tmp_path / "a.db", WORDS.format(20_000))
    old = salts(tmp_path / "a.db")
    copying = subprocess.Popen(
        [sys.executable, "-c", COPYING, tmp_path / "a.db-shm"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert copying.stdin is not None
    assert copying.stdout is not None
    stdin, stdout = copying.stdin, copying.stdout

    def said(word: str) -> bool:
        return stdout.readline().strip() == word

    try:
        assert said("held")

        def end_copying() -> None:
            clock.slept = lambda: None
            stdin.write("\n")
            stdin.flush()
            assert said("free")

        clock.slept = end_copying

        capture.step()

        assert capture.frames >= SETTINGS.seal_pages
        elsewhere(tmp_path / "a.db", "INSERT INTO t VALUES(1);")
        assert salts(tmp_path / "a.db") != old
    finally:
        copying.communicate()
    capture.step()
    assert capture.frames < SETTINGS.seal_pages
    assert capture.told()["comparisons"] == 0


def test_a_segment_is_compressed_quickly_while_the_log_is_too_long_and_well_otherwise(
    tmp_path: Path, capture: Capture, clock: NoticedClock, stage: Stage
) -> None:
    for rows, level in ((20_000, 1), (200, LEVEL), (20_000, 1)):
        elsewhere(tmp_path / "a.db", WORDS.format(rows))
        capture.step()
        clock.advance(SETTINGS.interval_s)
        capture.step()

        assert level_of_next(stage) == level
        assert stage.next() is None


def test_a_long_log_does_not_wait_for_a_large_segment_to_be_made(
    tmp_path: Path, capture: Capture, stage: Stage
) -> None:
    """What is staged at once is small, and soon done; the log is not looked at meanwhile."""
    for _ in range(3):  # no time passes: none is due
        elsewhere(tmp_path / "a.db", WORDS.format(20_000))
        capture.step()
        assert level_of_next(stage) == 1
    assert stage.next() is None


def test_a_log_that_was_too_long_between_two_segments_counts_too(
    tmp_path: Path, capture: Capture, clock: NoticedClock, stage: Stage
) -> None:
    """What makes the log long is pending since; it is short again when that is staged."""
    elsewhere(tmp_path / "a.db", WORDS.format(200))
    capture.step()
    assert level_of_next(stage) == LEVEL

    elsewhere(tmp_path / "a.db", "UPDATE t SET v = v || ' ' WHERE rowid % 20 = 7;" * 60)
    capture.step()
    assert stage.next() is None  # few pages, often written: not due yet
    elsewhere(tmp_path / "a.db", WORDS.format(10))
    clock.advance(SETTINGS.interval_s)
    capture.step()

    assert capture.frames < SETTINGS.seal_pages
    assert level_of_next(stage) == 1
