from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest
import sqlalchemy as sa

from sync_engine.core.item import Change
from sync_engine.runtime import SystemClock
from sync_engine.sinks.sql_table import Column, SqlTableSink, Table
from sync_engine.testing.contracts.sink import PositionedSinkContract

DECLARED = Table(
    name="things",
    columns=(
        Column("id", "text", "id"),
        Column("body", "bytes"),
        Column("note", "text(8)", "state"),
    ),
)
UNIQUE = Table(name="things", columns=DECLARED.columns, unique=(("id", "note"),))


class TestSqlTableContract(PositionedSinkContract):
    @pytest.fixture(params=[DECLARED, UNIQUE], ids=["newest", "ordered"], autouse=True)
    def _target(self, request: pytest.FixtureRequest, any_sql_url: str) -> Iterator[None]:
        self.url = any_sql_url
        self.table = request.param
        self.made: list[SqlTableSink] = []
        yield
        for one in self.made:
            one.close()

    def make_sink(self) -> SqlTableSink:
        self.made.append(SqlTableSink(self.url, [self.table], clock=SystemClock()))
        return self.made[-1]

    def stored(self) -> Mapping[str, bytes]:
        engine = sa.create_engine(self.url)
        try:
            with engine.connect() as connection:
                rows = connection.execute(sa.text("SELECT id, body FROM things")).all()
                return {id: bytes(body) for id, body in rows}
        finally:
            engine.dispose()

    def refused_change(self) -> Change | None:
        return Change("bad", 5, b"x" * 10, state="\udc80")
