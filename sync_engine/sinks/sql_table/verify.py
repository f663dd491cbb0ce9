"""Whether tables still are what the items say, and mending them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from sync_engine.core.item import Change, SyncItem
from sync_engine.errors import ConfigError, StoreRejected
from sync_engine.sinks.sql_table.books import Ledger
from sync_engine.sinks.sql_table.rows import Rows
from sync_engine.sinks.sql_table.tables import RawTable, Table
from sync_engine.sinks.sql_table.target import Target
from sync_engine.sinks.sql_table.values import alike
from sync_engine.sinks.sql_table.writing import run_raw
from sync_engine.telemetry import get_logger

__all__ = ["Auditor", "Drift", "Items", "Lookup", "Verification"]

_log = get_logger("sinks.sql_table")
_RANGES = 256
_ROWS_AT_ONCE = 1000
Items = Callable[[], Iterable[SyncItem]]
Lookup = Callable[[str], SyncItem | None]
_Entry = tuple[str, bytes, int]  # id, content, version


@dataclass(frozen=True, slots=True)
class Drift:
    """One row that is not what its item says.

    Attributes:
        table: Name of the table.
        id: Of the item; of a raw table with `select`, the key of the row as JSON.
        kind: ``missing`` row, ``extra`` row, or ``different``.
        version: Version of the row in the table; 0 where there is none.
    """

    table: str
    id: str
    kind: Literal["missing", "extra", "different"]
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What a comparison found.

    Attributes:
        rows: Rows compared, by table.
        ranges: Ranges compared.
        ranges_differing: Of them, those whose count or hash differs.
        drift: Every row that differs.
        refused: Ids of items that cannot be rows.
    """

    rows: Mapping[str, int]
    ranges: int
    ranges_differing: int
    drift: tuple[Drift, ...]
    refused: tuple[str, ...] = ()

    @property
    def clean(self) -> bool:
        """Whether nothing differs."""
        return not self.drift


class Auditor:
    """Compares and mends.

    Of a raw table with `select` its rows are compared, by the parameters they would be written
    with; of one without it what the ledger knows: ids and versions.
    """

    def __init__(
        self,
        target: Target,
        tables: Sequence[Table | RawTable],
        rows: Mapping[str, Rows],
        ledger: Ledger,
    ) -> None:
        self._target = target
        self._tables = tables
        self._rows = rows
        self._ledger = ledger

    def verify(self, items: Items, *, sample: float = 1.0) -> Verification:
        """Compare; see `SqlTableSink.verify`."""
        if not 0 < sample <= 1:
            raise ConfigError(f"sample must be above 0 to 1, got {sample}")
        chosen = set(range(max(1, round(_RANGES * sample))))
        rows: dict[str, int] = {}
        refused: list[str] = []
        drift: list[Drift] = []
        differing = 0
        for table in self._tables:
            ours = _ranges(self._expected(table, items, refused), chosen)
            theirs = _ranges(self._found(table), chosen)
            apart = {place for place in chosen if ours[place] != theirs[place]}
            differing += len(apart)
            rows[table.name] = sum(count for place, (count, _) in theirs.items() if place in chosen)
            if apart:
                drift += self._details(table, items, apart)
        return Verification(
            rows=rows,
            ranges=len(chosen) * len(self._tables),
            ranges_differing=differing,
            drift=tuple(drift),
            refused=tuple(refused),
        )

    def _details(self, table: Table | RawTable, items: Items, apart: set[int]) -> Iterator[Drift]:
        wanted = {id: digest for id, digest, _ in _in(self._expected(table, items, []), apart)}
        for id, digest, version in _in(self._found(table), apart):
            expected = wanted.pop(id, None)
            if expected is None:
                yield Drift(table.name, id, "extra", version)
            elif expected != digest:
                yield Drift(table.name, id, "different", version)
        for id in wanted:
            yield Drift(table.name, id, "missing", 0)

    def _expected(
        self, table: Table | RawTable, items: Items, refused: list[str]
    ) -> Iterator[_Entry]:
        rows = self._rows.get(table.name)
        for item in items():
            if not item.id.startswith(table.begins):
                continue
            try:
                if rows is not None:
                    yield item.id, rows.digest(rows.row(_change(item))), item.version
                elif isinstance(table, RawTable) and table.select:
                    key = _raw_key(table.key_parameters(item.id))
                    yield key, _raw_digest(table.parameters(item.id, item)), 0
                else:
                    yield item.id, str(item.version).encode(), item.version
            except ValueError:  # a bad row, or one that the user's function refuses
                refused.append(item.id)

    def _found(self, table: Table | RawTable) -> Iterator[_Entry]:
        rows = self._rows.get(table.name)
        with self._target.transaction("verify", writes=False) as connection:
            if isinstance(table, RawTable) and table.select:
                yield from _raw_rows(connection, table)
                return
            if rows is None:
                for id, version in self._ledger.ids(connection, table.name).items():
                    yield id, str(version).encode(), version
                return
            query: Any = sa.select(*[sa.column(c.name) for c in rows.table.columns]).select_from(
                sa.table(table.name)
            )
            streamed = connection.execution_options(stream_results=True, yield_per=_ROWS_AT_ONCE)
            for row in streamed.execute(query):
                yield rows.id(row), rows.digest(row), int(row[-1])

    def repair(self, found: Verification, lookup: Lookup, items: Items) -> int:
        """Mend; see `SqlTableSink.repair`."""
        mended = 0
        for table in self._tables:
            mine = [d for d in found.drift if d.table == table.name and d.kind != "extra"]
            ids = self._ids(table, mine, items)
            mended += sum(self._mend(table, one, ids.get(one.id, one.id), lookup) for one in mine)
        for table in reversed(self._tables):
            mine = [d for d in found.drift if d.table == table.name and d.kind == "extra"]
            mended += sum(self._mend(table, one, one.id, lookup) for one in mine)
        return mended

    def _ids(self, table: Table | RawTable, drift: Sequence[Drift], items: Items) -> dict[str, str]:
        """Return the item ids of rows that are known by their keys."""
        if not drift or not isinstance(table, RawTable) or not table.select:
            return {}
        keys = {one.id for one in drift}
        known: dict[str, str] = {}
        for item in items():
            if item.id.startswith(table.begins):
                key = _raw_key(table.key_parameters(item.id))
                if key in keys:
                    known[key] = item.id
        return known

    def _mend(self, table: Table | RawTable, one: Drift, id: str, lookup: Lookup) -> bool:
        item = lookup(id)
        change = None if item is None else _change(item)
        try:
            with self._target.transaction("repair") as connection:
                if isinstance(table, RawTable):
                    self._ledger.lock(connection, alone=True)
                    return self._mend_raw(connection, table, one, id, change)
                return self._mend_declared(connection, table, one, change)
        except StoreRejected as exc:
            _log.warning("repair_refused", table=table.name, id=id, error=str(exc))
            return False

    def _overtaken(self, connection: Connection, table: Table | RawTable, change: Change) -> bool:
        """Lock what the books know of an id; tell whether something newer came in between."""
        # This says only what is true of any put: what is older does not come back.
        self._ledger.note(connection, table.name, [(change.id, change.version - 1, True)])
        version, gone = self._ledger.versions(connection, table.name, [change.id])[change.id]
        return version >= change.version if gone else version > change.version

    def _mend_declared(
        self, connection: Connection, table: Table, one: Drift, change: Change | None
    ) -> bool:
        rows = self._rows[table.name]
        seen = [] if one.kind == "missing" else [(*rows.key(one.id), one.version)]
        if change is None:
            # Only the row that was seen: a newer one came by the usual way.
            self._target.run(connection, rows.delete_exact, seen)
            return bool(seen)
        if self._overtaken(connection, table, change):
            return False
        self._target.run(connection, rows.age, seen)
        self._target.run(connection, rows.upsert, [rows.row(change)])
        return True

    def _mend_raw(
        self,
        connection: Connection,
        table: RawTable,
        one: Drift,
        id: str,
        change: Change | None,
    ) -> bool:
        if change is not None:
            if self._overtaken(connection, table, change):
                return False
            self._ledger.note(connection, table.name, [(id, change.version, False)])
            run_raw(connection, table, [change], gone=False)
        elif table.select:
            connection.execute(sa.text(table.remove), json.loads(one.id))
        else:
            self._ledger.note(connection, table.name, [(id, one.version + 1, True)])
            run_raw(connection, table, [Change(id, one.version, None)], gone=True)
        return True


def _raw_key(parameters: Mapping[str, Any]) -> str:
    return json.dumps(dict(parameters), sort_keys=True, ensure_ascii=False, default=str)


def _raw_digest(values: Mapping[str, Any]) -> bytes:
    return b"".join(
        len(cell).to_bytes(4, "big") + cell
        for name in sorted(values)
        for cell in (name.encode(), alike(values[name]))
    )


def _raw_rows(connection: Connection, table: RawTable) -> Iterator[_Entry]:
    """Yield the rows of a raw table: keys are the parameters of `remove`."""
    names = re.findall(r"(?<!:):(\w+)", table.remove)
    streamed = connection.execution_options(stream_results=True, yield_per=_ROWS_AT_ONCE)
    for found in streamed.execute(sa.text(table.select)).mappings():
        row = {str(name): value for name, value in found.items()}
        lacking = [name for name in names if name not in row]
        if lacking:
            raise ConfigError(f"table {table.name!r}: `select` returns no column {lacking[0]!r}")
        yield _raw_key({name: row[name] for name in names}), _raw_digest(row), 0


def _change(item: SyncItem) -> Change:
    return Change(
        item.id,
        item.version,
        item.content,
        int(item.content_type),
        item.state,
        item.expires_at_ms,
    )


def _place(id: str) -> int:
    return hashlib.blake2b(id.encode(), digest_size=1).digest()[0]


def _in(entries: Iterator[_Entry], places: set[int]) -> Iterator[_Entry]:
    return (entry for entry in entries if _place(entry[0]) in places)


def _ranges(entries: Iterator[_Entry], chosen: set[int]) -> dict[int, tuple[int, int]]:
    """Return count and sum of hashes of each range: a sum does not depend on the order."""
    made = dict.fromkeys(range(_RANGES), (0, 0))
    for id, digest, version in entries:
        place = _place(id)
        if place in chosen:
            whole = hashlib.blake2b(
                id.encode() + b"\0" + digest + version.to_bytes(8, "big"), digest_size=8
            )
            count, total = made[place]
            made[place] = count + 1, total + int.from_bytes(whole.digest(), "big") & (1 << 64) - 1
    return made
