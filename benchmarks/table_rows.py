"""Rows a second of the sink `sql_table` beside a hand-written loop: executemany and commit.

    python -m benchmarks.table_rows [--quick] [--servers mariadb,postgres]

Both sides decode JSON items and upsert rows of four columns, 1000 a transaction, with the position
of the batch in it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from benchmarks.measure import Plan, Row, interleaved, show
from benchmarks.servers import Servers, running
from sync_engine.core.item import Change
from sync_engine.runtime import SystemClock
from sync_engine.sinks.sql_table import Column, SqlTableSink, Table

__all__ = ["main", "run"]

_BATCH = 1000
_TABLE = Table(
    name="bench_sink",
    key="user.{id}",
    columns=(
        Column("id", "integer", "key"),
        Column("name", "text", "json.name"),
        Column("email", "text", "json.email"),
        Column("age", "integer", "json.age"),
    ),
)
_VALUES = "INSERT INTO bench_hand (id, name, email, age, version) VALUES ({})"
_TAKE = (
    "name = excluded.name, email = excluded.email, age = excluded.age, version = excluded.version"
)
_CONFLICT = f" ON CONFLICT (id) DO UPDATE SET {_TAKE} WHERE bench_hand.version < excluded.version"
_DUPLICATE = (
    " ON DUPLICATE KEY UPDATE name = IF(version < VALUES(version), VALUES(name), name),"
    " email = IF(version < VALUES(version), VALUES(email), email),"
    " age = IF(version < VALUES(version), VALUES(age), age),"
    " version = GREATEST(version, VALUES(version))"
)


def _changes(count: int, turn: int) -> list[Change]:
    def content(n: int) -> bytes:
        return json.dumps(
            {"name": f"name {n}", "email": f"{n}@example.org", "age": n % 90}
        ).encode()

    return [Change(f"user.{n}", (turn + 1) * 10_000_000 + n, content(n)) for n in range(count)]


def _by_hand(engine: sa.Engine, changes: list[Change]) -> None:
    mark = "?" if engine.dialect.name == "sqlite" else "%s"
    text = _VALUES.format(", ".join([mark] * 5))
    text += _DUPLICATE if engine.dialect.name == "mysql" else _CONFLICT
    connection = engine.raw_connection()
    try:
        cursor = connection.cursor()
        for start in range(0, len(changes), _BATCH):
            rows = []
            for change in changes[start : start + _BATCH]:
                value = json.loads(change.content or b"")
                key = int(change.id.partition(".")[2])
                rows.append((key, value["name"], value["email"], value["age"], change.version))
            cursor.executemany(text, rows)
            cursor.execute(f"UPDATE bench_offset SET position = {start}")
            connection.commit()
    finally:
        connection.close()


def _measure(kind: str, url: str, plan: Plan) -> Row:
    count = 10_000 if plan.quick else 50_000
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.execute(
            sa.text(
                "CREATE TABLE bench_hand (id BIGINT PRIMARY KEY, name TEXT, email TEXT,"
                " age BIGINT, version BIGINT)"
            )
        )
        connection.execute(sa.text("CREATE TABLE bench_offset (position BIGINT)"))
        connection.execute(sa.text("INSERT INTO bench_offset VALUES (0)"))
    sink = SqlTableSink(url, [_TABLE], clock=SystemClock())
    sink.attach()
    position = 0

    def ours(turn: int) -> float:
        nonlocal position
        changes = _changes(count, turn)
        began = time.perf_counter()
        for start in range(0, count, _BATCH):
            position += _BATCH
            sink.apply_at(changes[start : start + _BATCH], "log", position)
        return count / (time.perf_counter() - began)

    def hand(turn: int) -> float:
        changes = _changes(count, turn)
        began = time.perf_counter()
        _by_hand(engine, changes)
        return count / (time.perf_counter() - began)

    sides: dict[str, Any] = {"sink": ours, "hand": hand}
    figures = interleaved(plan.rounds, sides)
    sink.close()
    engine.dispose()
    pairs = list(zip(figures["sink"], figures["hand"], strict=True))
    return Row.of("table rows", kind, 60, pairs, "items/s", ratio_min=0.7)


def run(plan: Plan, servers: Servers) -> list[Row]:
    """Measure every kind of database that is there."""
    with tempfile.TemporaryDirectory(dir=plan.directory) as directory:
        rows = [_measure("sqlite", f"sqlite:///{Path(directory) / 'bench.db'}", plan)]
    for kind in ("mariadb", "postgres"):
        with servers.database(kind) as url:
            if url is not None:
                rows.append(_measure(kind, url, plan))
    return rows


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--servers", default="mariadb,postgres")
    arguments = parser.parse_args()
    wanted = frozenset(filter(None, arguments.servers.split(",")))
    plan = Plan(
        quick=arguments.quick,
        minutes=0.2,
        directory=Path(tempfile.gettempdir()),
        servers=wanted,
    )
    with running(wanted) as started:
        print(show(run(plan, started), as_json=False))


if __name__ == "__main__":
    main()
