"""Beginning and ending: whatever happened before, and however little time there is."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from sync_engine import SyncEngine
from sync_engine.ports import AdapterContext
from sync_engine.runtime import SystemRuntime
from sync_engine.sinks.snapshot import from_settings
from sync_engine.sinks.snapshot.keys import SegmentKey
from tests.snapshot.kit import Replica, assert_identical, rows, until
from tests.snapshot.test_capture import fill, grow
from tests.snapshot.writer_child import spill_and_roll_back


def test_what_was_committed_while_nobody_looked_is_found_behind_a_log_without_frames(
    rep: Replica,
) -> None:
    """A transaction that is rolled back begins the log anew, and publishes nothing in it."""
    c = rep.connect()
    c.execute("PRAGMA wal_autocheckpoint=0")
    fill(c, 50)
    rep.once()
    fill(c, 30)
    c.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
    wal = Path(f"{rep.db}-wal")
    before = wal.read_bytes()[:32]
    spill_and_roll_back(c, random.Random(1))
    assert wal.read_bytes()[:32] != before, "the log did not restart: nothing was tested"

    rep.once()

    restored = rep.restore()
    assert rows(restored) == 80
    c.close()
    assert_identical(rep.db, restored)


@pytest.mark.parametrize("others", [20, 50])
def test_what_a_loss_of_power_took_back_is_taken_back_in_the_replica(
    rep: Replica, others: int
) -> None:
    """Other transactions are in the place of the lost ones, as many or more; salts are the same."""
    c = rep.connect()
    c.execute("PRAGMA wal_autocheckpoint=0")
    fill(c, 20)
    wal = Path(f"{rep.db}-wal")
    database, log = rep.db.read_bytes(), wal.read_bytes()
    fill(c, 20)
    rep.once()
    c.close()
    rep.db.write_bytes(database)
    wal.write_bytes(log)
    c = rep.connect()
    c.execute("PRAGMA wal_autocheckpoint=0")
    fill(c, others)
    assert wal.read_bytes()[:32] == log[:32], "it is another log: nothing was tested"

    rep.once()

    restored = rep.restore(None, "--check", "full")
    assert rows(restored) == 20 + others
    c.close()
    assert_identical(rep.db, restored)


def test_a_log_that_is_longer_than_a_segment_may_be_is_cut_between_transactions(
    rep: Replica,
) -> None:
    """Each segment is a point of its own; only a single transaction may be larger."""
    c = rep.connect()
    fill(c, 10)
    rep.start("--option", "part_bytes=65536", "--option", "compact_s=", "--no-lease")
    rep.durable()
    assert rep.process is not None
    rep.process.send_signal(signal.SIGSTOP)  # all of it comes with one look
    fill(c, 100, 4000)
    grow(c, 200, 4000)
    fill(c, 100, 4000)
    rep.process.send_signal(signal.SIGCONT)
    rep.durable()
    c.close()
    rep.stop()

    sizes: Counter[int] = Counter()
    for key in rep.objects("/L0/"):
        parsed = SegmentKey.parse(key)
        assert parsed is not None
        sizes[parsed.txid_min] += (Path(rep.target) / key).stat().st_size
    large = [txid for txid, size in sizes.items() if size > 2 * 65536 + 1024]
    assert len(sizes) >= 8
    assert len(large) == 1
    assert rep.status()["capture"]["comparisons"] == 0
    assert_identical(rep.db, rep.restore())
    assert rows(rep.restore(None, "--txid", str(large[0] - 1), "--check", "full")) == 110
    assert rows(rep.restore(None, "--txid", str(large[0]), "--check", "full")) == 310


def test_a_target_that_is_down_at_the_start_is_tried_again(rep: Replica) -> None:
    c = rep.connect()
    fill(c, 20)
    target = Path(rep.target)
    target.mkdir()
    (target / "v1").touch()  # in the way of every object
    rep.start(ready=False)
    until(lambda: rep.log_tail().count("get failed") >= 2)

    (target / "v1").unlink()

    rep.durable()
    assert rows(rep.restore()) == 20
    c.close()


def test_a_replicator_that_waits_for_a_database_ends_with_its_parent(rep: Replica) -> None:
    not_its_parent = 1
    assert os.getpid() != not_its_parent

    rep.start("--allow-fresh", "--with-parent", str(not_its_parent), ready=False)

    assert rep.process is not None
    assert rep.process.wait(20) == 4, rep.log_tail()


def test_what_is_pending_is_delivered_though_a_snapshot_takes_long(rep: Replica) -> None:
    """Every upload takes a second; the snapshot needs many, and room for them, to be read."""
    c = rep.connect()
    fill(c, 10)
    rep.once("--no-lease")
    grow(c, 1000, 4000)
    rep.once("--no-lease")
    rep.start(
        "--no-lease", "--snapshot-interval", "1ms", "--option", "chunk_bytes=65536",
        "--option", "stage_bytes_max=65536", SLOW_PUT_S="1",
    )  # fmt: skip
    fill(c, 5)
    until(lambda: rep.status()["snapshot"]["chunks"] >= 1)
    fill(c, 5)

    rep.stop()

    assert rep.status()["staged_objects"] == 0
    assert rows(rep.restore()) == 1020
    c.close()


@pytest.mark.parametrize("reachable", [True, False])
def test_what_was_archived_is_in_the_target_when_a_young_supervisor_is_closed_or_it_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, reachable: bool
) -> None:
    target, data_dir = tmp_path / "target", tmp_path / "data"
    target.mkdir()
    data_dir.mkdir()
    if not reachable:
        (target / "v1").touch()
    runtime = SystemRuntime("young")
    context = AdapterContext(name="backup", runtime=runtime, data_dir=data_dir, wake=lambda: None)
    supervisor = from_settings(context, target=str(target), auto_restore=False)
    with SyncEngine.open(data_dir) as engine:
        engine.submit("a", b"1")
        assert engine.flush(30).complete
    supervisor.attach()
    until((data_dir / "backup.replica" / "lock").exists)  # the child has just begun
    began = time.monotonic()
    runtime.close(5)  # as an engine does: no sleep lasts, no job runs

    supervisor.close()

    assert time.monotonic() - began < 25
    assert ("replica_behind" in caplog.text) == (not reachable)
    if reachable:
        back = Replica(tmp_path, str(target)).restore()
        assert back.stat().st_size == (data_dir / "archive.db").stat().st_size
