"""Targets that fail, lie, are shared, or are not what was said: nothing is lost, nothing hidden."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sync_engine.errors import StoreUnavailable
from sync_engine.runtime import SystemRuntime
from sync_engine.sinks.snapshot.errors import Fenced
from sync_engine.sinks.snapshot.inventory import Branch, Head, Inventory
from sync_engine.sinks.snapshot.keys import SegmentKey
from sync_engine.sinks.snapshot.lease import Lease
from sync_engine.sinks.snapshot.objects import DirectoryObjects, open_objects
from sync_engine.sinks.snapshot.stage import Stage, StageFull
from sync_engine.sinks.snapshot.uploader import Uploader
from sync_engine.testing import FaultProxy, ManualRuntime
from tests.snapshot.kit import Replica, assert_identical, replica, rows, told, until
from tests.snapshot.test_capture import fill

DB_ID = "0" * 32


def on_s3(server: Any, directory: Path, port: int | None = None) -> Replica:
    """Return a replica in a new bucket, reached through a port."""
    bucket = server.new_bucket("replica")
    made = Replica(directory, f"s3://{bucket}/some/prefix")
    made.environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port or server.port}",
        "AWS_ACCESS_KEY_ID": server.access_key_id,
        "AWS_SECRET_ACCESS_KEY": server.secret_access_key,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    return made


@pytest.mark.external
def test_a_replica_in_s3_is_restored_whatever_the_server_can_do(
    any_s3: Any, tmp_path: Path
) -> None:
    rep = on_s3(any_s3, tmp_path)
    c = rep.connect()
    fill(c, 50)

    rep.once()
    fill(c, 50)
    rep.once()

    c.close()
    assert_identical(rep.db, rep.restore())
    checked = rep.run("snapshots", "verify", rep.target, "--full")
    assert checked.returncode == 0, checked.stderr
    ignores = "ignores conditional writes" in checked.stderr
    assert ignores == (not rep.status()["conditional_writes"])
    assert ignores == ("rclone" in any_s3.name)  # told loudly


@pytest.mark.external
def test_a08_an_outage_loses_nothing_and_shows_in_the_lag(
    moto_s3: Any, fault_proxy: Callable[[str, int], FaultProxy], tmp_path: Path
) -> None:
    proxy = fault_proxy("127.0.0.1", moto_s3.port)
    rep = on_s3(moto_s3, tmp_path, proxy.port)
    try:
        c = rep.connect()
        fill(c, 20)
        rep.start("--interval", "200ms", "--no-lease")
        rep.durable()

        proxy.cut_match = rb"PUT /replica[^ ]*/L0/"  # done, and the answer lost
        fill(c, 20)
        until(lambda: proxy.cuts >= 1)
        proxy.cut_match = None
        rep.durable()
        proxy.refuse = True
        proxy.drop_connections()
        for _ in range(3):
            fill(c, 10)
            time.sleep(0.4)
        lagging = until(lambda: rep.status() if rep.status()["lag_s"] > 0.8 else None)
        assert lagging["staged_objects"] >= 1
        proxy.refuse = False
        rep.durable()

        assert rep.status()["lag_s"] == 0
        assert rep.status()["staged_objects"] == 0
        assert rep.status()["capture"]["comparisons"] == 0  # the pin held all along
        c.close()
        assert_identical(rep.db, rep.restore())
    finally:
        rep.kill()


@pytest.mark.long
@pytest.mark.timeout(2400)
def test_a08_five_minutes_of_faults_and_twenty_of_outage(
    moto_s3: Any, fault_proxy: Callable[[str, int], FaultProxy], tmp_path: Path
) -> None:
    scale = float(os.environ.get("OUTAGE_SCALE", "1"))
    proxy = fault_proxy("127.0.0.1", moto_s3.port)
    rep = on_s3(moto_s3, tmp_path, proxy.port)
    try:
        c = rep.connect()
        fill(c, 20)
        rep.start()
        rep.durable()
        writer = rep.writer(1500 * scale, 1, "steady:50")
        faults: list[tuple[str, Any]] = [
            ("latency_s", 0.5),
            ("cut_match", rb"PUT /replica[^ ]*/L0/"),
            ("freeze", True),
            ("half_close", True),
        ]
        for name, value in faults:
            before = getattr(proxy, name)
            setattr(proxy, name, value)
            time.sleep(75 * scale)
            setattr(proxy, name, before)
            proxy.drop_connections()
        proxy.refuse = True
        proxy.drop_connections()
        time.sleep(1200 * scale)
        lag = rep.status()["lag_s"]
        proxy.refuse = False
        told(writer)
        rep.durable()

        assert lag > 600 * scale
        assert rep.status()["capture"]["comparisons"] == 0
        c.close()
        assert_identical(rep.db, rep.restore())
    finally:
        rep.kill()


def test_a09_a_full_stage_throws_nothing_away(rep: Replica) -> None:
    """The target is in the way of itself: nothing can be uploaded until it is moved back."""
    c = rep.connect()
    fill(c, 20)
    rep.start(
        "--interval", "100ms", "--option", "stage_bytes_max=200000", "--option", "part_bytes=65536",
        "--no-lease",
    )  # fmt: skip
    rep.durable()
    v1 = Path(rep.target) / "v1"
    v1.rename(rep.dir / "away")
    v1.touch()

    assert rep.process is not None
    rep.process.send_signal(signal.SIGSTOP)  # all of it comes with one look
    fill(c, 200, 4000)
    rep.process.send_signal(signal.SIGCONT)
    full = until(lambda: rep.status()["stage_full"])
    staged = rep.status()["staged_bytes"]
    assert sum(path.stat().st_size for path in rep.state_dir.glob("stage/*")) <= 200_000
    told_status = rep.run("snapshots", "status", str(rep.db), "--state-dir", str(rep.state_dir))
    fill(c, 20, 4000)  # the application does not notice
    v1.unlink()
    (rep.dir / "away").rename(v1)
    rep.durable()

    assert "quota" in full
    assert 0 < staged <= 200_000
    assert told_status.returncode == 1
    assert not rep.status()["stage_full"]
    c.close()
    rep.stop()
    assert_identical(rep.db, rep.restore())


def test_a09_a_full_disk_leaves_nothing_half_written(
    tmp_path: Path, runtime: ManualRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(tmp_path / "stage", 1 << 20, runtime)
    key = SegmentKey(DB_ID, 1, 0, 2, 2)

    def no_space(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", no_space)
        with pytest.raises(StageFull):
            stage.write(key, b"x" * 100)
    assert list((tmp_path / "stage").iterdir()) == []
    stage.admit(key, stage.write(key, b"x" * 100))

    staged = stage.next()
    assert staged is not None
    assert staged.path.read_bytes() == b"x" * 100


def test_a09_what_is_larger_than_the_whole_quota_is_let_in_alone(
    tmp_path: Path, runtime: ManualRuntime
) -> None:
    """It could never leave otherwise."""
    stage = Stage(tmp_path / "stage", 100, runtime)
    small, large = SegmentKey(DB_ID, 1, 0, 2, 2), SegmentKey(DB_ID, 1, 0, 3, 3)
    stage.admit(small, stage.write(small, b"x" * 60))
    assert not stage.full

    with pytest.raises(StageFull):
        stage.write(large, b"y" * 500)
    assert stage.full  # nothing left since: not worth another attempt
    waiting = stage.next()
    assert waiting is not None
    stage.done(waiting)
    assert not stage.full
    stage.admit(large, stage.write(large, b"y" * 500))

    assert stage.size == 500
    with pytest.raises(StageFull):
        stage.write(SegmentKey(DB_ID, 1, 0, 4, 4), b"z")


def test_a13_the_second_of_two_replicators_ends(tmp_path: Path) -> None:
    with replica(tmp_path) as one, replica(tmp_path) as two:
        two.state_dir = tmp_path / "other-state"
        c = one.connect()
        fill(c, 10)
        one.start("--interval", "200ms", "--option", "lease_ttl_s=3")
        two.start("--option", "lease_ttl_s=3", ready=False)
        assert two.process is not None
        assert two.process.wait(20) == 7, two.log_tail()

        fill(c, 10)
        one.durable()
        assert rows(one.restore()) == 20
        c.close()


def test_a13_a_cloned_state_is_fenced_off_by_conditional_writes_alone(tmp_path: Path) -> None:
    with replica(tmp_path) as one, replica(tmp_path) as clone:
        c = one.connect()
        fill(c, 10)
        one.once("--no-lease")
        clone.state_dir = tmp_path / "clone"
        shutil.copytree(one.state_dir, clone.state_dir)
        one.start("--interval", "100ms", "--no-lease")
        clone.start("--interval", "100ms", "--no-lease")

        def one_is_out() -> bool:
            fill(c, 1)
            return any(r.process.poll() is not None for r in (one, clone) if r.process)

        until(one_is_out)
        assert one.process is not None
        assert clone.process is not None
        winner, loser = (clone, one) if one.process.poll() is not None else (one, clone)
        assert loser.process is not None
        assert loser.process.wait() == 7
        winner.durable()
        c.close()
        winner.stop()
        assert_identical(one.db, winner.restore())


def test_a13_an_owner_that_slept_finds_itself_replaced(tmp_path: Path) -> None:
    pause_s = float(os.environ.get("PAUSE_SECONDS", "0"))
    with replica(tmp_path) as old, replica(tmp_path) as new:
        new.state_dir = tmp_path / "new-state"
        c = old.connect()
        fill(c, 10)
        old.start("--interval", "200ms", "--option", "lease_ttl_s=2")
        old.durable()
        assert old.process is not None
        old.process.send_signal(signal.SIGSTOP)
        fill(c, 10)
        new.start("--interval", "200ms", "--option", "lease_ttl_s=2")
        fill(c, 10)
        new.durable()
        time.sleep(pause_s)

        old.process.send_signal(signal.SIGCONT)
        assert old.process.wait(20) == 7, old.log_tail()
        fill(c, 10)
        new.durable()

        assert new.status()["epoch"] == 2
        c.close()
        new.stop()
        assert_identical(new.db, new.restore())


def test_a_new_owner_takes_over_at_once_where_the_old_one_is_known_to_be_dead(
    tmp_path: Path,
) -> None:
    with replica(tmp_path) as one:
        c = one.connect()
        fill(c, 5)
        one.start()
        one.durable()
        one.kill()

        began = time.monotonic()
        one.start()
        assert time.monotonic() - began < 20  # and not the thirty seconds of the lease
        c.close()


class LosesAnswers(DirectoryObjects):
    """Does what it is asked, once without saying so."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.lost = 0

    def put(self, key: str, data: bytes, **conditions: Any) -> str:
        tag = super().put(key, data, **conditions)
        if not self.lost:
            self.lost += 1
            raise StoreUnavailable("test", "put", "the answer was lost")
        return tag


@pytest.mark.parametrize("foreign", [False, True])
def test_a14_our_own_lost_answer_is_no_foreign_writer(
    tmp_path: Path, runtime: ManualRuntime, foreign: bool
) -> None:
    (tmp_path / "target").mkdir()
    objects = LosesAnswers(tmp_path / "target")
    stage = Stage(tmp_path / "stage", 1 << 20, runtime)
    key = SegmentKey(DB_ID, 1, 0, 2, 2)
    stage.admit(key, stage.write(key, b"segment"))
    inventory = Inventory(Head({"db_id": DB_ID, "epoch": 1}, ""), [Branch(1, 0, None)])
    done: list[int] = []
    lease = Lease(objects, runtime, 0.0)
    uploader = Uploader(objects, stage, lease, inventory, runtime, done.append)
    if foreign:
        objects.lost = 1
        objects.put(str(key), b"somebody else's")
        with pytest.raises(Fenced):
            uploader.step()
        return

    assert uploader.step() > 0
    assert uploader.step() == 0.0

    assert done == [2]
    assert uploader.counts.repeated == 1
    assert stage.next() is None


@pytest.mark.external
def test_a27_three_mistakes_have_three_exit_codes(rclone_s3: Any, tmp_path: Path) -> None:
    rep = on_s3(rclone_s3, tmp_path)
    out = str(tmp_path / "x.db")

    empty = rep.run("restore", rep.target, out)
    missing = rep.run("restore", "s3://no-such-bucket-here/x", out)
    rep.environment["AWS_SECRET_ACCESS_KEY"] = "wrong"
    refused = rep.run("restore", rep.target, out)

    codes = [done.returncode for done in (empty, missing, refused)]
    assert codes == [1, 2, 6], [done.stderr for done in (empty, missing, refused)]
    assert "holds no replica" in empty.stderr
    assert "no such bucket" in missing.stderr
    assert "credentials" in refused.stderr


def test_an_unknown_option_is_an_error(rep: Replica) -> None:
    done = rep.run("replicate", str(rep.db), rep.target, "--option", "encryption=aes")

    assert done.returncode == 2
    assert "encryption" in done.stderr


def test_conditional_writes_of_a_directory_let_one_of_many_through(tmp_path: Path) -> None:
    runtime = SystemRuntime("test")
    try:
        objects = open_objects(str(tmp_path), runtime)
        first = objects.put("HEAD", b"0")
        won: list[str] = []

        def swap(number: int) -> None:
            try:
                won.append(objects.put("HEAD", f"of {number}".encode(), if_match=first))
            except Exception:
                return

        threads = [threading.Thread(target=swap, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
    finally:
        runtime.close(1)


@pytest.mark.external
def test_doctor_tells_whether_a_target_honours_conditional_writes(
    any_s3: Any, tmp_path: Path
) -> None:
    rep = on_s3(any_s3, tmp_path)
    file = tmp_path / "pipeline.toml"
    file.write_text(
        f"[engine]\ndata_dir = {json.dumps(str(tmp_path / 'data'))}\n"
        '[[sink]]\nname = "backup"\ntype = "snapshot"\n'
        f"target = {json.dumps(rep.target)}\n"
    )
    rep.environment["SYNC_ENGINE_DATA_DIR"] = str(tmp_path / "data")

    ran = rep.run("doctor", "--pipeline", str(file), "--json")

    assert ran.returncode == 0, ran.stderr
    told = [one for one in json.loads(ran.stdout)["findings"] if one["part"] == "replica"]
    if "rclone" in any_s3.name:
        assert [one["severity"] for one in told] == ["warning"]
        assert "ignores conditional writes: the lease falls back" in told[0]["what"]
    else:
        assert [one["severity"] for one in told] == ["ok"]
        assert "honours conditional writes" in told[0]["what"]


def test_doctor_names_a_target_that_is_not_there(tmp_path: Path) -> None:
    rep = Replica(tmp_path, str(tmp_path / "nowhere"))
    rep.environment["SYNC_ENGINE_DATA_DIR"] = str(tmp_path / "data")

    ran = rep.run("doctor", "--target", rep.target, "--json")

    assert ran.returncode == 2
    told = [one for one in json.loads(ran.stdout)["findings"] if one["part"] == "replica"]
    assert [one["severity"] for one in told] == ["error"]
    assert "there is no such directory" in told[0]["what"]
