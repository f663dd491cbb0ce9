"""The sink `sql_table`: items as rows, each batch one transaction with the position it ends at."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection

from sync_engine.core.item import Change, SyncItem
from sync_engine.errors import ConfigError, StoreRejected
from sync_engine.ports import AdapterContext, Clock
from sync_engine.sinks.sql_table import schema
from sync_engine.sinks.sql_table.books import COPYING, FRESH, TORN, Ledger, Offsets, Standing
from sync_engine.sinks.sql_table.rows import Rows
from sync_engine.sinks.sql_table.tables import RawTable, Table, tables_from
from sync_engine.sinks.sql_table.target import Target
from sync_engine.sinks.sql_table.values import BadRow
from sync_engine.sinks.sql_table.verify import Auditor, Items, Lookup, Verification
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

    Where tables have nothing beside their key to collide on, the newest change of an id is written,
    all puts of a table in one statement. Where they refer to each other, changes are written in the
    order they come; where columns beside the key are unique, rows of a batch are taken out before
    they are put in, so that they may swap such values.

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
        self._book_tables = [books.offsets, books.ledger]
        self._offsets = Offsets(name, books.offsets)
        self._ledger = Ledger(name, books.ledger, self._target)
        self._declared = declared
        self._rows: dict[str, Rows] = {}
        self._attached = False
        self._batches = 0
        self._ordered = any(table.ordered for table in tables)
        self._related = any(isinstance(table, RawTable) or table.references for table in tables)

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
            if not self._rows:
                self._rows = {
                    one.name: Rows(one, self._metadata, self._target.engine)
                    for one in self._declared
                }
        with self._target.transaction("attach") as connection:
            missing = [table.name for table in self.tables if table.name not in present]
            for one in self._declared:
                if one.name in present:
                    schema.check_columns(connection, self._rows[one.name].table, one)
            if missing:
                self._forget(connection, missing)
            self._ledger.look(connection)
        if missing:
            self._make(missing)
        self._attached = True

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

    def _make(self, missing: Sequence[str]) -> None:
        with self._target.transaction("create") as connection:
            made = [self._rows[name].table for name in missing if name in self._rows]
            self._metadata.create_all(connection, tables=made)
            for table in self.tables:
                if isinstance(table, RawTable) and table.name in missing:
                    for command in table.create:
                        connection.execute(sa.text(command))
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
        with self._target.transaction("ping") as connection:
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
        with self._target.transaction("position") as connection:
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
            state = self._offsets.get(connection, "")
            if state is None or state[0] == FRESH:
                self._offsets.put(connection, "", COPYING)
            self._write(connection, changes)

    def apply_at(self, changes: Sequence[Change], log_uuid: str, position: int) -> None:
        """Take the whole batch and the position that it ends at, or nothing.

        A position at or below the stored one changes nothing. Raises as `apply`.
        """
        self._ready()
        with self._target.transaction("apply") as connection:
            found = self._offsets.get(connection, log_uuid)
            if found is not None and position <= found[0]:
                return
            if found is None and self._copied(connection):
                return
            self._write(connection, changes)
            version = max((change.version for change in changes), default=found[1] if found else 0)
            self._offsets.put(connection, log_uuid, position, version)
            self._batches += 1
            if self._batches % _PURGE_EVERY == 0:
                below = int(self._clock.now_ms() - self._tombstone_ms) << 20
                self._ledger.purge(connection, below)

    def _copied(self, connection: Connection) -> bool:
        """Note that the copy is over; return whether a table was lost meanwhile: copy again."""
        state = self._offsets.get(connection, "")
        if state is None or state[0] == FRESH:
            return False
        self._offsets.put(connection, "", FRESH)
        return state[0] == TORN

    def _write(self, connection: Connection, changes: Sequence[Change]) -> None:
        if not self._ordered:
            for declared in self._declared:
                self._write_newest(connection, declared, _of(declared, changes))
            return
        wins = {
            table.name: self._winners(connection, table, _of(table, changes))
            for table in self.tables
        }
        if self._related:
            self._write_in_order(connection, changes, wins)
        else:
            for table in self.tables:
                mine = [c for c in changes if c.id in wins[table.name]]
                self._write_apart(connection, table, list(_newest(mine).values()))
        for name, kept in wins.items():
            marks = ((c.id, c.version, c.content is None) for c in kept.values())
            self._ledger.note(connection, name, marks)

    def _write_newest(
        self, connection: Connection, table: Table, changes: Sequence[Change]
    ) -> None:
        if not changes:
            return
        rows = self._rows[table.name]
        newest = _newest(changes)
        known = self._ledger.versions(connection, table.name, newest.keys())
        made, gone = [], []
        for change in newest.values():
            if change.content is None:
                gone.append(change)
            elif change.id not in known or known[change.id][0] < change.version:
                made.append(_row(rows, change))
        made.sort(key=lambda row: tuple(row[place] for place in rows.key_places))
        self._target.run(connection, rows.upsert, made)
        if gone:
            keys = [(*key, c.version) for c in gone if (key := _key(rows, c.id))]
            self._target.run(connection, rows.delete, sorted(keys))
            self._ledger.note(connection, table.name, ((c.id, c.version, True) for c in gone))

    def _winners(
        self, connection: Connection, table: Table | RawTable, changes: Sequence[Change]
    ) -> dict[str, Change]:
        """Return the newest change of each id that is newer than what is known."""
        newest = _newest(changes)
        known = self._ledger.versions(connection, table.name, newest.keys())
        return {
            id: change
            for id, change in newest.items()
            if id not in known
            or change.version > known[id][0]
            # An expired item comes as a deletion of its own version.
            or (change.version == known[id][0] and change.content is None and not known[id][1])
        }

    def _write_apart(
        self, connection: Connection, table: Table | RawTable, changes: Sequence[Change]
    ) -> None:
        """Take every row of the batch out, then put rows in: unique values may be swapped."""
        rows = self._rows[table.name]
        keys = [(*key, c.version) for c in changes if (key := _key(rows, c.id))]
        self._target.run(connection, rows.delete, sorted(keys))
        made = [_row(rows, change) for change in changes if change.content is not None]
        self._target.run(connection, rows.upsert, made)

    def _write_in_order(
        self,
        connection: Connection,
        changes: Sequence[Change],
        wins: Mapping[str, Mapping[str, Change]],
    ) -> None:
        """Write runs of one table and one kind of change, in the order they came."""
        steps = [
            (place, change.content is None, change)
            for change in changes
            for place, table in enumerate(self.tables)
            if (kept := wins[table.name].get(change.id)) and change.version <= kept.version
        ]
        for (place, gone), run in groupby(steps, key=lambda step: step[:2]):
            table = self.tables[place]
            batch = [step[2] for step in run]
            if isinstance(table, RawTable):
                self._write_raw(connection, table, batch, gone=gone)
                continue
            rows = self._rows[table.name]
            if gone:
                keys = [(*key, c.version) for c in batch if (key := _key(rows, c.id))]
                self._target.run(connection, rows.delete, keys)
            else:
                self._target.run(connection, rows.upsert, [_row(rows, c) for c in batch])

    def _write_raw(
        self, connection: Connection, table: RawTable, changes: Sequence[Change], *, gone: bool
    ) -> None:
        parameters = [_parameters(table, change) for change in changes]
        text = sa.text(table.remove if gone else table.upsert)
        connection.execute(text, [dict(one) for one in parameters])

    # -- how it stands ----------------------------------------------------------------------------

    def lag(self, log_uuid: str, head: int, newest_version: int = 0) -> tuple[int, float]:
        """Return how far the tables are behind a log.

        Args:
            log_uuid: The log.
            head: Its last position.
            newest_version: Version of its last change; 0 takes the clock.

        Returns:
            Positions, and seconds between the last change here and the newest one there.
        """
        self._ready()
        with self._target.transaction("lag") as connection:
            found = self._offsets.get(connection, log_uuid)
        if found is None:
            return head, float("inf") if head else 0.0
        items = max(0, head - found[0])
        newest_ms = newest_version >> 20 if newest_version else self._clock.now_ms()
        return items, max(0.0, (newest_ms - (found[1] >> 20)) / 1000) if items else 0.0

    def standing(self) -> list[Standing]:
        """Return where each log that these tables follow stands.

        Raises:
            StoreUnavailable: Try again later.
        """
        self._ready()
        with self._target.transaction("standing") as connection:
            found = self._offsets.all(connection)
        now_ms = self._clock.now_ms()
        return [
            Standing(uuid, position, max(0.0, (now_ms - (version >> 20)) / 1000))
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

    def repair(self, found: Verification, lookup: Lookup) -> int:
        """Apply again what is missing or differs, and delete what is not an item.

        Each item is asked for again first, and a row that changed meanwhile is left alone.

        Args:
            found: Of `verify`.
            lookup: Returns the item of an id now, or None.

        Returns:
            Rows mended.
        """
        self._ready()
        return self._auditor().repair(found, lookup)

    def _auditor(self) -> Auditor:
        return Auditor(self._target, self.tables, self._rows, self._ledger)


def _of(table: Table | RawTable, changes: Sequence[Change]) -> list[Change]:
    begins = table.begins
    return [c for c in changes if c.id.startswith(begins)] if begins else list(changes)


def _newest(changes: Iterable[Change]) -> dict[str, Change]:
    newest: dict[str, Change] = {}
    for change in changes:
        known = newest.get(change.id)
        if known is None or change.version >= known.version:
            newest[change.id] = change
    return newest


def _row(rows: Rows, change: Change) -> tuple[Any, ...]:
    try:
        return rows.row(change)
    except BadRow as exc:
        raise StoreRejected(rows.declared.name, "apply", f"item {change.id!r}: {exc}") from exc


def _key(rows: Rows, id: str) -> tuple[Any, ...] | None:
    """Return the key of an id; None where no row can ever have had it."""
    try:
        return rows.key(id)
    except BadRow:
        return None


def _parameters(table: RawTable, change: Change) -> Mapping[str, Any]:
    item: SyncItem | None = change.item()
    try:
        return (
            table.key_parameters(change.id) if item is None else table.parameters(change.id, item)
        )
    except Exception as exc:
        told = f"item {change.id!r}: {type(exc).__name__}: {exc}"
        raise StoreRejected(table.name, "apply", told) from exc


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
