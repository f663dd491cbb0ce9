"""Rows of the copy that come before the rows they refer to, and deletions that come too early."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from sync_engine.core.item import Change
from sync_engine.sinks.sql_table import schema
from sync_engine.sinks.sql_table.target import Target

__all__ = ["Waiting"]

_decode = msgspec.msgpack.Decoder(Change).decode
_encode = msgspec.msgpack.Encoder().encode


class Waiting:
    """Changes put aside in the target, in the transaction of their neighbours.

    Args:
        sink: Name of the sink.
        table: Where they are kept.
        target: The database.
    """

    def __init__(self, sink: str, table: sa.Table, target: Target) -> None:
        self._sink = sink
        self._table = table
        self._target = target
        self._upsert = schema.book_upsert(table, target.engine)
        self.some = False

    def count(self, connection: Connection) -> int:
        """Return how many wait."""
        c = self._table.c
        query = sa.select(sa.func.count()).where(c.sink == self._sink)
        found = int(connection.execute(query).scalar_one())
        self.some = found > 0
        return found

    def put(self, connection: Connection, table: str, changes: Sequence[Change]) -> None:
        """Put changes aside; of two of an id the larger version stays."""
        if not changes or self._upsert is None:
            return
        self.some = True
        # In the order of the columns: sink, tbl, id, version, gone, record.
        rows = sorted(
            (self._sink, table, c.id.encode(), c.version, int(c.content is None), _encode(c))
            for c in changes
        )
        self._target.run(connection, self._upsert, rows)

    def page(
        self, connection: Connection, table: str, *, gone: bool, after: bytes, limit: int
    ) -> list[Change]:
        """Return changes of a table in the order of their ids."""
        c = self._table.c
        query = (
            sa.select(c.record)
            .where(c.sink == self._sink, c.tbl == table, c.gone == int(gone), c.id > after)
            .order_by(c.id)
            .limit(limit)
        )
        return [_decode(bytes(record)) for (record,) in connection.execute(query)]

    def drop(self, connection: Connection, table: str, changes: Sequence[Change]) -> None:
        """Forget changes that wait no longer."""
        c = self._table.c
        keys = [change.id.encode() for change in changes]
        for start in range(0, len(keys), 500):
            connection.execute(
                sa.delete(self._table).where(
                    c.sink == self._sink, c.tbl == table, c.id.in_(keys[start : start + 500])
                )
            )

    def forget(self, connection: Connection, table: str) -> None:
        """Forget what waits for a table that is made anew."""
        c = self._table.c
        connection.execute(sa.delete(self._table).where(c.sink == self._sink, c.tbl == table))
