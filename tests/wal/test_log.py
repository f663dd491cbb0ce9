"""The write-ahead log: what is committed stays, in order, and is let go only when all passed."""

from __future__ import annotations

import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from sync_engine.core import failpoints
from sync_engine.core.item import Change
from sync_engine.core.version import ms_of_version
from sync_engine.errors import ConfigError, CorruptData, EngineFailed, StoreUnavailable
from sync_engine.ports import Overtaken
from sync_engine.testing import ManualRuntime
from sync_engine.wal.log import WriteAheadLog
from sync_engine.wal.owner import OwnerLock, orphans
from sync_engine.wal.records import LogListener

Open = Callable[..., WriteAheadLog]


class Ear(LogListener):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.seen: list[Change] = []
        self.left: list[Change] = []
        self.wakes = 0

    def visible(self, changes: Sequence[Change]) -> None:
        self.seen += changes

    def released(self, changes: Sequence[Change], *, in_memory: bool) -> None:
        self.left += changes

    def wake(self, names: Sequence[str]) -> None:
        self.wakes += 1


@pytest.fixture
def ear() -> Ear:
    return Ear()


@pytest.fixture
def open_log(tmp_path: Path, ear: Ear) -> Iterator[Open]:
    opened: list[WriteAheadLog] = []
    runtime = ManualRuntime()

    def open_(name: str = "main.log.db", **options: Any) -> WriteAheadLog:
        log = WriteAheadLog(tmp_path / name, runtime, ear, **options)
        log.follow("l3")
        opened.append(log)
        return log

    yield open_
    for log in opened:
        log._file.close()


def put(log: WriteAheadLog, change_id: str, content: bytes | None = b"v") -> Change:
    last, changes = log.append([Change(change_id, 0, content)], soft=False)
    log.commit(last)
    return changes[0]


def drain(log: WriteAheadLog, follower: str = "l3") -> list[Change]:
    taken: list[Change] = []
    while part := log.read(log.cursor(follower), 100, 1 << 20).changes:
        taken += [change for change in part if change is not None]
        log.advance(follower, log.cursor(follower) + len(part))
    return taken


def test_positions_are_dense_from_one_and_versions_grow(open_log: Open) -> None:
    log = open_log()

    changes = [put(log, f"id{n}") for n in range(5)]

    assert log.head() == 5
    assert drain(log) == changes
    assert sorted({c.version for c in changes}) == [c.version for c in changes]


def test_a_log_that_is_opened_and_closed_often_hurries_no_clock_ahead(tmp_path: Path) -> None:
    """Others would have to believe its versions, and lose to them."""
    runtime = ManualRuntime()
    last = 0
    for _ in range(50):
        log = WriteAheadLog(tmp_path / "main.log.db", runtime, LogListener())
        log.follow("l3")
        change = put(log, "a")
        log.close()
        runtime.clock.advance(0.1)
        assert last < change.version
        assert ms_of_version(change.version) <= runtime.clock.now_ms()
        last = change.version


def test_a_clock_set_back_over_a_clean_end_issues_no_old_version(tmp_path: Path) -> None:
    runtime = ManualRuntime()
    log = WriteAheadLog(tmp_path / "main.log.db", runtime, LogListener())
    log.follow("l3")
    first = put(log, "a")
    given = log.give_version(0)
    log.close()

    earlier = ManualRuntime()
    earlier.clock.advance(-3600)
    log = WriteAheadLog(tmp_path / "main.log.db", earlier, LogListener())
    second = put(log, "a")
    log.close()
    assert first.version < given < second.version


def test_versions_grow_even_if_the_clock_goes_back_over_a_restart(tmp_path: Path) -> None:
    runtime = ManualRuntime()
    log = WriteAheadLog(tmp_path / "a.log.db", runtime, LogListener())
    log.follow("l3")
    before = put(log, "a")
    drain(log)
    log.tidy()
    log._file.close()

    earlier = ManualRuntime()
    earlier.clock.advance(-3600)
    again = WriteAheadLog(tmp_path / "a.log.db", earlier, LogListener())

    assert put(again, "a").version > before.version
    again._file.close()


def test_a_change_is_readable_until_the_archive_has_it(open_log: Open, ear: Ear) -> None:
    log = open_log()

    change = put(log, "a")
    assert log.pending("a") == change

    drain(log)
    assert log.pending("a") is None
    assert ear.left == [change]


def test_overlay_entries_stay_until_every_reading_tier_has_passed(open_log: Open) -> None:
    """Leaving on the archive alone would let a lagging L2 answer with an older value."""
    log = open_log(overlay=["l2"])
    log.follow("l2")
    change = put(log, "a")

    drain(log, "l3")
    assert log.pending("a") == change

    drain(log, "l2")
    assert log.pending("a") is None


def test_a_lagging_tier_keeps_its_overlay_whichever_is_followed_first(open_log: Open) -> None:
    first = open_log(overlay=["l2"])
    first.follow("l2")
    change = put(first, "a")
    drain(first, "l3")
    first.write()
    first.close()

    again = open_log(overlay=["l2"])  # follows l3, which has everything, before l2
    again.follow("l2")

    assert again.pending("a") == change


def test_the_newest_change_wins_in_the_overlay(open_log: Open) -> None:
    log = open_log()
    put(log, "a", b"1")
    second = put(log, "a", b"2")

    log.advance("l3", 1)
    assert log.pending("a") == second


def test_cursors_never_go_back(open_log: Open) -> None:
    log = open_log()
    put(log, "a")
    put(log, "b")
    log.advance("l3", 2)

    log.advance("l3", 1)

    assert log.cursor("l3") == 2


def test_committed_changes_survive_without_a_close(open_log: Open, tmp_path: Path) -> None:
    log = open_log()
    changes = [put(log, f"id{n}", bytes([n % 256]) * 100) for n in range(300)]

    shutil.copytree(tmp_path, tmp_path / "copy")  # what another process would find after a kill
    again = WriteAheadLog(tmp_path / "copy" / "main.log.db", ManualRuntime(), LogListener())

    assert drain(again) == changes
    again._file.close()


def test_a_journal_cut_at_any_byte_keeps_a_prefix(open_log: Open, tmp_path: Path) -> None:
    """A torn tail reads as the end; nothing is invented, nothing before it is lost."""
    log = open_log()
    changes = [put(log, f"id{n}") for n in range(6)]
    journal = (tmp_path / "main.log.db-wal").read_bytes()
    copy = tmp_path / "copy"
    previous = 0
    for size in range(32, len(journal) + 1, 997):
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir(mode=0o700)
        shutil.copy(tmp_path / "main.log.db", copy)
        (copy / "main.log.db-wal").write_bytes(journal[:size])

        again = WriteAheadLog(copy / "main.log.db", ManualRuntime(), LogListener())

        found = drain(again)
        assert found == changes[: len(found)]
        assert len(found) >= previous
        previous = len(found)
        again._file.close()
    assert previous > 0


def test_synced_positions_that_the_disk_lost_are_told_and_never_reused(tmp_path: Path) -> None:
    """SQLite drops commits behind a flipped bit silently; the noted head does not."""
    log = WriteAheadLog(tmp_path / "m.log.db", ManualRuntime(), LogListener())
    log.follow("l3")
    put(log, "a")
    log._file.checkpoint()
    put(log, "b")
    put(log, "c")
    log.sync(3)
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path, copy)
    log._file.close()
    (copy / "m.log.db-wal").write_bytes(b"")

    again = WriteAheadLog(copy / "m.log.db", ManualRuntime(), LogListener())

    assert again.stats().lost_positions == 2
    assert [c.id for c in drain(again)] == ["a"]
    put(again, "d")
    assert again.head() == 4
    again._file.close()


def test_a_flipped_bit_in_a_record_is_told_with_its_position(open_log: Open) -> None:
    log = open_log(memory_bytes_max=1)
    put(log, "a", b"x" * 500)
    log.spill()
    log._file._db.execute(
        "UPDATE frame SET body = CAST(substr(body, 1, 200) || x'00' || substr(body, 202) AS BLOB)"
    )

    with pytest.raises(CorruptData, match="position 1"):
        log.read(0, 10, 1 << 20)


def test_bytes_left_to_the_file_are_read_back(open_log: Open) -> None:
    log = open_log(memory_bytes_max=10_000)
    changes = [put(log, f"id{n}", bytes([n % 256]) * 200) for n in range(500)]

    log.spill()

    assert log.stats().memory_bytes <= 10_000
    assert log.pending("id7") == changes[7]
    assert drain(log) == changes
    assert log.pending("id7") is None


def test_memory_writes_are_visible_at_once_and_written_later(open_log: Open) -> None:
    log = open_log()

    log.append([Change("a", 0, b"v")], soft=True)
    assert (log.head(), log.written) == (1, 0)
    assert log.pending("a") is not None

    log.write()
    assert log.written == 1


def test_memory_writes_that_were_archived_in_time_never_touch_the_file(open_log: Open) -> None:
    log = open_log()
    log.append([Change(f"id{n}", 0, b"v") for n in range(10)], soft=True)
    drain(log)

    log.write()
    put(log, "next")

    (frames,) = log._file._db.execute("SELECT count(*) FROM frame").fetchone()
    assert frames == 1
    log._file.close()
    again = open_log()
    assert again.head() == 11
    assert [c.id for c in drain(again)] == ["next"]


def test_a_memory_write_behind_a_waiting_one_is_delivered_after_it(open_log: Open) -> None:
    log = open_log()
    first, _ = log.append([Change("a", 0, b"1")], soft=False)
    log.append([Change("b", 0, b"2")], soft=True)
    assert log.head() == 0
    assert log.pending("b") is not None

    log.commit(first)

    assert [c.id for c in drain(log)] == ["a", "b"]


def test_a_full_disk_takes_back_who_waits_and_keeps_what_was_acknowledged(open_log: Open) -> None:
    log = open_log()
    waiting, _ = log.append([Change("a", 0, b"1")], soft=False)
    log.append([Change("b", 0, b"2")], soft=True)

    def full() -> None:
        raise StoreUnavailable("log", "append", "database or disk is full")

    with failpoints.during("log.append", full), pytest.raises(StoreUnavailable):
        log.commit(waiting)
    assert log.pending("a") is None

    put(log, "c")
    assert [c.id for c in drain(log)] == ["b", "c"]
    assert log.stats().pending_bytes == 0


def test_a_real_size_limit_is_an_error_and_no_lie(open_log: Open, tmp_path: Path) -> None:
    log = open_log()
    put(log, "a")
    (pages,) = log._file._db.execute("PRAGMA page_count").fetchone()
    log._file._db.execute(f"PRAGMA max_page_count={pages + 4}")
    last, _ = log.append([Change("b", 0, b"x" * 100_000)], soft=False)

    with pytest.raises(StoreUnavailable, match="room"):
        log.commit(last)

    log._file._db.execute("PRAGMA max_page_count=1000000")
    put(log, "c")
    assert [c.id for c in drain(log)] == ["a", "c"]


def test_a_failed_sync_is_final(open_log: Open) -> None:
    log = open_log()
    put(log, "a")

    def eio() -> None:
        raise OSError(5, "Input/output error")

    with failpoints.during("log.sync", eio), pytest.raises(EngineFailed):
        log.sync(1)

    with pytest.raises(EngineFailed):
        log.append([Change("b", 0, b"v")], soft=True)
    with pytest.raises(EngineFailed):
        log.sync(1)


def test_an_unlinked_log_is_noticed_at_the_next_sync(open_log: Open, tmp_path: Path) -> None:
    log = open_log()
    put(log, "a")
    (tmp_path / "main.log.db").unlink()

    with pytest.raises(EngineFailed):
        log.sync(1)


def test_released_frames_leave_the_file_and_unreleased_ones_stay(open_log: Open) -> None:
    log = open_log()
    log.follow("sink")
    for n in range(10):
        put(log, f"id{n}")
    drain(log, "l3")
    log.tidy()
    assert log._file.first() == 1

    log.advance("sink", 5)
    log.tidy()
    assert log._file.first() == 6

    log.unfollow("sink")
    log.advance("l3", 10)
    put(log, "x")
    log.advance("l3", 11)
    log.tidy()
    assert log._file.first() == 0


def test_refusing_after_a_position_sees_writes_that_are_not_committed_yet(open_log: Open) -> None:
    log = open_log()
    seen = log.appended
    log.append([Change("a", 0, b"1")], soft=False)

    with pytest.raises(Overtaken):
        log.append([Change("a", 0, b"2")], soft=False, unless_after=seen)
    log.append([Change("b", 0, b"2")], soft=False, unless_after=seen)


def test_concurrent_writers_share_commits_and_lose_nothing(open_log: Open) -> None:
    log = open_log()

    def work(number: int) -> None:
        for n in range(200):
            put(log, f"{number}.{n}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert log.head() == 1600
    assert {c.id for c in drain(log)} == {f"{m}.{n}" for m in range(8) for n in range(200)}


def test_a_refused_change_stays_readable_and_can_be_sent_again(open_log: Open) -> None:
    log = open_log()
    change = put(log, "poison")
    log.dead_letter("l3", 1, change, "too long")
    log.advance("l3", 1)
    assert log.pending("poison") == change
    log.tidy()
    log._file.close()

    again = open_log()
    assert again.pending("poison") == change
    (letter,) = again.dead.list()
    assert (letter.error, letter.position) == ("too long", 1)

    again.requeue(letter)
    assert drain(again) == [change]
    assert again.dead.list() == []
    assert again.pending("poison") is None


def test_sending_a_refused_change_again_never_hides_a_newer_one(open_log: Open) -> None:
    """Also where the bytes of the newer one were left to the file."""
    log = open_log(memory_bytes_max=1)
    refused = put(log, "a", b"refused")
    log.dead_letter("l3", 1, refused, "no")
    newer = put(log, "a", b"newer")
    log.spill()
    (letter,) = log.dead.list()

    log.requeue(letter)

    assert log.pending("a") == newer
    assert log.dead.list() == []


def test_what_one_batch_took_from_file_and_memory_leaves_the_overlay_whole(open_log: Open) -> None:
    """What is read back from the file is equal to what memory holds, and not the same object."""
    first = open_log()
    for n in range(4):
        put(first, "a", b"%d" % n)
    first._file.close()
    log = open_log(memory_bytes_max=1)
    log.advance("l3", 3)
    put(log, "a", b"4")
    put(log, "b", b"5")
    log.advance("l3", 5)  # one read over the place where the file ends and memory begins

    assert log.pending("a") is None
    log.spill()
    log.tidy()
    assert log.pending("a") is None
    log.advance("l3", 6)
    assert len(log.overlay) == 0


def test_a_newer_change_replaces_a_refused_one(open_log: Open) -> None:
    log = open_log()
    log.dead_letter("l3", 1, put(log, "a", b"poison"), "no")
    log.advance("l3", 1)

    newer = put(log, "a", b"good")
    assert log.pending("a") == newer
    drain(log)
    assert log.pending("a") is None


@pytest.mark.parametrize(
    "content", [b"not a database, surely" * 50, b"SQLite format 3\0" + b"\0" * 90]
)
def test_a_foreign_file_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.log.db"
    path.write_bytes(content)

    with pytest.raises(CorruptData):
        WriteAheadLog(path, ManualRuntime(), LogListener())

    assert path.read_bytes() == content


def test_another_programs_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.log.db"
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE theirs (x)")
    db.commit()
    db.close()

    with pytest.raises(CorruptData, match="another program"):
        WriteAheadLog(path, ManualRuntime(), LogListener())


def test_a_newer_format_is_refused_with_the_way_out(open_log: Open, tmp_path: Path) -> None:
    log = open_log()
    log._file._db.execute("PRAGMA user_version=99")
    log._file.close()

    with pytest.raises(ConfigError, match="upgrade"):
        WriteAheadLog(tmp_path / "main.log.db", ManualRuntime(), LogListener())


def test_the_file_is_for_its_owner_only(open_log: Open, tmp_path: Path) -> None:
    put(open_log(), "a")

    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}

    assert set(modes.values()) == {0o600}


def test_one_owner_at_a_time_and_orphans_are_found(tmp_path: Path) -> None:
    mine = OwnerLock(tmp_path / "a.log.db")
    (tmp_path / "b.log.db").touch()

    with pytest.raises(ConfigError, match="in use by process"):
        OwnerLock(tmp_path / "a.log.db")
    found = orphans(tmp_path / "a.log.db")

    assert [path.name for path, _ in found] == ["b.log.db"]
    for _, lock in found:
        lock.release()
    mine.release()
