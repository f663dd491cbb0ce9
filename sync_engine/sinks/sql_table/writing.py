"""A batch as statements: what comes first, and what must not be written at all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from sync_engine.core.item import Change
from sync_engine.errors import StoreRejected
from sync_engine.sinks.sql_table.books import Ledger
from sync_engine.sinks.sql_table.errors import Verdict, about_references, classify
from sync_engine.sinks.sql_table.rows import Rows
from sync_engine.sinks.sql_table.tables import RawTable, Table
from sync_engine.sinks.sql_table.target import Target
from sync_engine.sinks.sql_table.values import BadRow
from sync_engine.sinks.sql_table.waiting import Waiting

__all__ = ["Writer", "key_or_none"]

_SETTLED_AT_ONCE = 500
Park = Callable[[BaseException], bool]
"""Tells for which errors a row is put aside instead of refused."""


class Writer:
    """Writes batches over all tables in an order that their constraints allow.

    Of each id the newest change is written. Unique values of rows that change are let go of first,
    so that rows may swap them; then come puts, parents before children, then the statements of raw
    tables in the order of the changes, then deletions, children before parents. Every deletion is
    noted before the row is touched: that is the lock against a repair at the same moment.

    Args:
        target: The database.
        tables: In the order that references need.
        rows: Of declared tables, by name.
        ledger: Versions that must not come back.
        waiting: Where the copy puts aside what comes too early.
    """

    def __init__(
        self,
        target: Target,
        tables: Sequence[Table | RawTable],
        rows: Mapping[str, Rows],
        ledger: Ledger,
        waiting: Waiting,
    ) -> None:
        self._target = target
        self._tables = tables
        self._declared = [table for table in tables if isinstance(table, Table)]
        self._raw = [table for table in tables if isinstance(table, RawTable)]
        self._rows = rows
        self._ledger = ledger
        self._waiting = waiting
        self._places: dict[tuple[str, bool], bytes] = {}
        self._related = any(table.references for table in self._declared)

    def lock(self, connection: Connection, changes: Sequence[Change]) -> None:
        """Keep others from what a batch needs for itself; before anything is read."""
        alone = bool(self._raw) or self._waiting.some
        alone = alone or any(change.content is None for change in changes)
        self._ledger.lock(connection, alone=alone)

    def write(self, connection: Connection, changes: Sequence[Change], *, copying: bool) -> None:
        """Write a batch.

        Args:
            connection: In the transaction of the batch, which began with `lock`.
            changes: In any order.
            copying: Whether what its references do not allow yet is put aside, not refused.

        Raises:
            StoreRejected: A row cannot be made; the database's own errors pass.
        """
        puts: list[tuple[Table, list[Change]]] = []
        gone: list[tuple[Table, list[Change]]] = []
        for table in self._declared:
            mine = self._news(connection, table, changes)
            puts.append((table, [c for c in mine if c.content is not None]))
            gone.append((table, [c for c in mine if c.content is None]))
        for (table, new), (_, old) in zip(puts, gone, strict=True):
            self._ledger.note(connection, table.name, ((c.id, c.version, True) for c in old))
            self._release(connection, self._rows[table.name], [*new, *old])
        park = about_references if copying and self._related else None
        for table, new in puts:
            self._put(connection, table, new, park=park)
        if self._raw:
            self._write_raw(connection, changes)
        for table, old in reversed(gone):
            self._delete(connection, table, old, park=park)

    def _news(
        self, connection: Connection, table: Table, changes: Sequence[Change]
    ) -> list[Change]:
        """Return the newest change of each id, without puts of what was deleted since."""
        newest = _newest(_of(table, changes))
        known = self._ledger.versions(connection, table.name, newest) if newest else {}
        if not known:
            return list(newest.values())
        return [
            change
            for id, change in newest.items()
            if change.content is None or id not in known or known[id][0] < change.version
        ]

    def _release(self, connection: Connection, rows: Rows, changes: Sequence[Change]) -> None:
        if rows.release is not None:
            keys = [(*key, c.version) for c in changes if (key := key_or_none(rows, c.id))]
            self._target.run(connection, rows.release, sorted(keys))

    def _put(
        self, connection: Connection, table: Table, changes: Sequence[Change], *, park: Park | None
    ) -> list[Change]:
        """Write rows; return those put aside."""
        rows = self._rows[table.name]
        made = [(_row(rows, change), change) for change in changes]
        # Writers that lock rows in one order do not wait for each other in a circle.
        made.sort(key=lambda pair: rows.sorting(pair[0]))
        values = [row for row, _ in made]
        if park is None or not table.references:
            self._target.run(connection, rows.upsert, values)
            return []
        early = [made[n][1] for n in self._target.attempt(connection, rows.upsert, values, park)]
        self._waiting.put(connection, table.name, early)
        return early

    def _delete(
        self, connection: Connection, table: Table, changes: Sequence[Change], *, park: Park | None
    ) -> list[Change]:
        """Delete rows; return those put aside."""
        rows = self._rows[table.name]
        keyed = [((*key, c.version), c) for c in changes if (key := key_or_none(rows, c.id))]
        keyed.sort(key=lambda pair: pair[0])
        keys = [key for key, _ in keyed]
        if park is None:
            self._target.run(connection, rows.delete, keys)
            return []
        early = [keyed[n][1] for n in self._target.attempt(connection, rows.delete, keys, park)]
        self._waiting.put(connection, table.name, early)
        return early

    # -- what waits -------------------------------------------------------------------------------

    def settle(self) -> None:
        """Write all that waits and can be written now, parents first, some at a time.

        Raises:
            StoreUnavailable: Try again later.
        """
        for table in self._declared:
            self._settle_table(table, gone=False)
        for table in reversed(self._declared):
            self._settle_table(table, gone=True)

    def _settle_table(self, table: Table, *, gone: bool) -> None:
        after: bytes | None = b""
        while after is not None:
            with self._target.transaction("settle") as connection:
                self._ledger.lock(connection, alone=True)
                after = self.settle_some(connection, table, gone=gone, after=after)

    def settle_some(
        self, connection: Connection, table: Table, *, gone: bool, after: bytes
    ) -> bytes | None:
        """Write some of what waits; return the id to go on after, None at the end."""
        page = self._waiting.page(
            connection, table.name, gone=gone, after=after, limit=_SETTLED_AT_ONCE
        )
        if not page:
            return None
        news = self._news(connection, table, page)
        rows = self._rows[table.name]
        # The table may have been declared anew since: what is no row of it now goes on waiting.
        fit = [change for change in news if gone or _is_row(rows, change)]
        early = {change.id for change in news} - {change.id for change in fit}
        act = self._delete if gone else self._put
        early |= {change.id for change in act(connection, table, fit, park=_any_refusal)}
        self._waiting.drop(connection, table.name, [c for c in page if c.id not in early])
        return page[-1].id.encode() if len(page) == _SETTLED_AT_ONCE else None

    def settle_after(self, connection: Connection) -> None:
        """Look at some of what waits, in turn, after a batch that may be what it waits for."""
        for gone in (False, True):
            for table in reversed(self._declared) if gone else self._declared:
                place = (table.name, gone)
                after = self._places.get(place, b"")
                self._places[place] = (
                    self.settle_some(connection, table, gone=gone, after=after) or b""
                )
        self._waiting.count(connection)

    # -- statements of the user's own -------------------------------------------------------------

    def _write_raw(self, connection: Connection, changes: Sequence[Change]) -> None:
        """Write runs of one table and one kind of change, in the order they came."""
        steps = []
        wins = {t.name: self._winners(connection, t, _of(t, changes)) for t in self._raw}
        for table in self._raw:
            kept = wins[table.name].values()
            marks = ((c.id, c.version, c.content is None) for c in kept)
            self._ledger.note(connection, table.name, marks)
            if table.swaps:
                run_raw(connection, table, list(kept), gone=True)
        for change in changes:
            for place, table in enumerate(self._raw):
                if wins[table.name].get(change.id) is change:
                    steps.append((place, change.content is None, change))
        for (place, gone), run in groupby(steps, key=lambda step: step[:2]):
            run_raw(connection, self._raw[place], [step[2] for step in run], gone=gone)

    def _winners(
        self, connection: Connection, table: RawTable, changes: Sequence[Change]
    ) -> dict[str, Change]:
        """Return the newest change of each id that is newer than what is known."""
        newest = _newest(changes)
        known = self._ledger.versions(connection, table.name, newest)
        return {
            id: change
            for id, change in newest.items()
            if id not in known
            or change.version > known[id][0]
            # An expired item comes as a deletion of its own version.
            or (change.version == known[id][0] and change.content is None and not known[id][1])
        }


def _any_refusal(error: BaseException) -> bool:
    return classify(error) is Verdict.REJECTED


def run_raw(
    connection: Connection, table: RawTable, changes: Sequence[Change], *, gone: bool
) -> None:
    """Run a table's own statement for changes.

    Raises:
        StoreRejected: The function that makes parameters raised.
    """
    if not changes:
        return
    told = table.remove if gone else table.upsert
    parameters = [dict(_parameters(table, change, gone=gone)) for change in changes]
    if ":" in told.upper().partition(" ON DUPLICATE ")[2]:
        # PyMySQL gathers rows of one INSERT, and cannot fill what stands behind their values.
        for one in parameters:
            connection.execute(sa.text(told), one)
    else:
        connection.execute(sa.text(told), parameters)


def _parameters(table: RawTable, change: Change, *, gone: bool) -> Mapping[str, Any]:
    item = None if gone else change.item()
    try:
        if item is None:
            return table.key_parameters(change.id)
        return table.parameters(change.id, item)
    except Exception as exc:
        told = f"item {change.id!r}: {type(exc).__name__}: {exc}"
        raise StoreRejected(table.name, "apply", told) from exc


def _of(table: Table | RawTable, changes: Sequence[Change]) -> Sequence[Change]:
    begins = table.begins
    return [c for c in changes if c.id.startswith(begins)] if begins else changes


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


def _is_row(rows: Rows, change: Change) -> bool:
    try:
        rows.row(change)
    except BadRow:
        return False
    return True


def key_or_none(rows: Rows, id: str) -> tuple[Any, ...] | None:
    """Return the key of an id; None where no row can ever have had it."""
    try:
        return rows.key(id)
    except BadRow:
        return None
