"""What is committed is captured: whatever the application does, and whoever is killed."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.snapshot.kit import HERE, Replica, assert_identical, rows, told, until
from tests.snapshot.soak import soak

STEPS = ("staged", "state_saved", "put_sent", "put_answered", "stage_deleted")


def fill(connection: sqlite3.Connection, count: int, size: int = 500) -> None:
    connection.execute("CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, k TEXT, v BLOB)")
    for _ in range(count):
        connection.execute("INSERT INTO t(v) VALUES(randomblob(?))", (size,))


def grow(connection: sqlite3.Connection, count: int, size: int) -> None:
    """Insert rows in one transaction."""
    connection.execute(
        "WITH RECURSIVE s(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM s WHERE i < ?)"
        " INSERT INTO t(v) SELECT randomblob(?) FROM s",
        (count, size),
    )


@pytest.mark.parametrize("level", [pytest.param(1, marks=pytest.mark.long), 22])
def test_a01_a_missing_database_is_restored_with_every_option_set(rep: Replica, level: int) -> None:
    with rep.connect() as c:
        fill(c, 60)
    c.close()
    options = (
        "--level", str(level), "--snapshot-interval", "1h", "--retain", "2h", "--interval", "200ms",
        "--option", "stage_bytes_max=104857600",
    )  # fmt: skip

    rep.once(*options)
    kept = rep.dir / "kept.db"
    shutil.copy(rep.db, kept)
    for end in ("", "-wal", "-shm"):
        Path(f"{rep.db}{end}").unlink(missing_ok=True)
    refused = rep.run("replicate", str(rep.db), rep.target, "--once", "--no-restore")
    rep.once(*options)

    assert refused.returncode == 1
    assert_identical(kept, rep.db)


def test_a02_what_is_two_seconds_old_survives_the_host(rep: Replica) -> None:
    c = rep.connect()
    fill(c, 1)
    rep.start()
    marks = []
    began = time.monotonic()
    while time.monotonic() - began < 3.0:
        c.execute("INSERT INTO t(v) VALUES(randomblob(100))")
        marks.append(time.monotonic())
        time.sleep(0.03)

    killed = time.monotonic()
    rep.kill()

    old = sum(mark < killed - 2.0 for mark in marks) + 1
    assert old > 10
    assert rows(rep.restore()) >= old


def test_a03_wild_writers_leave_no_gap(tmp_path: Path) -> None:
    found = soak(tmp_path, 4.0, kill_replicator=False, kill_writers=False)

    assert found["identical"]
    assert found["full_scans"] == 1
    assert found["comparisons"] <= found["yields"]


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a03_wild_writers_leave_no_gap_for_ten_minutes(tmp_path: Path) -> None:
    seconds = float(os.environ.get("SOAK_SECONDS", "600"))
    found = soak(tmp_path, seconds, kill_replicator=False, kill_writers=False)

    assert found["full_scans"] == 1
    assert found["comparisons"] <= found["yields"]


def test_a04_a_log_that_restarts_in_place_hides_nothing(rep: Replica) -> None:
    """The new log stays shorter than the old one was: its size tells nothing."""
    c = rep.connect()
    c.execute("PRAGMA wal_autocheckpoint=0")
    fill(c, 100, 3000)
    rep.start()
    rep.durable()

    wal = Path(f"{rep.db}-wal")
    size, salts = wal.stat().st_size, wal.read_bytes()[16:24]
    inserted = 0

    def restarted() -> bool:
        nonlocal inserted
        c.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        time.sleep(0.3)  # the next look lands behind the checkpoint: the log may restart
        c.execute("INSERT INTO t(v) VALUES(randomblob(20))")
        inserted += 1
        return wal.read_bytes()[16:24] != salts

    until(restarted)
    for _ in range(20):
        c.execute("INSERT INTO t(v) VALUES(randomblob(20))")
    rep.durable()

    assert wal.stat().st_size <= size
    status = rep.status()
    assert (status["capture"]["comparisons"], status["capture"]["full_scans"]) == (0, 1)
    restored = rep.restore()
    assert rows(restored) == 120 + inserted
    c.close()
    rep.stop()
    assert_identical(rep.db, restored)


def test_a05_a_kill_at_any_step_costs_a_comparison_at_most(rep: Replica) -> None:
    c = rep.connect()
    fill(c, 400)
    rep.once()
    snapshots = rep.objects("manifest.json")

    for step in STEPS:
        rep.start("--interval", "100ms", ready=False, KILL_AT=f"snapshot.{step}:1")
        assert rep.process is not None
        while rep.process.poll() is None:
            fill(c, 3)
            time.sleep(0.01)
        assert rep.process.wait() == -9, step
    rep.once()

    c.close()
    assert rep.objects("manifest.json") == snapshots  # nothing was uploaded whole again
    assert len(rep.objects("/e00000001/L0/")) >= 2
    assert not rep.objects("e00000002")
    assert_identical(rep.db, rep.restore(None, "--check", "full"))
    assert rep.run("snapshots", "verify", rep.target, "--full").returncode == 0


def test_a05_kills_at_random(tmp_path: Path) -> None:
    found = soak(tmp_path, 5.0, kill_replicator=True, kill_writers=False)

    assert found["identical"]
    assert found["replicator_kills"] >= 1


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a05_a06_fifty_kills_of_each(tmp_path: Path) -> None:
    seconds = float(os.environ.get("SOAK_SECONDS", "180"))
    found = soak(tmp_path, seconds, kill_replicator=True, kill_writers=True)

    assert found["replicator_kills"] >= 50
    assert found["writer_kills"] >= 50


@pytest.fixture(scope="session")
def killsync(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs a C compiler on Linux")
    library = tmp_path_factory.mktemp("killsync") / "killsync.so"
    source = str(HERE / "killsync.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), source, "-ldl"], check=True)
    return library


def test_a06_a_commit_that_was_never_published_is_never_shipped(
    rep: Replica, killsync: Path
) -> None:
    """Its frames are in the log, complete and with right checksums; the source never shows them."""
    c = rep.connect()
    fill(c, 20, 900)
    rep.start("--interval", "100ms")
    rep.durable()
    flag = rep.dir / "kill"
    phantom = (  # its first commit restarts the log, if it can be; the second is the phantom
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None);"
        "c.execute('PRAGMA synchronous=FULL'); c.execute('INSERT INTO t(v) VALUES(1)');"
        "open(sys.argv[2], 'w').close(); c.execute('BEGIN');"
        "[c.execute(\"INSERT INTO t(k, v) VALUES('PHANTOM', randomblob(3000))\")"
        " for _ in range(30)]; c.execute('COMMIT')"
    )
    dead = subprocess.run(
        [sys.executable, "-c", phantom, str(rep.db), str(flag)],
        env=os.environ | {"LD_PRELOAD": str(killsync), "KILL_SYNC": str(flag)},
        check=False,
    )
    flag.unlink()
    assert dead.returncode == 9
    wal = Path(f"{rep.db}-wal").read_bytes()
    assert b"PHANTOM" in wal

    rep.durable()
    first = rep.restore()
    c.execute("INSERT INTO t(k, v) VALUES('REAL', randomblob(900))")  # over the phantom's head
    rep.durable()
    second = rep.restore()

    for path, wanted in ((first, (21, 0, 0)), (second, (22, 0, 1))):
        with sqlite3.connect(path) as found:
            counts = found.execute(
                "SELECT count(*), count(*) FILTER (WHERE k='PHANTOM'),"
                " count(*) FILTER (WHERE k='REAL') FROM t"
            ).fetchone()
        found.close()
        assert counts == wanted
    c.close()
    rep.stop()
    assert_identical(rep.db, second)


def test_a07_what_changed_while_nobody_looked_is_found_by_comparison(rep: Replica) -> None:
    c = rep.connect()
    fill(c, 1)
    grow(c, 4000, 1000)
    rep.once()
    before = set(rep.objects())

    c.execute("UPDATE t SET v = randomblob(1000) WHERE id BETWEEN 100 AND 110")
    c.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    c.execute("UPDATE t SET v = randomblob(1000) WHERE id BETWEEN 200 AND 210")
    c.close()
    rep.once()

    fresh = [key for key in set(rep.objects()) - before if key.endswith(".seg")]
    assert len(fresh) == 1
    size = (Path(rep.target) / fresh[0]).stat().st_size
    assert size < 0.05 * rep.db.stat().st_size
    assert_identical(rep.db, rep.restore())


@pytest.mark.parametrize("vacuum", [pytest.param("none", marks=pytest.mark.long), "full"])
def test_a17_a_database_shrinks_and_grows(rep: Replica, vacuum: str) -> None:
    c = sqlite3.connect(rep.db, isolation_level=None)
    c.execute(f"PRAGMA auto_vacuum={vacuum}")
    c.execute("PRAGMA journal_mode=WAL")
    fill(c, 10)
    grow(c, 1000, 2000)
    rep.start("--interval", "100ms")
    rep.durable()

    c.execute("DELETE FROM t WHERE id % 3 > 0")
    c.execute("VACUUM")
    small = rep.durable()
    pages = c.execute("PRAGMA page_count").fetchone()[0]
    grow(c, pages // 2, 4000)
    rep.durable()

    c.close()
    rep.stop()
    assert_identical(rep.db, rep.restore())
    shrunk = rep.restore(None, "--txid", str(small))
    assert shrunk.stat().st_size == pages * 4096


def test_a19_a_truncating_checkpoint_gets_through_under_load(rep: Replica) -> None:
    told(rep.writer(0.3, 0, "simple"))
    rep.start()
    writer = rep.writer(5.0, 1, "steady:300")
    c = rep.connect()
    took = []
    for _ in range(3):
        time.sleep(0.7)
        began = time.monotonic()
        c.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        took.append(time.monotonic() - began)

    assert told(writer)["commits"] > 200
    assert max(took) <= 5.0
    rep.durable()
    c.close()
    rep.stop()
    assert_identical(rep.db, rep.restore())


def test_a22_a_replaced_database_is_followed(rep: Replica) -> None:
    c = rep.connect()
    fill(c, 30)
    c.close()
    older = rep.dir / "older.db"
    shutil.copy(rep.db, older)
    c = rep.connect()
    fill(c, 50)
    rep.start("--interval", "200ms")
    rep.durable()
    newest = rep.status()["durable_txid"]
    c.close()

    shutil.copy(older, rep.dir / "coming.db")
    for end in ("-wal", "-shm"):
        Path(f"{rep.db}{end}").unlink(missing_ok=True)
    (rep.dir / "coming.db").rename(rep.db)
    began = time.monotonic()
    until(lambda: rep.status()["durable_txid"] > newest)

    assert time.monotonic() - began < 10
    assert rows(rep.restore()) == 30
    assert rows(rep.restore(None, "--txid", str(newest))) == 80

    again = rep.status()["durable_txid"]
    for end in ("", "-wal", "-shm"):
        Path(f"{rep.db}{end}").unlink(missing_ok=True)
    time.sleep(0.3)  # for so long there is none
    c = rep.connect()
    fill(c, 5)
    until(lambda: rep.status()["durable_txid"] > again)
    rep.durable()

    assert rows(rep.restore()) == 5
    assert rows(rep.restore(None, "--txid", str(newest))) == 80
    c.close()
    rep.stop()
    assert_identical(rep.db, rep.restore())


def test_a24_a_process_that_uses_the_file_is_refused(rep: Replica) -> None:
    c = rep.connect()
    fill(c, 1)
    code = (
        "import sqlite3, sys; from pathlib import Path\n"
        "from sync_engine.errors import ConfigError\n"
        "from sync_engine.sinks.snapshot.database import Database\n"
        "c = sqlite3.connect(sys.argv[1]); c.execute('SELECT * FROM t').fetchall()\n"
        "try: Database(Path(sys.argv[1]))\n"
        "except ConfigError as exc: print(exc); sys.exit(5)\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", code, str(rep.db)], capture_output=True, text=True, check=False
    )

    assert done.returncode == 5, done.stderr
    assert "open in this process" in done.stdout
    c.close()


def test_a_database_without_a_write_ahead_log_is_refused(rep: Replica) -> None:
    c = sqlite3.connect(rep.db)
    c.execute("CREATE TABLE t(x)")
    c.close()

    done = rep.run("replicate", str(rep.db), rep.target, "--once")

    assert done.returncode == 2
    assert "journal_mode=WAL" in done.stderr


IMAGE_UNDER_RESTART = """
import subprocess, sys
from pathlib import Path
from sync_engine.sinks.snapshot.checksums import FrameChecksums
from sync_engine.sinks.snapshot.database import Database
from sync_engine.sinks.snapshot.image import whole_image

database = Database(Path(sys.argv[1]))
assert database.checkpoint()
database.repin()  # everything is copied: this pin does not keep the log from restarting
image, position = whole_image(database, FrameChecksums(database.page_size))
salts = database.header().salts
before = [image.page(number) for number in range(1, image.pages + 1)]
table = image.table()
image, _ = whole_image(database, FrameChecksums(database.page_size))
write = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None);" \
    "[c.execute('UPDATE t SET v = randomblob(500)') for _ in range(3)]"
subprocess.run([sys.executable, "-c", write, sys.argv[1]], check=True)
assert database.header().salts != salts, "the log did not restart: nothing was tested"
assert [image.page(number) for number in range(1, image.pages + 1)] == before
again, _ = image, position
assert (again.table() == table).all()
"""


def test_an_image_stays_what_it_was_when_the_log_restarts_under_it(rep: Replica) -> None:
    c = rep.connect()
    c.execute("PRAGMA wal_autocheckpoint=0")
    fill(c, 100)

    done = subprocess.run(
        [sys.executable, "-c", IMAGE_UNDER_RESTART, str(rep.db)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    c.close()
