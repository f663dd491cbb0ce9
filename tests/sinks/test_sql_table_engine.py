"""The sink on an engine, step by step, and in the process of `sync-engine run`."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from sync_engine import SyncEngine, SyncItem
from sync_engine.core import failpoints
from sync_engine.core.item import Change
from sync_engine.errors import StoreUnavailable
from sync_engine.runtime import SystemClock
from sync_engine.sinks.sql_table import Column, SqlTableSink, Table
from tests.cli.conftest import Cli, cli, data_dir  # noqa: F401 - fixtures
from tests.flow.support_ends import Bench

ROOT = Path(__file__).parents[2]
USERS = Table(
    name="users",
    key="user.{id}",
    columns=(Column("id", "integer", "key"), Column("name", "text", "json.name")),
)
ORDERS = Table(
    name="orders",
    key="order.{id}",
    columns=(Column("id", "integer", "key"), Column("customer", "integer", "json.customer")),
    references={"customer": "users.id"},
)


class _MayFail(SqlTableSink):
    """Unavailable on command."""

    down = False

    def apply_at(self, changes: Sequence[Change], log_uuid: str, position: int) -> None:
        if self.down:
            raise StoreUnavailable("tables", "apply", "switched off")
        super().apply_at(changes, log_uuid, position)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "target.db"


@pytest.fixture
def sink(target: Path) -> Iterator[_MayFail]:
    made = _MayFail(f"sqlite:///{target}", [USERS, ORDERS], clock=SystemClock(), name="tables")
    yield made
    made.close()


def rows(target: Path, table: str = "users") -> dict[int, Any]:
    connection = sqlite3.connect(target)
    try:
        return {row[0]: row[1] for row in connection.execute(f"SELECT * FROM {table}")}
    except sqlite3.OperationalError:  # not there yet
        return {}
    finally:
        connection.close()


def held(engine: SyncEngine) -> dict[int, str]:
    return {int(i.id.split(".")[1]): i.json()["name"] for i in engine.scan_prefix("user.")}


def user(number: int, name: str) -> SyncItem:
    return SyncItem.from_json(f"user.{number}", {"name": name})


def order(number: int, customer: int) -> SyncItem:
    return SyncItem.from_json(f"order.{number}", {"customer": customer})


def test_a_copy_that_meets_children_first_ends_whole(
    tmp_path: Path, target: Path, sink: _MayFail
) -> None:
    bench = Bench(tmp_path / "data")
    bench.engine.submit_many([user(n, f"n{n}") for n in range(50)])
    bench.engine.submit_many([order(n, n % 50) for n in range(300)])
    bench.engine.add_sink("tables", sink, prefix=["user.", "order."])
    assert bench.engine.flush(60, sinks=True).complete
    assert rows(target) == held(bench.engine)
    assert rows(target, "orders") == {n: n % 50 for n in range(300)}
    assert bench.engine.dead_letters() == []
    bench.engine.close()


class _Killed(BaseException):
    """The process is dead: nothing after this line happened."""


def test_t04_a_copy_killed_half_way_goes_on_under_writes(
    tmp_path: Path, target: Path, sink: _MayFail
) -> None:
    bench = Bench(tmp_path / "data")
    bench.engine.submit_many([user(n, "first") for n in range(2000)])
    bench.engine.flush(60)

    def kill() -> None:
        if len(rows(target)) >= 500:
            raise _Killed

    with pytest.raises(_Killed), failpoints.during("backfill.saved", kill):
        bench.engine.add_sink("tables", sink, prefix=["user.", "order."])
        for number in range(0, 2000, 3):
            bench.engine.submit(user(number, "second"))
            bench.engine.delete(f"user.{number + 1}")
        bench.engine.flush(60, sinks=True)
    assert 500 <= len(rows(target)) < 1300
    sink.close()

    bench.crash()
    bench.engine.add_sink("tables", sink, prefix=["user.", "order."])
    bench.engine.submit(user(5, "third"))
    bench.engine.delete("user.8")
    assert bench.engine.flush(60, sinks=True).complete
    assert rows(target) == held(bench.engine)
    assert bench.engine.dead_letters() == []
    bench.engine.close()


def _cut(tmp_path: Path, target: Path, sink: _MayFail, changes: int) -> None:
    """The sink is down while more is written than its log holds."""
    chance = random.Random(5)
    bench = Bench(tmp_path / "data", log_bytes_max=1 << 20)
    engine = bench.engine
    engine.submit_many([user(n, "first") for n in range(500)])
    engine.add_sink("tables", sink, prefix=["user.", "order."], on_full="cut")
    assert engine.flush(60, sinks=True).complete
    assert len(rows(target)) == 500

    sink.down = True
    pad = "x" * max(1, 5_000_000 // changes)
    for number in range(changes):
        if chance.random() < 0.3:
            engine.delete(f"user.{chance.randrange(700)}")
        else:
            engine.submit(user(chance.randrange(700), f"{number}{pad}"))
        if number % 100 == 0:
            bench.run(0.3)
    sink.down = False
    assert engine.flush(600, sinks=True).complete
    assert rows(target) == held(engine)
    assert engine.stats()["sinks"]["tables"]["copies"] >= 2
    engine.close()


def test_t05_a_cut_is_known_and_everything_is_copied_again(
    tmp_path: Path, target: Path, sink: _MayFail, caplog: pytest.LogCaptureFixture
) -> None:
    _cut(tmp_path, target, sink, 2_000)
    assert any("resync" in record.getMessage() for record in caplog.records)


@pytest.mark.long
@pytest.mark.skipif("LONG" not in os.environ, reason="full length, with LONG=1")
@pytest.mark.timeout(1800)
def test_t05_at_full_length(tmp_path: Path, target: Path, sink: _MayFail) -> None:
    _cut(tmp_path, target, sink, 100_000)


def test_t05_rows_that_no_deletion_tells_of_are_swept_by_a_repair(
    tmp_path: Path, target: Path, sink: _MayFail
) -> None:
    """The archive remembers deletions for a while only; a copy cannot tell of older ones."""
    bench = Bench(tmp_path / "data")
    bench.engine.submit_many([user(n, "n") for n in range(20)])
    bench.engine.add_sink("tables", sink, prefix=["user.", "order."])
    assert bench.engine.flush(60, sinks=True).complete
    connection = sqlite3.connect(target)
    connection.execute("INSERT INTO users VALUES (77, 'vanished', 5)")
    connection.commit()
    connection.close()

    found = sink.verify(lambda: bench.engine.scan_prefix("user."))
    assert [(one.id, one.kind) for one in found.drift] == [("user.77", "extra")]
    assert sink.repair(found, bench.engine.get) == 1
    assert rows(target) == held(bench.engine)
    bench.engine.close()


def test_t08_an_idle_close_waits_for_nothing(tmp_path: Path, target: Path, sink: _MayFail) -> None:
    """On a clock that only moves where somebody waits: not one tick passes."""
    bench = Bench(tmp_path / "data")
    bench.engine.add_sink("tables", sink, prefix="user.")
    bench.engine.submit_many([user(n, "n") for n in range(1000)])
    assert bench.engine.flush(60, sinks=True).complete
    bench.run(60)
    before = bench.runtime.clock.monotonic()
    report = bench.engine.close()
    assert report.complete
    assert bench.runtime.clock.monotonic() - before < 0.001
    assert len(rows(target)) == 1000


@pytest.mark.long
@pytest.mark.skipif("LONG" not in os.environ, reason="full length, with LONG=1")
def test_t08_an_idle_close_in_real_time(tmp_path: Path, target: Path) -> None:
    took = []
    for turn in range(10):
        made = SqlTableSink(f"sqlite:///{target}", [USERS], clock=SystemClock(), name="tables")
        engine = SyncEngine.open(tmp_path / "data").start()
        engine.add_sink("tables", made, prefix="user.")
        engine.submit(user(turn, "n"))
        assert engine.flush(60, sinks=True).complete
        began = time.perf_counter()
        engine.close()
        took.append((time.perf_counter() - began) * 1000)
        made.close()
    sys.stdout.write(f"idle close: median {sorted(took)[5]:.1f} ms, most {max(took):.1f} ms\n")
    assert sorted(took)[5] < 1000


_PIPELINE = """
[engine]
data_dir = "{data}"
[http]
listen = ":0"
[[source]]
name = "in"
type = "tests.pipeline.adapters_for_tests:counting"
prefix = "user."
count = 2000
[[sink]]
name = "tables"
type = "sql_table"
id_prefix = ["user."]
url = "sqlite:///{target}"
[[sink.tables]]
name = "users"
key = "user.{{id}}"
columns = {{ id = "integer from key", name = "text from text" }}
"""


def test_a_pipeline_keeps_tables_and_the_commands_tell_of_them(
    tmp_path: Path,
    target: Path,
    cli: Cli,  # noqa: F811
) -> None:
    """`sync-engine run` is killed, run again and stopped; then `tables` looks, finds and mends."""
    file = tmp_path / "pipeline.toml"
    file.write_text(_PIPELINE.format(data=tmp_path / "data", target=target))
    for number in (signal.SIGKILL, signal.SIGTERM):
        child = _run(file)
        try:
            deadline = time.monotonic() + 60
            wanted = 1 if number == signal.SIGKILL else 2000
            lock = tmp_path / "data" / "engine.log.lock"
            while len(rows(target)) < wanted or lock.read_text() != str(child.pid):
                assert time.monotonic() < deadline
                assert child.poll() is None
                time.sleep(0.02)
            child.send_signal(number)
            assert child.wait(60) == (0 if number == signal.SIGTERM else -number)
        finally:
            child.kill()
            child.wait()
    assert rows(target) == {n: str(n) for n in range(2000)}

    lag = cli("tables", "lag", str(file), "--json")
    assert lag.code == 0, lag.err
    assert lag.json[0]["age_s"] < 600
    assert cli("tables", "verify", str(file)).code == 0

    connection = sqlite3.connect(target)
    connection.execute("UPDATE users SET name = 'x' WHERE id = 7")
    connection.execute("DELETE FROM users WHERE id = 8")
    connection.commit()
    connection.close()
    verified = cli("tables", "verify", str(file), "--json")
    assert verified.code == 1
    assert {one["id"] for one in verified.json["drift"]} == {"user.7", "user.8"}
    repaired = cli("tables", "repair", str(file), "--json")
    assert (repaired.code, repaired.json["mended"]) == (0, 2)
    assert rows(target) == {n: str(n) for n in range(2000)}

    connection = sqlite3.connect(target)
    connection.executescript(
        """
        UPDATE users SET name = 'x' WHERE id IN (7, 8);
        CREATE TRIGGER kept BEFORE UPDATE ON users WHEN old.id = 7
        BEGIN SELECT RAISE(ABORT, 'as it is'); END;
        """
    )
    connection.close()
    left = cli("tables", "repair", str(file), "--json")
    assert (left.code, left.json["mended"]) == (3, 1), left.err
    assert rows(target)[7] == "x"


def _run(file: Path) -> subprocess.Popen[bytes]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SYNC_ENGINE_")}
    return subprocess.Popen(
        [sys.executable, "-m", "sync_engine", "run", str(file)],
        cwd=ROOT,
        env={**environment, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
