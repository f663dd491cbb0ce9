"""What replication costs: time, memory, requests. Short forms here; full lengths with -m long."""

from __future__ import annotations

import os
import random
import sqlite3
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sync_engine.sinks.snapshot.checksums import FrameChecksums, plain_checksum
from tests.snapshot.kit import Replica, assert_identical, told, until
from tests.snapshot.test_capture import fill, grow

LOADED = os.environ.get("SNAPSHOT_AIMS") != "1"
"""The figures are aims on a machine of its own; elsewhere only their order is checked."""


def peak_mib(pid: int) -> float:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.split("VmHWM:")[1].split()[0]) / 1024


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize(
    "page_size",
    [512, *(pytest.param(n, marks=pytest.mark.long) for n in (1024, 2048, 8192, 32768)), 65536],
)
def test_a16_any_page_size(rep: Replica, page_size: int) -> None:
    c = sqlite3.connect(rep.db, isolation_level=None)
    c.execute(f"PRAGMA page_size={page_size}")
    c.execute("PRAGMA journal_mode=WAL")
    fill(c, 5)
    grow(c, 300, 3000)
    rep.once()
    grow(c, 50, 3000)
    c.execute("UPDATE t SET v = randomblob(100) WHERE id % 9 = 0")

    rep.once()

    c.close()
    assert_identical(rep.db, rep.restore())


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a16_a_database_beyond_the_lock_page(rep: Replica) -> None:
    c = rep.connect()
    c.execute("PRAGMA synchronous=OFF")
    fill(c, 1)
    while rep.db.stat().st_size < 1.12e9:
        grow(c, 40_000, 700)
        c.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    began = time.monotonic()
    rep.start()
    until(lambda: rep.status()["snapshot"]["made"], 300)
    snapshot_s = time.monotonic() - began
    first = rep.status()["snapshot"]["put_bytes"]
    count = c.execute("SELECT max(id) FROM t").fetchone()[0]
    c.execute("UPDATE t SET v=randomblob(700) WHERE id BETWEEN 1000 AND ?", (1000 + count // 100,))
    rep.durable()
    assert rep.process is not None
    peak = peak_mib(rep.process.pid)
    rep.stop()
    rep.start("--snapshot-interval", "1s")
    until(lambda: rep.status()["snapshot"]["made"], 300)
    second = rep.status()["snapshot"]["put_bytes"]
    peak = max(peak, peak_mib(rep.process.pid))
    rep.stop()
    began = time.monotonic()
    restored = rep.restore()
    restore_s = time.monotonic() - began
    c.close()
    assert_identical(rep.db, restored)
    assert peak <= 400
    assert second <= 0.05 * first
    if not LOADED:
        assert snapshot_s <= 60
        assert restore_s <= 60


def test_a18_writers_hardly_notice(rep: Replica) -> None:
    seconds = 2.0 if LOADED else 20.0
    told(rep.writer(0.3, 0, "fast"))
    alone = told(rep.writer(seconds, 1, "fast"))
    rep.start()
    rep.durable()
    writer = rep.writer(seconds, 2, "fast")
    largest = 0
    while writer.poll() is None:
        largest = max(largest, Path(f"{rep.db}-wal").stat().st_size)
        time.sleep(0.02)
    beside = told(writer)
    rep.durable()

    ratio = beside["per_s"] / alone["per_s"]
    assert largest <= (400e6 if LOADED else 100e6)
    assert ratio >= (0.2 if LOADED else 0.6), (alone, beside)
    if not LOADED:
        assert beside["p999_ms"] <= 150


def at_rest(rep: Replica) -> bool:
    """Tell whether all is in the target, and the log was copied since."""
    status = rep.status()
    return status["capture"]["checkpoints"] > 0 and status["staged_objects"] == 0


@pytest.mark.parametrize("lease", [True, pytest.param(False, marks=pytest.mark.long)])
def test_a20_an_idle_database_costs_nothing(rep: Replica, lease: bool) -> None:
    seconds = float(os.environ.get("IDLE_SECONDS", "3"))
    c = rep.connect()
    fill(c, 10)
    rep.start("--option", "lease_ttl_s=3", *([] if lease else ["--no-lease"]))
    rep.durable()
    until(lambda: at_rest(rep))
    assert rep.process is not None
    before, used = rep.status(), cpu_s(rep.process.pid)
    objects = {key: (Path(rep.target) / key).stat().st_mtime_ns for key in rep.objects()}

    time.sleep(seconds)

    after, used = rep.status(), cpu_s(rep.process.pid) - used
    now = {key: (Path(rep.target) / key).stat().st_mtime_ns for key in rep.objects()}
    written = {key for key in now if objects.get(key) != now[key]}
    assert written == ({"v1/HEAD.json"} if lease else set())
    assert after["upload"]["puts"] == before["upload"]["puts"]
    renewals = after["lease_renewals"] - before["lease_renewals"]
    assert renewals <= seconds / 1.0 + 1
    assert used / seconds < (0.05 if LOADED else 0.005)
    c.close()


def test_a21_waiting_rides_along_with_what_is_sent_anyway(rep: Replica) -> None:
    seconds = 4.0 if LOADED else 30.0
    told(rep.writer(0.2, 0, "steady:100"))
    rep.start("--interval", "1s")
    rep.durable()
    puts = rep.status()["upload"]["puts"]
    writer = rep.writer(seconds, 1, "steady:500")
    began = time.monotonic()
    waits = []
    while time.monotonic() - began < seconds - 1:
        asked = time.monotonic()
        rep.durable()
        waits.append(time.monotonic() - asked)
    rate = (rep.status()["upload"]["puts"] - puts) / (time.monotonic() - began)
    told(writer)
    done = rep.run("snapshots", "wait", str(rep.db), "--timeout", "10s", "--json")

    waits.sort()
    assert waits[int(len(waits) * 0.95)] <= (4.0 if LOADED else 2.0)
    assert rate <= 1.1 + 2 / seconds
    assert done.returncode == 0
    assert "durable_txid" in done.stdout
    rep.stop()
    again = rep.run("snapshots", "wait", str(rep.db), "--timeout", "100ms")
    assert again.returncode == 4


@pytest.mark.parametrize("big", [False, True])
def test_a26_the_fast_checksum_is_the_plain_one(big: bool) -> None:
    rng = random.Random(7)
    page_size, count = 512, 10_000
    checksums = FrameChecksums(page_size)
    order = ">" if big else "<"
    seed = (rng.getrandbits(32), rng.getrandbits(32))
    frames = bytearray()
    expected = []
    s = seed
    for number in range(count):
        page = rng.randbytes(page_size)
        head = struct.pack(">II", number + 1, rng.randrange(2))
        s = plain_checksum(s, head + page, big=big)
        expected.append(s)
        frames += head + bytes(8) + struct.pack(">II", *s) + page
    assert order in "<>"

    assert checksums.run(bytes(frames), seed, big=big) == expected


def test_a26_the_fast_checksum_is_fast() -> None:
    checksums = FrameChecksums(4096)
    frames = os.urandom(4000 * checksums.frame_size)
    best = min(_timed(lambda: checksums.run(frames, (1, 2), big=False)) for _ in range(5))

    speed = len(frames) / best / 1e6
    assert speed >= (100 if LOADED else 500), f"{speed:.0f} MB/s"


def _timed(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def test_a_large_transaction_is_captured_in_parts(rep: Replica) -> None:
    """Many times the memory that a segment may take; it stays one transaction."""
    c = rep.connect()
    fill(c, 1)
    rep.start("--option", "part_bytes=262144", "--interval", "100ms")
    rep.durable()

    c.execute("BEGIN")
    grow(c, 2000, 2000)
    c.execute("COMMIT")
    rep.durable()

    parts = [key for key in rep.objects("/L0/") if "." in Path(key).stem]
    assert len(parts) >= 10
    c.close()
    rep.stop()
    assert_identical(rep.db, rep.restore())
    Path(rep.target, parts[3]).unlink()
    done = rep.run("restore", rep.target, str(rep.dir / "x.db"))
    assert done.returncode in (0, 5)
    if done.returncode == 0:  # an incomplete segment is none: the point before it
        with sqlite3.connect(rep.dir / "x.db") as found:
            assert found.execute("SELECT count(*) FROM t").fetchone()[0] == 1
        found.close()


def test_nothing_of_the_replicator_is_loaded_by_other_commands() -> None:
    code = (
        "import sys; from sync_engine.cli import make_parser; make_parser();"
        "print('apsw' in sys.modules, 'sync_engine.sinks.snapshot.replicator' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.split() == ["False", "False"]
