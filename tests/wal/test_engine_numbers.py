"""Engine numbers: two logs on one archive never issue equal versions."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sync_engine.core.item import Change
from sync_engine.core.version import ENGINE_NUMBER_MAX, VersionClock, free_number
from sync_engine.errors import StoreUnavailable
from sync_engine.ports import ArchiveStore
from sync_engine.stores.sql import open_archive
from sync_engine.testing import FlakyStore, ManualRuntime, MemoryArchive
from sync_engine.wal.log import WriteAheadLog
from sync_engine.wal.records import LogListener

Open = Callable[[str], WriteAheadLog]

SAME = "0000002a"  # how the uuids of both logs begin: number 42


@pytest.fixture
def runtime() -> ManualRuntime:
    return ManualRuntime()


@pytest.fixture
def open_log(tmp_path: Path, runtime: ManualRuntime) -> Iterator[Open]:
    """Open a log whose uuid begins like that of every other."""
    opened: list[WriteAheadLog] = []

    def open_(name: str) -> WriteAheadLog:
        path = tmp_path / f"{name}.log.db"
        if not path.exists():
            WriteAheadLog(path, runtime, LogListener()).close()
            db = sqlite3.connect(path)
            with db:
                db.execute(
                    "UPDATE meta SET value = ? WHERE name = 'uuid'", (SAME + name.ljust(24, "0"),)
                )
            db.close()
        log = WriteAheadLog(path, runtime, LogListener())
        log.follow("l3")
        opened.append(log)
        return log

    yield open_
    for log in opened:
        log.close()


@pytest.fixture(params=["memory", "sqlite"])
def archives(
    request: pytest.FixtureRequest, runtime: ManualRuntime, tmp_path: Path
) -> Iterator[tuple[ArchiveStore, ArchiveStore]]:
    """Two engines' views of one archive."""
    if request.param == "memory":
        memory = MemoryArchive(runtime.clock)
        yield memory, memory.client()
        return
    url = f"sqlite:///{tmp_path / 'archive.db'}"
    two = open_archive(url, clock=runtime.clock), open_archive(url, clock=runtime.clock)
    yield two
    for archive in two:
        archive.close()


def versions(log: WriteAheadLog, count: int = 50) -> list[int]:
    last, changes = log.append([Change("k", 0, b"v")] * count, soft=False)
    log.commit(last, count)
    return [change.version for change in changes]


def test_logs_whose_uuids_collide_never_issue_equal_versions_once_they_claimed(
    open_log: Open, archives: tuple[ArchiveStore, ArchiveStore]
) -> None:
    """Without the claim, two engines that write in one millisecond do."""
    first, second = open_log("a"), open_log("b")
    assert first.uuid != second.uuid
    assert set(versions(first)) == set(versions(second))  # the clock stands still

    first.claim_number(archives[0].claim_number)
    second.claim_number(archives[1].claim_number)

    assert first.versions.number == 42
    assert second.versions.number != 42
    assert not set(versions(first)) & set(versions(second))


def test_versions_go_on_growing_over_a_new_number_and_over_a_restart(
    open_log: Open, archives: tuple[ArchiveStore, ArchiveStore], runtime: ManualRuntime
) -> None:
    """A smaller number in the low bits is no smaller version, even when the clock goes back."""
    open_log("a").claim_number(archives[0].claim_number)
    log = open_log("b")
    before = versions(log)

    log.claim_number(archives[1].claim_number)
    number = log.versions.number
    assert number < 42
    runtime.clock.jump(-60)
    after = versions(log)
    log.close()
    again = open_log("b")
    restarted = versions(again)

    issued = before + after + restarted
    assert issued == sorted(set(issued))
    assert again.versions.number == number  # without a word from the archive


def test_an_archive_that_is_down_changes_nothing_and_is_asked_again(
    open_log: Open, archives: tuple[ArchiveStore, ArchiveStore]
) -> None:
    """The engine goes on with the number it has, and takes its own once the archive answers."""
    open_log("a").claim_number(archives[0].claim_number)
    log, flaky = open_log("b"), FlakyStore(archives[1])
    flaky.down = True

    with pytest.raises(StoreUnavailable):
        log.claim_number(flaky.claim_number)
    assert log.versions.number == 42
    assert versions(log)

    flaky.down = False
    log.claim_number(flaky.claim_number)
    assert log.versions.number != 42


def test_a_number_that_could_not_be_kept_is_not_used(
    open_log: Open, archives: tuple[ArchiveStore, ArchiveStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a restart would issue versions of the other log's number; the next claim tells it."""
    open_log("a").claim_number(archives[0].claim_number)
    log = open_log("b")

    def full(**_: object) -> int:
        raise StoreUnavailable("log", "save", "disk full")

    with monkeypatch.context() as patched:
        patched.setattr(log._file, "save", full)
        with pytest.raises(StoreUnavailable):
            log.claim_number(archives[1].claim_number)
    assert log.versions.number == 42

    log.claim_number(archives[1].claim_number)
    given = log.versions.number
    log.close()
    assert given != 42
    assert open_log("b").versions.number == given


def test_a_free_number_is_taken_and_else_the_one_unseen_for_the_longest() -> None:
    assert free_number(7, []) == 7
    assert free_number(7, [7, 0, 1]) == 2
    full = [*range(500, ENGINE_NUMBER_MAX + 1), *range(500)]
    assert free_number(7, full) == 500


def test_a_renumbered_clock_issues_larger_versions_of_the_new_number() -> None:
    clock = VersionClock(lambda: 1000, 900)
    before = clock.next()
    clock.renumber(3)
    after = clock.next()
    assert after > before
    assert after & ENGINE_NUMBER_MAX == 3
