"""The sink `sql_table`: items as rows, each batch one transaction with the position it ends at."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection

from sync_engine.core.item import Change
from sync_engine.core.version import ms_of_version, version_of_ms
from sync_engine.errors import ConfigError
from sync_engine.ports import AdapterContext, Clock
from sync_engine.sinks.sql_table import schema
from sync_engine.sinks.sql_table.books import COPYING, FRESH, TORN, Ledger, Offsets, Standing
from sync_engine.sinks.sql_table.rows import Rows
from sync_engine.sinks.sql_table.tables import RawTable, Table, tables_from
from sync_engine.sinks.sql_table.target import Target
from sync_engine.sinks.sql_table.verify import Auditor, Items, Lookup, Verification
from sync_engine.sinks.sql_table.waiting import Waiting
from sync_engine.sinks.sql_table.writing import Writer
from sync_engine.telemetry import get_logger

__all__ = ["SqlTableSink", "from_settings"]

_log = get_logger("sinks.sql_table")
_PURGE_EVERY = 256


class SqlTableSink:
    """Keeps rows of relational tables equal to items; implements `ports.PositionedSink`.

    A batch is one transaction over all tables, with the position of the log in it: after a crash
    anywhere it is there whole or not at all, and repeating it changes nothing. A row gives way to a
    larger version only, and a deletion is remembered for `tombstone_s`, so a late copy of an older
    value neither overwrites a row nor brings it back.

    Rows of a batch may swap unique values, and come before or after the rows they refer to; see
    `writing.Writer`. During the copy, which goes by id, a row whose parent is not there yet waits
    in a table of the sink's own.

    Owned by one job. Blocking: every method but `close` asks the database.

    Args:
        url: Any SQLAlchemy URL; generated SQL needs SQLite, MySQL, MariaDB or PostgreSQL.
        tables: In the order that references between them need.
        clock: Times pings, ages tombstones.
        name: Of the sink: positions are kept under it.
        create: Whether tables that are not there are made.
        connect_timeout_s: Bound of one connection attempt, in seconds.
        timeout_s: Bound of one statement, in seconds.
        tombstone_s: Seconds that deletions are remembered, by their versions.

    Raises:
        ConfigError: URL or tables cannot be used.
    """

    def __init__(
        self,
        url: str | URL,
        tables: Sequence[Table | RawTable],
        *,
        clock: Clock,
        name: str = "sql_table",
        create: bool = True,
        connect_timeout_s: float = 5.0,
        timeout_s: float = 30.0,
        tombstone_s: float = 604_800.0,
    ) -> None:
        if not tables:
            raise ConfigError(f"sink {name!r} needs at least one table")
        if len({table.name.lower() for table in tables}) != len(tables):
            raise ConfigError(f"sink {name!r}: a table is there twice")
        self.name = name
        self.tables = tuple(tables)
        self._clock = clock
        self._create = create
        self._tombstone_ms = tombstone_s * 1000
        self._target = Target(
            name,
            url,
            connect_timeout_s=connect_timeout_s,
            timeout_s=timeout_s,
            drifted=self._drifted,
        )
        declared = [table for table in tables if isinstance(table, Table)]
        if declared and self._target.dialect not in schema.KINDS:
            raise ConfigError(
                f"sink {name!r}: SQL is generated for {', '.join(schema.KINDS)}; for"
                f" {self._target.dialect}, give upsert and remove statements"
            )
        self._metadata = sa.MetaData()
        books = schema.Books(self._metadata)
        self._book_tables = [books.offsets, books.ledger, books.waiting]
        self._offsets = Offsets(name, books.offsets)
        self._ledger = Ledger(name, books.ledger, self._target)
        self._waiting = Waiting(name, books.waiting, self._target)
        self._declared = declared
        self._rows: dict[str, Rows] = {}
        self._writer = Writer(self._target, self.tables, self._rows, self._ledger, self._waiting)
        self._attached = False
        self._batches = 0
        _check_references(name, self.tables)

    def __repr__(self) -> str:
        names = ", ".join(table.name for table in self.tables)
        return f"SqlTableSink({self._target.shown!r}, {names})"

    # -- lifecycle --------------------------------------------------------------------------------

    def attach(self) -> None:
        """Connect; make tables that are not there, compare those that are.

        After a table was made, `position` returns None: everything has to be copied.

        Raises:
            StoreUnavailable: The server is not there now.
            ConfigError: Access is denied, or a table differs; says what to do.
        """
        with self._target.transaction("attach") as connection:
            present = set(sa.inspect(connection).get_table_names())
            self._metadata.create_all(connection, tables=self._book_tables)
            # The collation of a table depends on the server, so tables are made known here.
            for one in self._declared:
                if one.name not in self._rows:
                    self._rows[one.name] = self._make_rows(one)
        with self._target.transaction("attach") as connection:
            missing = [table.name for table in self.tables if table.name not in present]
            for one in self._declared:
                if one.name in present:
                    schema.check_columns(connection, self._rows[one.name].table, one)
            if missing:
                self._forget(connection, missing)
            self._ledger.look(connection)
            self._waiting.count(connection)
        if self._create:
            self._make(missing)
        self._attached = True

    def _make_rows(self, one: Table) -> Rows:
        told = [t.references or {} for t in self.tables if isinstance(t, Table)]
        named = {target for references in told for target in references.values()}
        referenced = frozenset(
            column
            for table, _, column in (name.rpartition(".") for name in named)
            if table == one.name
        )
        raw = any(isinstance(table, RawTable) for table in self.tables)
        return Rows(
            one,
            self._metadata,
            self._target.engine,
            referenced=None if raw and not referenced else referenced,
        )

    def _forget(self, connection: Connection, missing: Sequence[str]) -> None:
        """Before tables are made, let the copy begin again: a crash in between repeats it."""
        if not self._create:
            raise ConfigError(
                f"sink {self.name!r}: there is no table {missing[0]!r}: make it, or set create"
            )
        self._offsets.clear(connection)
        state = self._offsets.get(connection, "")
        if state is not None and state[0] == COPYING:
            self._offsets.put(connection, "", TORN)
        for name in missing:
            self._ledger.forget(connection, name)
            self._waiting.forget(connection, name)

    def _make(self, missing: Sequence[str]) -> None:
        """Make tables; a raw table's commands run every time, for they may make more than it."""
        raw = [table for table in self.tables if isinstance(table, RawTable)]
        if not missing and not raw:
            return
        with self._target.transaction("create") as connection:
            made = [self._rows[name].table for name in missing if name in self._rows]
            self._metadata.create_all(connection, tables=made)
            for table in raw:
                for command in table.create:
                    connection.execute(sa.text(command))
            present = sa.inspect(connection).get_table_names()
            for table in raw:
                if table.name not in present:
                    raise ConfigError(
                        f"sink {self.name!r}: the create commands of {table.name!r} make no table"
                        " of that name, and its loss could not be seen: name it as the table"
                    )
        if missing:
            _log.info("tables_made", sink=self.name, tables=list(missing))

    def _drifted(self) -> None:
        self._attached = False

    def _ready(self) -> None:
        if not self._attached:
            self.attach()

    def ping(self) -> float:
        """Return the seconds of one round trip.

        Raises:
            StoreUnavailable: No answer.
        """
        started = self._clock.monotonic()
        with self._target.transaction("ping", writes=False) as connection:
            connection.execute(sa.select(1))
        return self._clock.monotonic() - started

    def close(self) -> None:
        """Let go of connections; safe twice."""
        self._attached = False
        self._target.close()

    # -- delivery ---------------------------------------------------------------------------------

    def position(self, log_uuid: str) -> int | None:
        """Return the position of a log; None where it never was here, or a table was lost.

        Raises:
            StoreUnavailable: Try again later.
            ConfigError: A table differs; says what to do.
        """
        self._ready()
        with self._target.transaction("position", writes=False) as connection:
            found = self._offsets.get(connection, log_uuid)
        return found[0] if found else None

    def apply(self, changes: Sequence[Change]) -> None:
        """Take the whole batch or none of it; the position stays.

        Raises:
            StoreUnavailable: Try again later; nothing is known to be applied.
            StoreRejected: A row cannot be made, or the database refuses one.
        """
        if not changes:
            return
        self._ready()
        with self._target.transaction("apply") as connection:
            self._writer.lock(connection, changes)
            state = self._offsets.get(connection, "") or (FRESH, 0)
            version = max(state[1], max(change.version for change in changes))
            self._offsets.put(connection, "", state[0] or COPYING, version)
            self._writer.write(connection, changes, copying=True)

    def apply_at(self, changes: Sequence[Change], log_uuid: str, position: int) -> None:
        """Take the whole batch and the position that it ends at, or nothing.

        A position at or below the stored one changes nothing. Raises as `apply`.
        """
        self._ready()
        if not changes and self._waiting.some and self.position(log_uuid) is None:
            self._writer.settle()
        with self._target.transaction("apply") as connection:
            self._writer.lock(connection, changes)
            found = self._offsets.get(connection, log_uuid)
            if found is not None and position <= found[0]:
                return
            if found is None:
                state, copied_version = self._copied(connection)
                if state == TORN:
                    return
                found = 0, copied_version
            self._writer.write(connection, changes, copying=False)
            if changes and self._waiting.some:
                self._writer.settle_after(connection)
            version = max((change.version for change in changes), default=found[1])
            self._offsets.put(connection, log_uuid, position, version)
            self._batches += 1
            if self._batches % _PURGE_EVERY == 0:
                below = version_of_ms(int(self._clock.now_ms() - self._tombstone_ms))
                self._ledger.purge(connection, below)

    def _copied(self, connection: Connection) -> tuple[int, int]:
        """Note that the copy is over; return its state, and the newest version in it."""
        state = self._offsets.get(connection, "") or (FRESH, 0)
        if state[0] != FRESH:
            self._offsets.put(connection, "", FRESH)
        return state

    # -- how it stands ----------------------------------------------------------------------------

    def lag(self, log_uuid: str, head: int, newest_version: int = 0) -> tuple[int, float]:
        """Return how far the tables are behind a log.

        Args:
            log_uuid: The log.
            head: Its last position.
            newest_version: Version of its last change; 0 takes the clock.

        Returns:
            Positions, and seconds between the last change here and the newest one there; infinite
            where no change came here yet.
        """
        self._ready()
        with self._target.transaction("lag", writes=False) as connection:
            found = self._offsets.get(connection, log_uuid)
        items = head if found is None else max(0, head - found[0])
        if found is None or not found[1]:
            return items, math.inf if items else 0.0
        newest_ms = ms_of_version(newest_version) if newest_version else self._clock.now_ms()
        return items, max(0.0, (newest_ms - ms_of_version(found[1])) / 1000) if items else 0.0

    def standing(self) -> list[Standing]:
        """Return where each log that these tables follow stands.

        Raises:
            StoreUnavailable: Try again later.
        """
        self._ready()
        with self._target.transaction("standing", writes=False) as connection:
            found = self._offsets.all(connection)
            waiting = self._waiting.count(connection)
        now_ms = self._clock.now_ms()
        return [
            Standing(
                uuid,
                position,
                max(0.0, (now_ms - ms_of_version(version)) / 1000) if version else None,
                waiting,
            )
            for uuid, position, version in found
        ]

    def verify(self, items: Items, *, sample: float = 1.0) -> Verification:
        """Compare tables with items: counts and hashes by range, then the rows that differ.

        Args:
            items: Called for each pass: yields every live item under the prefixes.
            sample: Share of the ranges to compare, above 0 to 1.

        Returns:
            What is missing, differs, or should not be there. While changes are on their way they
            are found as drift.

        Raises:
            StoreUnavailable: Try again later.

        Cost: each pass reads every row once; memory holds the ranges that differ.
        """
        self._ready()
        return self._auditor().verify(items, sample=sample)

    def repair(self, found: Verification, lookup: Lookup, items: Items = tuple) -> int:
        """Apply again what is missing or differs, and delete what is not an item.

        Each item is asked for again first, and a row that changed meanwhile is left alone. A row
        that the database refuses, or that something still refers to, is left and logged.

        Args:
            found: Of `verify`.
            lookup: Returns the item of an id now, or None.
            items: As for `verify`; needed where a raw table has `select`.

        Returns:
            Rows mended.
        """
        self._ready()
        return self._auditor().repair(found, lookup, items)

    def _auditor(self) -> Auditor:
        return Auditor(self._target, self.tables, self._rows, self._ledger)


def _check_references(name: str, tables: Sequence[Table | RawTable]) -> None:
    seen: set[str] = set()
    for table in tables:
        references = (table.references or {}) if isinstance(table, Table) else {}
        for target in references.values():
            if target.rpartition(".")[0] not in seen:
                raise ConfigError(
                    f"sink {name!r}: table {table.name!r} refers to {target!r}, which is no column"
                    " of a table that stands before it"
                )
        seen.add(table.name)


def from_settings(
    context: AdapterContext,
    *,
    url: str,
    tables: Sequence[Mapping[str, Any]],
    create: bool = True,
    connect_timeout_s: float = 5.0,
    timeout_s: float = 30.0,
    tombstone_s: float = 604_800.0,
) -> SqlTableSink:
    """Make the sink of a ``[[sink]]`` with ``type = "sql_table"``; arguments as `SqlTableSink`.

    Raises:
        ConfigError: A setting cannot be used.
    """
    return SqlTableSink(
        url,
        tables_from(tables),
        clock=context.runtime.clock,
        name=context.name,
        create=create,
        connect_timeout_s=connect_timeout_s,
        timeout_s=timeout_s,
        tombstone_s=tombstone_s,
    )
