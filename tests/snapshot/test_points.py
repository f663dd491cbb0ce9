"""Points: each is restored exactly, or refused by name; what is kept is never taken away."""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sync_engine.errors import CorruptData, SyncEngineError
from sync_engine.runtime import SystemRuntime
from sync_engine.sinks.snapshot.compaction import Compactor
from sync_engine.sinks.snapshot.errors import ChainGap, NewerLocal
from sync_engine.sinks.snapshot.inventory import read_inventory
from sync_engine.sinks.snapshot.keys import SegmentKey
from sync_engine.sinks.snapshot.lease import Lease
from sync_engine.sinks.snapshot.objects import DirectoryObjects, Fetched
from sync_engine.sinks.snapshot.plan import NoSuchPoint, make_plan, points
from sync_engine.sinks.snapshot.restore import restore
from sync_engine.sinks.snapshot.retention import Retention
from sync_engine.sinks.snapshot.settings import ReplicationSettings
from sync_engine.sinks.snapshot.verify import drill, verify
from sync_engine.testing import ManualRuntime
from tests.snapshot.kit import HERE, Replica, assert_identical, replica, rows, until
from tests.snapshot.test_capture import fill


@dataclass(frozen=True)
class Moment:
    """What was in the database when a transaction was in the target."""

    txid: int
    time_ms: int
    rows: int


@dataclass(frozen=True)
class History:
    """A target with many points, two snapshots, and what each point holds."""

    target: Path
    database: Path
    moments: list[Moment]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[History]:
    directory = tmp_path_factory.mktemp("history")
    moments = []
    with replica(directory) as rep:
        c = rep.connect()
        fill(c, 10, 600)
        for run in range(2):
            rep.start(
                "--interval", "10ms", "--option", "poll_s=0.01", "--snapshot-interval", "1ms",
                "--option", "compact_s=", "--no-lease",
            )  # fmt: skip
            snapshots = run + 1
            until(lambda n=snapshots: len(rep.objects("manifest.json")) >= n)
            rep.stop()
            rep.start(
                "--interval", "10ms", "--option", "poll_s=0.01", "--option", "compact_s=",
                "--no-lease",
            )  # fmt: skip
            for _ in range(15):
                fill(c, 4, 600)
                txid = rep.durable()
                count = c.execute("SELECT count(*) FROM t").fetchone()[0]
                moments.append(Moment(txid, time.time_ns() // 1_000_000, count))
                time.sleep(0.005)
            rep.stop()
        c.close()
        yield History(Path(rep.target), rep.db, moments)


@pytest.fixture
def history(recorded: History, tmp_path: Path) -> History:
    target = tmp_path / "target"
    shutil.copytree(recorded.target, target)
    return History(target, recorded.database, recorded.moments)


@pytest.fixture
def system() -> Iterator[SystemRuntime]:
    runtime = SystemRuntime("test")
    yield runtime
    runtime.close(5)


def compact(objects: DirectoryObjects, runtime: Any) -> None:
    inventory = read_inventory(objects)
    lease = Lease(objects, runtime, 0.0)
    worker = Compactor(objects, lease, inventory, compression_level=3, bytes_max=1 << 25)
    assert worker.compact(1) >= 1


def test_a10_every_flipped_bit_is_found_and_named(history: History, system: SystemRuntime) -> None:
    objects = DirectoryObjects(history.target)
    rng = random.Random(3)
    keys = [info.key for info in objects.list("v1/")]
    keys = [key for key in keys if not key.endswith("HEAD.json")] + ["v1/HEAD.json"]
    unnamed = []

    for _ in range(300):
        key = rng.choice(keys)
        path = history.target / key
        whole = path.read_bytes()
        place = rng.randrange(len(whole))
        broken = bytearray(whole)
        broken[place] ^= 1 << rng.randrange(8)
        path.write_bytes(broken)
        found = verify(objects, full=True)
        if not any(key in problem for problem in found.problems):
            unnamed.append((key, place))
        path.write_bytes(whole)

    assert unnamed == []
    assert verify(objects, full=True).healthy


def test_a10_truncated_and_swapped_objects_are_found(
    history: History, system: SystemRuntime, tmp_path: Path
) -> None:
    objects = DirectoryObjects(history.target)
    segments = sorted(history.target.rglob("L0/*.seg"))
    one, two = segments[-1], segments[-2]
    first, second = one.read_bytes(), two.read_bytes()

    one.write_bytes(first[: len(first) // 2])
    with pytest.raises(CorruptData, match=one.name):
        restore(objects, tmp_path / "a.db", system)
    one.write_bytes(second)
    two.write_bytes(first)
    with pytest.raises(CorruptData, match=r"\.seg"):
        restore(objects, tmp_path / "b.db", system)

    assert not (tmp_path / "a.db").exists()
    assert not (tmp_path / "b.db").exists()
    problems = verify(objects, full=False).problems
    assert any(one.name in problem for problem in problems)


def test_a11_a_gap_is_named_and_what_is_before_it_restored(
    history: History, system: SystemRuntime, tmp_path: Path
) -> None:
    objects = DirectoryObjects(history.target)
    compact(objects, system)
    lost, before = history.moments[-3].txid, history.moments[-5].txid
    for path in history.target.rglob("*.seg"):
        key = SegmentKey.parse(path.relative_to(history.target).as_posix())
        assert key is not None
        if key.txid_min <= lost <= key.txid_max:
            path.unlink()

    with pytest.raises(ChainGap) as caught:
        restore(objects, tmp_path / "a.db", system)
    done = restore(objects, tmp_path / "b.db", system, txid=before)

    assert (caught.value.first, caught.value.last) == (lost, lost)
    assert str(lost) in str(caught.value)
    assert done.txid == before
    assert rows(tmp_path / "b.db") == history.moments[-5].rows
    assert not verify(objects, full=False).healthy


@pytest.mark.parametrize("when", ["before", "after compaction", "after retention"])
def test_a12_every_transaction_and_every_instant_is_exact(
    history: History, system: SystemRuntime, tmp_path: Path, when: str
) -> None:
    objects = DirectoryObjects(history.target)
    if when != "before":
        compact(objects, system)
    if when == "after retention":
        runtime = ManualRuntime()
        kept = ReplicationSettings(fine_s=0, grace_s=0, retain_s=1e9)
        lease = Lease(objects, runtime, 0.0)
        retention = Retention(objects, lease, read_inventory(objects), kept, runtime.clock)
        assert retention.step() > 5

    known = {point.txid for point in points(read_inventory(objects))}
    exact = [moment for moment in history.moments if moment.txid in known]
    assert len(exact) == len(history.moments) if when != "after retention" else len(exact) >= 1
    for number, moment in enumerate(exact):
        path = tmp_path / f"{number}.db"
        assert restore(objects, path, system, txid=moment.txid).txid == moment.txid
        assert rows(path) == moment.rows
        path.unlink()
    for number, moment in enumerate(history.moments[1:]):
        path = tmp_path / f"t{number}.db"
        done = restore(objects, path, system, time_ms=moment.time_ms)
        at = max(txid for txid in known if txid <= moment.txid)
        assert done.txid == at
        if at == moment.txid:
            assert rows(path) == moment.rows
        path.unlink()


def test_a12_a_point_that_was_merged_away_is_refused_with_its_neighbours(
    history: History, system: SystemRuntime, tmp_path: Path
) -> None:
    objects = DirectoryObjects(history.target)
    compact(objects, system)
    for path in history.target.rglob("e00000001/L0/*.seg"):
        path.unlink()
    known = [point.txid for point in points(read_inventory(objects))]
    gone = next(m.txid for m in history.moments if m.txid not in known)

    with pytest.raises(NoSuchPoint, match="nearest"):
        restore(objects, tmp_path / "a.db", system, txid=gone)


class Slow(DirectoryObjects):
    """Gives bytes at a bounded rate; calls back before each object."""

    def __init__(self, root: Path, between: Any) -> None:
        super().__init__(root)
        self.between = between

    def get(self, key: str, *, length: int | None = None) -> Fetched | None:
        if key.endswith((".zst", ".seg")) and length is None:
            self.between()
        return super().get(key, length=length)


def test_a15_retention_never_takes_what_a_restore_or_a_point_needs(
    history: History, system: SystemRuntime, tmp_path: Path
) -> None:
    runtime = ManualRuntime()
    runtime.clock.jump(time.time() - runtime.clock.now_ms() / 1000 + 86_400)  # a day ahead
    objects = DirectoryObjects(history.target)
    inventory = read_inventory(objects)
    settings = ReplicationSettings(retain_s=3600, snapshots_min=1, fine_s=0, grace_s=3600)
    retention = Retention(objects, Lease(objects, runtime, 0.0), inventory, settings, runtime.clock)
    verified = points(inventory)[0].txid
    retention.verified = verified
    compact(objects, system)
    for info in objects.list(f"v1/{inventory.head.db_id}/"):
        inventory.sizes[info.key] = info.size
    snapshots = sorted(history.target.rglob("manifest.json"))

    steps = 0

    def retain() -> None:
        nonlocal steps
        steps += 1
        runtime.clock.advance(20)  # a restore of less than the grace
        retention.step()

    done = restore(Slow(history.target, retain), tmp_path / "a.db", system)
    assert steps >= 2
    assert_identical_rows(tmp_path / "a.db", history)
    runtime.clock.advance(4000)
    deleted = retention.step()

    assert deleted > 0
    assert done.txid == history.moments[-1].txid
    assert snapshots[0].exists()  # the last verified one
    retention.verified = 0
    retention.step()
    runtime.clock.advance(4000)
    retention.step()
    assert not snapshots[0].exists()
    assert verify(objects, full=True).healthy
    for point in points(read_inventory(objects)):
        path = tmp_path / f"p{point.txid}.db"
        restore(objects, path, system, txid=point.txid)
        path.unlink()


def assert_identical_rows(path: Path, history: History) -> None:
    assert rows(path) == history.moments[-1].rows


def test_a23_nothing_is_replaced_by_accident(
    history: History, system: SystemRuntime, tmp_path: Path
) -> None:
    objects = DirectoryObjects(history.target)
    path = tmp_path / "live.db"
    c = sqlite3.connect(path, isolation_level=None)
    c.execute("PRAGMA journal_mode=WAL")
    fill(c, 3)

    with pytest.raises(NewerLocal, match="exists"):
        restore(objects, path, system)
    c.close()
    later = time.time() + 3600
    os.utime(path, (later, later))
    with pytest.raises(NewerLocal, match="written to"):
        restore(objects, path, system, force=True)
    held = subprocess.Popen(
        [sys.executable, str(HERE / "writer_child.py"), str(path), "60", "1", "steady:5"],
        stdout=subprocess.DEVNULL,
    )
    until(lambda: Path(f"{path}-wal").exists())
    with pytest.raises(NewerLocal, match="open"):
        restore(objects, path, system, force=True, discard_newer=True)
    held.kill()
    held.wait()
    restore(objects, path, system, force=True, discard_newer=True)

    assert rows(path) == history.moments[-1].rows
    assert not Path(f"{path}-wal").exists()


def test_a23_a_killed_restore_leaves_the_place_as_it_was(history: History, tmp_path: Path) -> None:
    rep = Replica(tmp_path, str(history.target))
    path = tmp_path / "out.db"
    path.write_bytes(b"what was there")
    code = (
        "import sys, time, sync_engine.sinks.snapshot\n"
        "r = sys.modules['sync_engine.sinks.snapshot.restore']\n"
        "def slow(*args):\n"
        "    print('applying', flush=True); time.sleep(30)\n"
        "r._apply = slow\n"
        "from sync_engine.cli import main\n"
        "main(sys.argv[1:])\n"
    )
    words = ["restore", rep.target, str(path), "--force", "--discard-newer"]
    with subprocess.Popen([sys.executable, "-c", code, *words], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"applying\n"
        child.send_signal(signal.SIGKILL)

    assert path.read_bytes() == b"what was there"
    path.unlink()
    rep.restore(path)
    assert rows(path) == history.moments[-1].rows
    assert [p.name for p in tmp_path.iterdir() if "restoring" in p.name] == []


def test_a23_a_restore_that_another_one_has_just_finished_is_left_alone(
    history: History, system: SystemRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one renames its file between our opening and our locking of it."""
    path, aside = tmp_path / "a.db", tmp_path / ".a.db.restoring"
    lock = fcntl.flock

    def renamed_before(file: int, operation: int) -> None:
        aside.write_bytes(b"the other one's")
        aside.rename(path)
        lock(file, operation)

    monkeypatch.setattr(fcntl, "flock", renamed_before)
    with pytest.raises(NewerLocal, match="a moment ago"):
        restore(DirectoryObjects(history.target), path, system)

    assert path.read_bytes() == b"the other one's"


def test_a25_verify_and_drill_tell_healthy_from_doctored(
    history: History, system: SystemRuntime, tmp_path: Path
) -> None:
    rep = Replica(tmp_path, str(history.target))
    objects = DirectoryObjects(history.target)
    healthy = [
        rep.run("snapshots", "verify", rep.target).returncode,
        rep.run("snapshots", "verify", rep.target, "--full").returncode,
    ]
    done = drill(objects, tmp_path / "drill", system)

    chunk = next(history.target.rglob("snap/*/*.zst"))
    for chunk in history.target.rglob("snap/*/*.zst"):
        whole = bytearray(chunk.read_bytes())
        whole[len(whole) // 2] ^= 1
        chunk.write_bytes(whole)
    doctored = rep.run("snapshots", "verify", rep.target, "--full")
    with pytest.raises(SyncEngineError):
        drill(objects, tmp_path / "drill", system)

    assert healthy == [0, 0]
    assert done.txid == history.moments[-1].txid
    assert doctored.returncode == 5
    assert chunk.name in doctored.stderr
    assert not (tmp_path / "drill").exists()


def drills_failed(rep: Replica) -> int:
    return rep.log.read_text().count("drill_failed")


def test_a25_the_scheduled_drill_moves_its_mark_only_while_healthy(rep: Replica) -> None:
    c = rep.connect()
    fill(c, 20)
    rep.start("--interval", "100ms", "--drill", "300ms", "--no-lease")
    first = until(lambda: rep.status()["drill"]["verified_ms"])
    until(lambda: rep.status()["drill"]["verified_ms"] > first)

    for chunk in Path(rep.target).rglob("snap/*/*.zst"):
        chunk.write_bytes(b"?" * chunk.stat().st_size)
    error = until(lambda: rep.status()["drill"]["error"])
    stopped = rep.status()["drill"]["verified_ms"]
    c.execute("INSERT INTO t(v) VALUES(1)")
    rep.durable()
    begun = drills_failed(rep) + 1  # one may have been under way already
    until(lambda: drills_failed(rep) > begun)

    assert ".zst" in error
    assert rep.status()["drill"]["verified_ms"] == stopped
    c.close()


def test_a_dry_run_tells_what_would_be_fetched_and_changes_nothing(
    history: History, tmp_path: Path
) -> None:
    objects = DirectoryObjects(history.target)
    plan = make_plan(objects, read_inventory(objects))
    rep = Replica(tmp_path, str(history.target))

    done = rep.run("restore", rep.target, str(tmp_path / "x.db"), "--dry-run", "--json")

    assert done.returncode == 0
    assert f'"txid": {plan.txid}' in done.stdout
    assert not (tmp_path / "x.db").exists()


def test_restoring_is_byte_identical(history: History, tmp_path: Path, system: Any) -> None:
    restore(DirectoryObjects(history.target), tmp_path / "a.db", system, check="full")

    assert_identical(history.database, tmp_path / "a.db")
