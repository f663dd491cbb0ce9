"""The checks T1 to T10 of relational replication, by name."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from sync_engine import SyncEngine, SyncItem
from sync_engine.core.item import Change
from sync_engine.errors import ConfigError, StoreRejected, StoreUnavailable, SyncEngineError
from sync_engine.runtime import SystemClock
from sync_engine.sinks.sql_table import Column, RawTable, SqlTableSink, Table
from sync_engine.sinks.sql_table.tables import tables_from
from sync_engine.testing import ManualClock

USERS = Table(
    name="users",
    key="user.{id}",
    columns=(
        Column("id", "integer", "key"),
        Column("name", "text", "json.name"),
        Column("balance", "decimal", "json.balance"),
    ),
)
LOG = "log-1"


def user(number: int, version: int, name: str | None = None) -> Change:
    content = json.dumps({"name": name or f"n{number}", "balance": 1}).encode()
    return Change(f"user.{number}", version, content)


def gone(number: int, version: int) -> Change:
    return Change(f"user.{number}", version, None)


def query(url: str, text: str) -> list[tuple[Any, ...]]:
    engine = sa.create_engine(url, poolclass=sa.pool.NullPool)
    with engine.begin() as connection:
        done = connection.execute(sa.text(text))
        return [tuple(row) for row in done] if done.returns_rows else []


def names(url: str) -> dict[int, str]:
    return {int(id): name for id, name in query(url, "SELECT id, name FROM users")}


@pytest.fixture
def make(request: pytest.FixtureRequest) -> Callable[..., SqlTableSink]:
    def made(url: str, *tables: Table | RawTable, **settings: Any) -> SqlTableSink:
        sink = SqlTableSink(url, tables or (USERS,), clock=SystemClock(), **settings)
        request.addfinalizer(sink.close)
        return sink

    return made


def held(engine: SyncEngine) -> dict[int, str]:
    return {int(i.id.split(".")[1]): i.json()["name"] for i in engine.scan_prefix("user.")}


def write(engine: SyncEngine, number: int, name: str) -> None:
    engine.submit(SyncItem.from_json(f"user.{number}", {"name": name, "balance": 1}))


def wait_until(true: Callable[[], bool], timeout_s: float = 30.0) -> None:
    until = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < until, "did not come true in time"
        threading.Event().wait(0.02)


def test_t01_a_second_write_changes_the_value_column(any_sql_url: str, make: Any) -> None:
    sink = make(any_sql_url)
    sink.attach()
    sink.apply([user(1, 1, "old")])
    sink.apply([user(1, 2, "new")])
    assert names(any_sql_url) == {1: "new"}


def test_t01_every_type_comes_back_as_it_went(any_sql_url: str, make: Any) -> None:
    kinds = {
        "bytes": "content", "text": "json.t", "integer": "json.i", "float": "json.f",
        "decimal": "json.d", "boolean": "json.b", "timestamp": "json.ts", "json": "json.j",
    }  # fmt: skip
    columns = [Column(f"c_{kind}", kind, source) for kind, source in kinds.items()]
    table = Table(
        name="kinds",
        columns=(Column("id", "text", "id"), Column("at", "timestamp", "updated_at"), *columns),
    )
    document = {
        "t": "ä€😀", "i": -(1 << 62), "f": 0.1, "d": "12345678901234567890.123456789", "b": True,
        "ts": "2024-02-29T12:34:56.789012+02:00", "j": {"a": [1, None]},
    }  # fmt: skip
    item = SyncItem("a", json.dumps(document).encode(), version=1_700_000_000_123 << 20)
    sink = make(any_sql_url, table)
    sink.attach()
    sink.apply([Change(item.id, item.version, item.content)])
    assert sink.verify(lambda: [item]).clean


class _Fails(SqlTableSink):
    """Raises before its n-th statement, as a process that is killed there."""

    def __init__(self, *args: Any, after: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._left = after

        @sa.event.listens_for(self._target.engine, "before_cursor_execute")
        def before(*_: Any) -> None:
            self._left -= 1
            if self._left == 0:
                raise KeyboardInterrupt


def test_t02_dying_between_any_two_statements_leaves_whole_batches(
    any_sql_url: str, make: Any
) -> None:
    other = Table(name="copies", key=USERS.key, columns=USERS.columns)
    sink = make(any_sql_url, USERS, other)
    sink.attach()
    sink.apply_at([user(n, 1) for n in range(5)], LOG, 5)

    batch = [user(0, 10, "x"), gone(1, 11), user(7, 12)]
    deaths = 0
    for after in range(1, 100):
        dying = _Fails(any_sql_url, (USERS, other), clock=SystemClock(), after=after)
        try:
            dying.apply_at(batch, LOG, 8)
            break
        except KeyboardInterrupt:
            deaths += 1
            assert sink.position(LOG) == 5
            assert names(any_sql_url) == {n: f"n{n}" for n in range(5)}
        finally:
            dying.close()

    assert deaths > 5
    expected = {0: "x", 2: "n2", 3: "n3", 4: "n4", 7: "n7"}
    assert names(any_sql_url) == expected
    assert dict(query(any_sql_url, "SELECT id, name FROM copies")) == expected
    assert sink.position(LOG) == 8
    sink.apply_at(batch, LOG, 8)
    assert names(any_sql_url) == expected


def test_t03_delete_and_insert_of_one_key_end_as_the_last(any_sql_url: str, make: Any) -> None:
    sink = make(any_sql_url)
    sink.attach()
    sink.apply([user(1, 1), user(2, 1)])
    sink.apply([gone(1, 2), user(1, 3, "back"), user(2, 2), gone(2, 3)])
    assert names(any_sql_url) == {1: "back"}


def test_t03_unique_values_are_swapped(any_sql_url: str, make: Any) -> None:
    columns = (USERS.columns[0], Column("name", "text(64)", "json.name"))
    sink = make(
        any_sql_url, Table(name="users", key=USERS.key, columns=columns, unique=(("name",),))
    )
    sink.attach()
    sink.apply([user(1, 1, "a"), user(2, 2, "b")])
    sink.apply([user(1, 3, "b"), user(2, 4, "a")])
    assert names(any_sql_url) == {1: "b", 2: "a"}


def test_t03_parents_and_children_keep_their_order(any_sql_url: str, make: Any) -> None:
    parent = Table(name="parents", key="p.{id}", columns=(Column("id", "integer", "key"),))
    child = Table(
        name="children",
        key="c.{id}",
        columns=(Column("id", "integer", "key"), Column("parent", "integer", "json.p")),
        references={"parent": "parents.id"},
    )
    sink = make(any_sql_url, parent, child)
    sink.attach()
    sink.apply_at([Change("p.1", 1, b"{}"), Change("c.1", 2, b'{"p":1}')], LOG, 2)
    sink.apply_at([Change("c.1", 3, None), Change("p.1", 4, None), Change("p.2", 5, b"{}")], LOG, 5)
    assert query(any_sql_url, "SELECT id FROM parents") == [(2,)]
    with pytest.raises(StoreRejected):
        sink.apply_at([Change("c.9", 6, b'{"p":99}')], LOG, 6)


def test_t04_rows_of_the_copy_lose_to_newer_changes(any_sql_url: str, make: Any) -> None:
    sink = make(any_sql_url)
    sink.attach()
    sink.apply([user(1, 9, "newer"), gone(2, 9)])
    sink.apply([user(1, 5, "older"), user(2, 5, "dead")])
    assert names(any_sql_url) == {1: "newer"}


def test_t04_writers_run_during_the_whole_copy(any_sql_url: str, tmp_path: Path, make: Any) -> None:
    with SyncEngine.open(tmp_path / "data") as engine:
        for number in range(2000):
            write(engine, number, "first")
        engine.add_sink("tables", make(any_sql_url, name="tables"), prefix="user.")
        chance = random.Random(7)
        for _ in range(2000):
            number = chance.randrange(2500)
            if chance.random() < 0.3:
                engine.delete(f"user.{number}")
            else:
                write(engine, number, f"v{chance.random()}")
        wait_until(lambda: names(any_sql_url) == held(engine))


def test_t05_a_lost_table_is_made_and_filled_again(
    any_sql_url: str, tmp_path: Path, make: Any
) -> None:
    with SyncEngine.open(tmp_path / "data") as engine:
        engine.add_sink("tables", make(any_sql_url, name="tables"), prefix="user.")
        for number in range(300):
            write(engine, number, "first")
        wait_until(lambda: _present(any_sql_url) and len(names(any_sql_url)) == 300)

        query(any_sql_url, "DROP TABLE users")
        write(engine, 1, "second")
        engine.delete("user.2")

        wait_until(lambda: _present(any_sql_url) and names(any_sql_url) == held(engine))


def _present(url: str) -> bool:
    engine = sa.create_engine(url, poolclass=sa.pool.NullPool)
    return sa.inspect(engine).has_table("users")


def test_t05_a_table_lost_during_the_copy_begins_it_again(any_sql_url: str, make: Any) -> None:
    sink = make(any_sql_url)
    sink.attach()
    sink.apply([user(1, 1)])
    query(any_sql_url, "DROP TABLE users")
    with pytest.raises(StoreUnavailable, match="dropped"):
        sink.apply([user(2, 2)])

    sink.apply([user(2, 2)])
    sink.apply_at([], LOG, 5)
    assert sink.position(LOG) is None


def test_t06_one_bad_row_leaves_its_neighbours(any_sql_url: str, tmp_path: Path, make: Any) -> None:
    with SyncEngine.open(tmp_path / "data") as engine:
        engine.add_sink("tables", make(any_sql_url, name="tables"), prefix="user.")
        items = [SyncItem.from_json(f"user.{n}", {"name": f"n{n}"}) for n in range(10_000)]
        items[5000] = SyncItem("user.5000", b"no JSON")
        engine.submit_many(items)
        wait_until(lambda: _present(any_sql_url) and len(names(any_sql_url)) == 9999)
        letters = engine.dead_letters()
    assert [letter.change.id for letter in letters] == ["user.5000"]


def test_t07_an_outage_ends_and_everything_arrives(
    mariadb_server: Any, mariadb_url: str, tmp_path: Path, make: Any
) -> None:
    _outage(mariadb_server, mariadb_url, tmp_path, make)


def test_t07_an_outage_of_postgres_ends(
    postgres_server: Any, postgres_url: str, tmp_path: Path, make: Any
) -> None:
    _outage(postgres_server, postgres_url, tmp_path, make)


for _test in (
    test_t07_an_outage_ends_and_everything_arrives,
    test_t07_an_outage_of_postgres_ends,
):
    pytest.mark.external(_test)


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / (1 << 20)


def _outage(server: Any, url: str, tmp_path: Path, make: Any) -> None:
    seconds = float(os.environ.get("OUTAGE_S", "2"))
    overlay_mib = 32
    with SyncEngine.open(tmp_path / "data", overlay_bytes_max=overlay_mib << 20) as engine:
        engine.add_sink("tables", make(url, name="tables"), prefix="user.")
        write(engine, 0, "before")
        wait_until(lambda: _present(url) and names(url) == {0: "before"})
        server.kill()
        before = _resident_mib()
        until = time.monotonic() + seconds
        number = 0
        while time.monotonic() < until:
            number += 1
            write(engine, number % 500, f"v{number}" + "x" * 1000)
        grown = _resident_mib() - before
        sys.stdout.write(f"{number} changes in {seconds} s: {grown:.1f} MiB more\n")
        # What waits is on disk, but for the overlay; however many changes that is.
        assert grown < overlay_mib + 64
        server.start()
        wait_until(lambda: names(url) == held(engine), 90)


def test_t08_idle_close_is_quick_and_nothing_is_forgotten(
    any_sql_url: str, tmp_path: Path, make: Any
) -> None:
    with SyncEngine.open(tmp_path / "data") as engine:
        engine.add_sink("tables", make(any_sql_url, name="tables"), prefix="user.")
        items = [SyncItem.from_json(f"user.{n}", {"name": f"n{n}"}) for n in range(10_000)]
        engine.submit_many(items)
    with SyncEngine.open(tmp_path / "data") as engine:
        engine.add_sink("tables", make(any_sql_url, name="tables"), prefix="user.")
        wait_until(lambda: names(any_sql_url) == {n: f"n{n}" for n in range(10_000)})


def test_t09_three_kinds_of_drift_are_found_and_mended(any_sql_url: str, make: Any) -> None:
    items = {
        f"user.{n}": SyncItem(f"user.{n}", json.dumps({"name": f"n{n}"}).encode(), version=n + 1)
        for n in range(500)
    }
    sink = make(any_sql_url)
    sink.attach()
    sink.apply_at([Change(i.id, i.version, i.content) for i in items.values()], LOG, 500)
    assert sink.lag(LOG, 507)[0] == 7
    assert sink.verify(items.values).clean

    query(any_sql_url, "UPDATE users SET name = 'wrong' WHERE id = 7")
    query(any_sql_url, "DELETE FROM users WHERE id = 8")
    query(any_sql_url, "INSERT INTO users (id, name, _version) VALUES (9999, 'x', 3)")

    found = sink.verify(items.values)
    assert {(one.id, one.kind) for one in found.drift} == {
        ("user.7", "different"),
        ("user.8", "missing"),
        ("user.9999", "extra"),
    }
    assert sink.repair(found, items.get) == 3
    assert sink.verify(items.values).clean


def test_t09_drift_of_columns_stops_with_a_hint(any_sql_url: str, make: Any) -> None:
    query(any_sql_url, "CREATE TABLE users (id BIGINT PRIMARY KEY, name TEXT)")
    with pytest.raises(ConfigError, match="has no column 'balance'"):
        make(any_sql_url).attach()


def test_a_column_of_another_type_is_told(
    any_sql_url: str, drifted: tuple[SqlTableSink, list[str]]
) -> None:
    """What is cut or rounded to fit it would be no copy of the item."""
    sink, columns = drifted
    columns = ["name BIGINT" if one.startswith("name ") else one for one in columns]
    query(any_sql_url, f"CREATE TABLE users ({', '.join(columns)}, PRIMARY KEY (id))")

    with pytest.raises(ConfigError, match=r"column 'name' is BIGINT.* declared is text"):
        sink.attach()


def test_ids_that_look_alike_are_rows_of_their_own(any_sql_url: str, make: Any) -> None:
    table = Table(
        name="alike", columns=(Column("id", "text", "id"), Column("t", "text", "content"))
    )
    ids = ["a", "A", "a ", "\u00e1", "a\u0301", "\u00df", "ss"]
    sink = make(any_sql_url, table)
    sink.attach()

    sink.apply([Change(id, 1, id.encode()) for id in ids])

    assert sorted(query(any_sql_url, "SELECT id, t FROM alike")) == sorted(
        zip(ids, ids, strict=True)
    )


def test_a_decimal_is_kept_to_the_last_digit_or_refused(any_sql_url: str, make: Any) -> None:
    table = Table(
        name="sums", columns=(Column("id", "text", "id"), Column("d", "decimal", "json.d"))
    )
    sink = make(any_sql_url, table)
    sink.attach()
    told = "0." + "1234567890" * 2 + "1"

    with contextlib.suppress(StoreRejected):
        sink.apply([Change("a", 1, json.dumps({"d": told}).encode())])

    assert [str(d) for (d,) in query(any_sql_url, "SELECT d FROM sums")] in ([], [told])


@pytest.fixture
def drifted(any_sql_url: str, make: Any) -> tuple[SqlTableSink, list[str]]:
    """A sink beside its table, and the table's columns as they are declared."""
    sink = make(any_sql_url)
    sink.attach()
    types = {
        c.name: c.type.compile(sink._target.engine.dialect) for c in sink._rows["users"].table.c
    }
    query(any_sql_url, "DROP TABLE users")
    return make(any_sql_url), [f"{name} {told}" for name, told in types.items()]


def test_a_row_without_a_version_is_told_as_nothing_would_overwrite_it(
    any_sql_url: str, drifted: tuple[SqlTableSink, list[str]]
) -> None:
    """Its version compares as unknown: changes would be lost without a word."""
    sink, columns = drifted
    query(any_sql_url, f"CREATE TABLE users ({', '.join(columns)}, PRIMARY KEY (id))")
    query(any_sql_url, "INSERT INTO users (id, name, _version) VALUES (7, 'old', NULL)")

    with pytest.raises(ConfigError, match=r"never overwritten: UPDATE .*$") as told:
        sink.attach()

    query(any_sql_url, str(told.value).rpartition("overwritten: ")[2])
    sink.attach()
    sink.apply([user(7, 5, "new")])
    assert names(any_sql_url) == {7: "new"}


def test_the_column_of_versions_that_is_to_be_added_has_one_in_every_row(
    any_sql_url: str, drifted: tuple[SqlTableSink, list[str]]
) -> None:
    sink, columns = drifted
    query(any_sql_url, f"CREATE TABLE users ({', '.join(columns[:-1])}, PRIMARY KEY (id))")
    query(any_sql_url, "INSERT INTO users (id, name) VALUES (7, 'old')")

    with pytest.raises(ConfigError, match="has no column '_version'") as told:
        sink.attach()

    query(any_sql_url, str(told.value).partition("(")[2].partition(")")[0])
    sink.attach()
    sink.apply([user(7, 5, "new")])
    assert names(any_sql_url) == {7: "new"}


@pytest.mark.parametrize("other", ["", "UNIQUE (name, id)", "PRIMARY KEY (name(9), id)"])
def test_a_table_whose_key_is_not_unique_is_refused(
    any_sql_url: str, drifted: tuple[SqlTableSink, list[str]], other: str
) -> None:
    """There would be several rows of one key, and the newest would not win."""
    sink, columns = drifted
    columns = [f"{column} NOT NULL" for column in columns]
    if "(9)" in other and not any_sql_url.startswith("mysql"):
        other = other.replace("(9)", "")
    elif any_sql_url.startswith("mysql"):
        other = other.replace("(name,", "(name(9),")
    query(any_sql_url, f"CREATE TABLE users ({', '.join([*columns, *filter(None, [other])])})")

    with pytest.raises(ConfigError, match="id must be its primary key, or unique"):
        sink.attach()


def test_a_key_that_is_unique_beside_another_primary_key_will_do(
    any_sql_url: str, drifted: tuple[SqlTableSink, list[str]]
) -> None:
    sink, columns = drifted
    columns = [f"{column} NOT NULL" for column in columns]
    query(
        any_sql_url,
        f"CREATE TABLE users ({', '.join(columns)}, PRIMARY KEY (_version, id), UNIQUE (id))",
    )

    sink.attach()

    sink.apply([user(7, 5, "old"), user(7, 6, "new")])
    assert names(any_sql_url) == {7: "new"}


def test_t09_lag_after_a_copy_is_the_age_of_what_was_copied(any_sql_url: str, make: Any) -> None:
    clock = ManualClock()
    sink = SqlTableSink(any_sql_url, [USERS], clock=clock)
    try:
        assert sink.lag(LOG, 3) == (3, math.inf)
        sink.apply([user(1, (clock.now_ms() - 9000) << 20), user(2, (clock.now_ms() - 5000) << 20)])
        sink.apply_at([], LOG, 3)
        assert sink.lag(LOG, 4) == (1, 5.0)
        assert sink.lag(LOG, 3) == (0, 0.0)
        assert [(one.position, one.age_s) for one in sink.standing()] == [(3, 5.0)]
        sink.apply_at([], LOG, 4)
        assert sink.standing()[0].age_s == 5.0
    finally:
        sink.close()


def test_t09_the_age_before_the_first_change_is_not_known(any_sql_url: str, make: Any) -> None:
    sink = make(any_sql_url)
    sink.apply_at([], LOG, 3)
    assert sink.standing()[0].age_s is None
    assert sink.lag(LOG, 4) == (1, math.inf)


def test_t10_errors_after_connecting_show_neither_password_nor_values(
    any_sql_url: str, make: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Wrong password, a dropped table, a refused row: by the server's own words."""
    caplog.set_level(logging.DEBUG)
    told = []
    sink = make(any_sql_url)
    sink.attach()
    query(any_sql_url, "DROP TABLE users")
    with pytest.raises(StoreUnavailable) as dropped:
        sink.apply([user(1, 1, "canary-52")])
    told.append(dropped.value)
    with pytest.raises(StoreRejected) as refused:
        sink.apply([Change("user.1", 1, b'{"name": "canary-52", "balance": "x"}')])
    told.append(refused.value)
    url = sa.make_url(any_sql_url)
    if url.drivername.startswith(("mysql", "mariadb", "postgres")):
        with pytest.raises(SyncEngineError) as denied:
            make(url.set(username="nobody-here", password="canary-51")).attach()
        told.append(denied.value)
    text = caplog.text + "".join(f"{one} {one!r} {one.__cause__}" for one in told)
    assert "canary" not in text


def test_t10_the_password_is_never_shown(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for url in (
        "mysql+pymysql://u:canary-51@127.0.0.1:1/x",
        "postgresql+psycopg://u:canary-51@127.0.0.1:1/x",
    ):
        sink = make(url, connect_timeout_s=1)
        with pytest.raises(StoreUnavailable) as caught:
            sink.attach()
        told = f"{sink!r} {caught.value} {caught.value!r} {caplog.text}"
        assert "canary-51" not in told


def test_raw_statements_write_tables_of_any_shape(any_sql_url: str, make: Any) -> None:
    def parameters(id: str, item: SyncItem) -> dict[str, Any]:
        return {"k": id, "v": item.content.decode()}

    table = RawTable(
        name="raw",
        prefix="r.",
        create=("CREATE TABLE IF NOT EXISTS raw (k VARCHAR(64) PRIMARY KEY, v VARCHAR(64))",),
        upsert="REPLACE INTO raw (k, v) VALUES (:k, :v)"
        if "postgres" not in any_sql_url
        else "INSERT INTO raw (k, v) VALUES (:k, :v) ON CONFLICT (k) DO UPDATE SET v = excluded.v",
        remove="DELETE FROM raw WHERE k = :k",
        parameters=parameters,
        key_parameters=lambda id: {"k": id},
    )
    sink = make(any_sql_url, table)
    sink.attach()
    sink.apply_at([Change("r.a", 1, b"1"), Change("r.b", 2, b"2"), Change("x", 3, b"3")], LOG, 3)
    sink.apply([Change("r.a", 5, None), Change("r.b", 4, b"4")])
    sink.apply([Change("r.a", 2, b"late"), Change("r.b", 3, b"late")])
    assert query(any_sql_url, "SELECT k, v FROM raw") == [("r.b", "4")]


_WRITER = """
    import json, sys
    from sync_engine import SyncEngine, SyncItem
    from sync_engine.runtime import SystemClock
    from sync_engine.sinks.sql_table import Column, SqlTableSink, Table

    data, url, turn = sys.argv[1:]
    table = Table(name="users", key="user.{id}", columns=(
        Column("id", "integer", "key"), Column("name", "text", "json.name"),
        Column("balance", "decimal", "json.balance")))
    engine = SyncEngine.open(data).start()
    engine.add_sink("tables", SqlTableSink(url, [table], clock=SystemClock(), name="tables"),
                    prefix="user.")
    print("up", flush=True)
    number = 0
    while True:
        number += 1
        id = f"user.{number * 7 % 997}"
        if number % 5 == 0:
            engine.delete(id)
        else:
            engine.submit(SyncItem.from_json(id, {"name": f"{turn}-{number}"}))
"""


def test_t02_kill_9_at_random_loses_nothing(any_sql_url: str, tmp_path: Path, make: Any) -> None:
    _kill(any_sql_url, tmp_path, make, int(os.environ.get("KILLS", "5")))


def _kill(any_sql_url: str, tmp_path: Path, make: Any, kills: int) -> None:
    chance = random.Random(3)
    script = tmp_path / "writer.py"
    script.write_text(textwrap.dedent(_WRITER))
    for turn in range(kills):
        process = subprocess.Popen(
            [sys.executable, str(script), str(tmp_path / "data"), any_sql_url, str(turn)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(chance.uniform(0.05, 0.6))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    with SyncEngine.open(tmp_path / "data") as engine:
        engine.add_sink("tables", make(any_sql_url, name="tables"), prefix="user.")
        wait_until(lambda: _present(any_sql_url) and names(any_sql_url) == held(engine), 60)


def test_a_deletion_that_another_engine_brought_is_known(any_sql_url: str, make: Any) -> None:
    """Two engines on one archive deliver into one set of tables, each its own log."""
    first, second = make(any_sql_url), make(any_sql_url)
    first.attach()
    second.attach()
    second.apply_at([user(1, 10)], "log-2", 1)
    second.apply_at([gone(1, 20)], "log-2", 2)

    first.apply_at([user(1, 15, "late"), user(2, 16)], "log-1", 2)

    assert names(any_sql_url) == {2: "n2"}


def test_a_setting_of_a_column_that_there_is_not_is_refused() -> None:
    said = {"type": "text", "from": "json.name", "nul": False}
    columns = {"id": "integer from key", "name": said}
    with pytest.raises(ConfigError, match=r"column 'name'.*'nul'"):
        tables_from([{"name": "users", "key": "user.{id}", "columns": columns}])
