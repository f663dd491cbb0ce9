"""Whether tables still are what the items say, and mending them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa

from sync_engine.core.item import Change, SyncItem
from sync_engine.errors import ConfigError, StoreRejected
from sync_engine.sinks.sql_table.books import Ledger
from sync_engine.sinks.sql_table.rows import Rows
from sync_engine.sinks.sql_table.tables import RawTable, Table
from sync_engine.sinks.sql_table.target import Target
from sync_engine.sinks.sql_table.values import BadRow

__all__ = ["Auditor", "Drift", "Items", "Lookup", "Verification"]

_RANGES = 256
_ROWS_AT_ONCE = 1000
Items = Callable[[], Iterable[SyncItem]]
Lookup = Callable[[str], SyncItem | None]
_Entry = tuple[str, bytes, int]


@dataclass(frozen=True, slots=True)
class Drift:
    """One row that is not what its item says.

    Attributes:
        table: Name of the table.
        id: Of the item.
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
    """Compares and mends; of raw tables only what the ledger knows: ids and versions."""

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
            if rows is None:
                yield item.id, b"", item.version
                continue
            try:
                yield item.id, rows.digest(rows.row(_change(item))), item.version
            except BadRow:
                refused.append(item.id)

    def _found(self, table: Table | RawTable) -> Iterator[_Entry]:
        rows = self._rows.get(table.name)
        with self._target.transaction("verify") as connection:
            if rows is None:
                for id, version in self._ledger.ids(connection, table.name).items():
                    yield id, b"", version
                return
            query: Any = sa.select(*[sa.column(c.name) for c in rows.table.columns]).select_from(
                sa.table(table.name)
            )
            streamed = connection.execution_options(stream_results=True, yield_per=_ROWS_AT_ONCE)
            for row in streamed.execute(query):
                yield rows.id(row), rows.digest(row), int(row[-1])

    def repair(self, found: Verification, lookup: Lookup) -> int:
        """Mend; see `SqlTableSink.repair`."""
        mended = 0
        for one in found.drift:
            rows = self._rows.get(one.table)
            item = lookup(one.id)
            if rows is None:
                raise ConfigError(
                    f"table {one.table!r} is written by statements of your own: drop it, and it is"
                    " made and filled again"
                )
            with self._target.transaction("repair") as connection:
                if one.version or one.kind != "missing":
                    try:
                        key = rows.key(one.id)
                    except BadRow as exc:
                        raise StoreRejected(one.table, "repair", str(exc)) from exc
                    # Only the row that was seen: a newer one came by the usual way.
                    self._target.run(connection, rows.delete_exact, [(*key, one.version)])
                if item is not None:
                    self._target.run(connection, rows.upsert, [rows.row(_change(item))])
            mended += 1
        return mended


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
