"""Tables that several engines write, at the same moment."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa

from sync_engine.core.item import Change
from sync_engine.runtime import SystemClock
from sync_engine.sinks.sql_table import Column, RawTable, SqlTableSink, Table

_MOMENT_S = 0.2
DECLARED = Table(
    name="t", columns=(Column("id", "text(64)", "id"), Column("value", "text", "text"))
)
RAW = RawTable(
    name="t",
    prefix="",
    create=("CREATE TABLE IF NOT EXISTS t (id VARCHAR(64) PRIMARY KEY, value VARCHAR(64))",),
    upsert="INSERT INTO t (id, value) VALUES (:id, :value)",
    remove="DELETE FROM t WHERE id = :id",
    parameters=lambda id, item: {"id": id, "value": item.content.decode()},
    key_parameters=lambda id: {"id": id},
    swaps=True,
)


def put(version: int) -> Change:
    return Change("a", version, b"%d" % version)


def gone(version: int) -> Change:
    return Change("a", version, None)


class Pair:
    """Two engines' sinks of one name on one database."""

    def __init__(self, url: str, table: Table | RawTable) -> None:
        self.url = url
        self.one = SqlTableSink(url, [table], clock=SystemClock())
        self.other = SqlTableSink(url, [table], clock=SystemClock())
        self.pool = ThreadPoolExecutor(1)
        for number, sink in enumerate((self.one, self.other)):
            sink.attach()
            sink.apply_at([Change(f"first.{number}", 1, b"v")], f"log-{number}", 1)

    def meanwhile(self, change: Change) -> Callable[[], Future[None]]:
        """Return what lets the other sink write, and goes on when it is done or has to wait."""
        done = threading.Event()

        def write() -> None:
            try:
                self.other.apply_at([change], "log-1", 2)
            finally:
                done.set()

        def begin() -> Future[None]:
            future = self.pool.submit(write)
            done.wait(_MOMENT_S)
            return future

        return begin

    def rows(self) -> dict[str, str]:
        engine = sa.create_engine(self.url, poolclass=sa.pool.NullPool)
        with engine.begin() as connection:
            found = connection.execute(sa.text("SELECT id, value FROM t WHERE id = 'a'"))
            return {row[0]: row[1] for row in found}


@pytest.fixture(params=["declared", "raw"])
def pair(request: pytest.FixtureRequest, any_sql_url: str) -> Iterator[Pair]:
    made = Pair(any_sql_url, DECLARED if request.param == "declared" else RAW)
    yield made
    made.pool.shutdown()
    made.one.close()
    made.other.close()


@pytest.mark.parametrize("place", ["before its statement", "after its statement"])
@pytest.mark.parametrize(
    ("mine", "theirs", "left"),
    [
        (put(5), gone(6), {}),
        (gone(6), put(5), {}),
        (gone(5), put(6), {"a": "6"}),
        (put(6), gone(5), {"a": "6"}),
        (put(5), put(6), {"a": "6"}),
        (put(6), put(5), {"a": "6"}),
    ],
)
def test_the_newest_of_two_engines_stays_however_their_transactions_overlap(
    pair: Pair,
    mine: Change,
    theirs: Change,
    left: dict[str, str],
    place: str,
) -> None:
    """One engine's transaction is open, and holds what it has read; the other writes."""
    begin = pair.meanwhile(theirs)
    started: list[Future[None]] = []
    _interleave(pair.one, place, lambda: started.append(begin()))

    pair.one.apply_at([mine], "log-0", 2)

    assert len(started) == 1
    started[0].result(30)
    assert pair.rows() == left


def _interleave(sink: SqlTableSink, place: str, meanwhile: Callable[[], object]) -> None:
    """Do something once, before or after the statement by which a sink writes its table."""
    once: list[bool] = []

    def told(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
        words = statement.replace("`", "").replace('"', "").split()
        if words[0] in ("INSERT", "DELETE") and words[2] == "t" and not once:
            once.append(True)
            meanwhile()

    event = f"{place.split()[0]}_cursor_execute"
    sa.event.listen(sink._target.engine, event, told)
