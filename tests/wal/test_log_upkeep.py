"""The log's upkeep costs what there is to do: who waits is woken once, files are read in slices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from sync_engine.core.item import Change
from sync_engine.testing import ManualRuntime
from sync_engine.wal.file import LogFile
from sync_engine.wal.log import WriteAheadLog
from sync_engine.wal.records import LogListener


class Bell(LogListener):
    """Remembers who was woken."""

    def __init__(self) -> None:
        self.rung: list[str] = []

    def wake(self, names: Sequence[str]) -> None:
        self.rung += names


@pytest.fixture
def bell() -> Bell:
    return Bell()


@pytest.fixture
def log(tmp_path: Path, bell: Bell) -> Iterator[WriteAheadLog]:
    log = WriteAheadLog(tmp_path / "main.log.db", ManualRuntime(), bell)
    log.follow("l3")
    yield log
    log.close()


def put(log: WriteAheadLog, count: int = 1, size: int = 10) -> None:
    """Commit changes one by one, as lone callers do."""
    for _ in range(count):
        last, _ = log.append([Change(f"k{log.appended}", 0, b"x" * size)], soft=False)
        log.commit(last)


def test_a_follower_is_woken_once_and_only_at_the_position_it_waits_for(
    log: WriteAheadLog, bell: Bell
) -> None:
    log.want("l2", 3)
    log.want("l3", 5)

    put(log, 2)
    assert bell.rung == []
    put(log, 2)
    assert bell.rung == ["l2"]
    put(log, 4)
    assert bell.rung == ["l2", "l3"]


def test_who_asks_for_what_is_already_there_is_woken_at_once(
    log: WriteAheadLog, bell: Bell
) -> None:
    put(log, 2)

    log.want("l3", 2)

    assert bell.rung == ["l3"]


def test_a_backlog_of_lone_commits_is_read_in_full_slices(log: WriteAheadLog) -> None:
    put(log, 700)
    before = [log.read(after, 300, 1 << 20).changes for after in (0, 300, 600)]

    log._memory_bytes_max = 0
    log.spill()

    assert log.stats().memory_bytes == 0
    assert [log.read(after, 300, 1 << 20).changes for after in (0, 300, 600)] == before
    assert [len(changes) for changes in before] == [300, 300, 100]


def test_a_slice_from_the_file_keeps_its_bounds_when_it_is_asked_for_again(
    log: WriteAheadLog,
) -> None:
    put(log, 50, size=872)  # 1,000 bytes each
    log._memory_bytes_max = 0
    log.spill()

    assert len(log.read(0, 40, 1 << 20).changes) == 40
    assert len(log.read(0, 10, 1 << 20).changes) == 10
    assert len(log.read(0, 40, 5_500).changes) == 5
    assert len(log.read(0, 50, 1 << 20).changes) == 50


def test_a_journal_that_was_copied_counts_from_nothing_again(tmp_path: Path) -> None:
    """The journal's file never shrinks: measured by its size, it would be copied without end."""
    file = LogFile(tmp_path / "main.log.db")
    for position in range(1, 200):
        file.append(position, [Change(f"k{position}", position, b"x" * 10_000)])
    assert file.journal_bytes > 2_000_000

    file.checkpoint()

    assert file.journal_bytes == 0
    assert (tmp_path / "main.log.db-wal").stat().st_size > 2_000_000
    file.close()
