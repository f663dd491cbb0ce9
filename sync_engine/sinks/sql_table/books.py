"""What the sink writes down beside the rows: positions, and versions that guard them."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from sync_engine.sinks.sql_table import schema
from sync_engine.sinks.sql_table.target import Target

__all__ = ["COPYING", "FRESH", "TORN", "Ledger", "Offsets", "Standing"]

_IDS_PER_QUERY = 500
FRESH, COPYING, TORN = 0, 1, 2
"""How far the copy is: not begun; begun; begun, and a table was lost on the way."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Where one log stands.

    Attributes:
        log_uuid: The log.
        position: Its last position here.
        age_s: Seconds since its last change here was submitted; None before the first one.
        waiting: Rows and deletions, of all logs, that wait for a row they refer to, or that refers
            to them.
    """

    log_uuid: str
    position: int
    age_s: float | None
    waiting: int = 0


class Offsets:
    """Positions of logs, and the state of the copy as the row of no log."""

    def __init__(self, sink: str, table: sa.Table) -> None:
        self._sink = sink
        self._table = table

    def get(self, connection: Connection, log_uuid: str) -> tuple[int, int] | None:
        """Return the position of a log, and the version it stood at."""
        o = self._table.c
        found = connection.execute(
            sa.select(o.position, o.version).where(o.sink == self._sink, o.log_uuid == log_uuid)
        ).first()
        return (int(found[0]), int(found[1])) if found else None

    def put(self, connection: Connection, log_uuid: str, position: int, version: int = 0) -> None:
        """Store a position."""
        o = self._table.c
        there = connection.execute(
            sa.update(self._table)
            .where(o.sink == self._sink, o.log_uuid == log_uuid)
            .values(position=position, version=version)
        )
        if not there.rowcount:
            connection.execute(
                sa.insert(self._table).values(
                    sink=self._sink, log_uuid=log_uuid, position=position, version=version
                )
            )

    def all(self, connection: Connection) -> list[tuple[str, int, int]]:
        """Return every log with its position and version."""
        o = self._table.c
        query = sa.select(o.log_uuid, o.position, o.version).where(
            o.sink == self._sink, o.log_uuid != ""
        )
        return [
            (uuid, int(position), int(version))
            for uuid, position, version in connection.execute(query)
        ]

    def clear(self, connection: Connection) -> None:
        """Forget every log: what is there has to be copied again."""
        o = self._table.c
        connection.execute(sa.delete(self._table).where(o.sink == self._sink, o.log_uuid != ""))


class Ledger:
    """Versions by id: of deletions, and of every row whose table has no column for them.

    One more row, of no table and no id, is what transactions lock that read versions in order to
    write rows by them.
    """

    def __init__(self, sink: str, table: sa.Table, target: Target) -> None:
        self._sink = sink
        self._table = table
        self._target = target
        self._upsert = schema.book_upsert(table, target.engine)
        self.empty = False

    def look(self, connection: Connection) -> None:
        """Find out whether anything is written down."""
        c = self._table.c
        query = sa.select(c.version).where(c.sink == self._sink, c.tbl != "").limit(1)
        self.empty = connection.execute(query).first() is None

    def lock(self, connection: Connection, *, alone: bool) -> None:
        """Keep other engines from writing at the same moment; the first thing in a transaction.

        A put looks here for a newer deletion, and writes its row later: a deletion of another
        engine that goes by in between would leave the row in place for good. So puts exclude
        deletions. They do not exclude each other: of two puts, the row's own version decides.

        SQLite lets one transaction write at a time anyway. Where no SQL is generated, raw tables
        belong to one engine.

        Args:
            connection: In a transaction that has read nothing yet: what MySQL reads first fixes
                the moment that it goes on reading.
            alone: Whether anything but puts into declared tables may follow.
        """
        if self._upsert is None or self._target.dialect == "sqlite":
            return
        c = self._table.c
        row = sa.select(c.version).where(c.sink == self._sink, c.tbl == "", c.id == b"")
        if connection.execute(row.with_for_update(read=not alone)).first() is None:
            self._target.run(connection, self._upsert, [(self._sink, "", b"", 0, 0)])

    def versions(
        self, connection: Connection, table: str, ids: Collection[str]
    ) -> dict[str, tuple[int, bool]]:
        """Return the versions known of ids, and whether they were deleted."""
        if self.empty:  # another engine may have written since
            self.look(connection)
        if self.empty:
            return {}
        c = self._table.c
        found: dict[str, tuple[int, bool]] = {}
        keys = [id.encode() for id in ids]
        for start in range(0, len(keys), _IDS_PER_QUERY):
            part = keys[start : start + _IDS_PER_QUERY]
            query = sa.select(c.id, c.version, c.gone).where(
                c.sink == self._sink, c.tbl == table, c.id.in_(part)
            )
            for id, version, gone in connection.execute(query):
                found[bytes(id).decode()] = int(version), bool(gone)
        return found

    def note(
        self, connection: Connection, table: str, marks: Iterable[tuple[str, int, bool]]
    ) -> None:
        """Write versions down; a larger one that is there stays."""
        rows = sorted((self._sink, table, id.encode(), v, int(gone)) for id, v, gone in marks)
        if not rows:
            return
        self.empty = False
        if self._upsert is not None:
            order = [column.name for column in self._table.columns]
            assert order == ["sink", "tbl", "id", "version", "gone"]  # noqa: S101 - of the text
            self._target.run(connection, self._upsert, rows)
            return
        c = self._table.c
        for row in rows:
            connection.execute(
                sa.delete(self._table).where(c.sink == row[0], c.tbl == row[1], c.id == row[2])
            )
        names = ("sink", "tbl", "id", "version", "gone")
        connection.execute(
            sa.insert(self._table), [dict(zip(names, row, strict=True)) for row in rows]
        )

    def forget(self, connection: Connection, table: str) -> None:
        """Forget what is known of the rows of a table; deletions are kept."""
        c = self._table.c
        connection.execute(
            sa.delete(self._table).where(c.sink == self._sink, c.tbl == table, c.gone == 0)
        )

    def purge(self, connection: Connection, below: int) -> None:
        """Forget deletions of versions below one."""
        c = self._table.c
        connection.execute(
            sa.delete(self._table).where(c.sink == self._sink, c.gone == 1, c.version < below)
        )

    def ids(self, connection: Connection, table: str) -> dict[str, int]:
        """Return the live ids of a table and their versions."""
        c = self._table.c
        query = sa.select(c.id, c.version).where(c.sink == self._sink, c.tbl == table, c.gone == 0)
        return {bytes(id).decode(): int(version) for id, version in connection.execute(query)}
