"""Rows of one declared table: made from changes, and read back into ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from sync_engine.core.item import Change
from sync_engine.sinks.sql_table import schema
from sync_engine.sinks.sql_table.bulk import Bulk
from sync_engine.sinks.sql_table.tables import VERSION_COLUMN, Table
from sync_engine.sinks.sql_table.values import (
    BadRow,
    KeyTemplate,
    canonical,
    converter,
    extractor,
)

__all__ = ["Rows"]

_decode = msgspec.json.Decoder().decode


class Rows:
    """Makes rows of one table, and the statements that write them.

    Args:
        declared: The table.
        metadata: Where its tables are gathered.
        engine: Of the target.
        referenced: Columns of it that other tables refer to; None where that is not known.

    Attributes:
        release: Lets go of unique values of rows that are about to change, so that they may be
            swapped; None where there is nothing to let go of.
    """

    def __init__(
        self,
        declared: Table,
        metadata: sa.MetaData,
        engine: Engine,
        *,
        referenced: frozenset[str] | None = frozenset(),
    ) -> None:
        self.declared = declared
        self.table = schema.made_table(declared, metadata, engine)
        keyed = len(declared.key_columns) + 1
        width = len(self.table.columns)

        def by_key(verb: str, op: str) -> Bulk:
            return Bulk(schema.keyed_text(verb, self.table, engine, op), keyed)

        self.upsert = Bulk(schema.upsert_text(self.table, engine), width)
        self.delete = by_key("DELETE FROM {t}", "<=")
        self.delete_exact = by_key("DELETE FROM {t}", "=")
        quote = engine.dialect.identifier_preparer.quote
        # Names are checked where tables are declared, and quoted here.
        self.age = by_key(f"UPDATE {{t}} SET {quote(VERSION_COLUMN)} = -1", "=")  # noqa: S608
        release = self._released(declared, referenced)
        self.release: Bulk | None = None
        if release is not None:
            freed = ", ".join(f"{quote(name)} = NULL" for name in release)
            verb = f"UPDATE {{t}} SET {freed}" if freed else "DELETE FROM {t}"  # noqa: S608
            self.release = by_key(verb, "<")
        self.kinds = [column.kind for column in declared.columns]
        self._template = KeyTemplate(declared.key) if declared.key else None
        names = declared.fields
        dialect = engine.dialect.name
        self._cells = [
            (
                extractor(column.source, names),
                schema.exact_type(column.kind),
                converter(column.kind, column.name),
                schema.adapt(column.kind, dialect, column.name),
            )
            for column in declared.columns
        ]
        self.key_places = [declared.columns.index(column) for column in declared.key_columns]
        self._integer_keys = [place for place in self.key_places if self.kinds[place] == "integer"]
        self.sorting = itemgetter(*self.key_places)
        self._reads_json = any(
            column.source.partition(".")[0] == "json" for column in declared.columns
        )

    @staticmethod
    def _released(declared: Table, referenced: frozenset[str] | None) -> list[str] | None:
        """Return the columns to empty before rows change; none at all: take the rows out."""
        if not declared.unique:
            return None
        keys = set(declared.key_columns)
        free = {
            column.name
            for column in declared.columns
            if column.null and column not in keys and column.name not in (referenced or ())
        }
        chosen = [next((name for name in group if name in free), None) for group in declared.unique]
        if None not in chosen:
            return sorted({name for name in chosen if name})
        # A row that others refer to cannot be taken out.
        return [] if referenced is not None and not referenced else None

    def key(self, id: str) -> tuple[Any, ...]:
        """Return the values of the primary key of an id.

        Raises:
            BadRow: The id is no key of this table.
        """
        fields = self._template.parse(id) if self._template else {}
        change = Change(id, 0, None)
        return tuple(
            self._key_cell(place, self._cells[place][0](change, fields, None))
            for place in self.key_places
        )

    def _key_cell(self, place: int, value: Any) -> Any:
        made = self._cells[place][2](value)
        if self.kinds[place] == "integer" and str(made) != value:
            raise BadRow(f"{value!r} in the id is not how the integer {made} is written")
        return made

    def row(self, change: Change) -> tuple[Any, ...]:
        """Return the row of a put, its version last.

        Raises:
            BadRow: It cannot be a row.
        """
        fields: Mapping[str, str] = self._template.parse(change.id) if self._template else {}
        document = self._document(change) if self._reads_json else None
        made: list[Any] = []
        for extract, exact, convert, adapt in self._cells:
            value = extract(change, fields, document)
            if value.__class__ is not exact and value is not None:
                value = convert(value)
                if adapt is not None:
                    value = adapt(value)
            made.append(value)
        for place in self._integer_keys:
            if str(made[place]) != self._cells[place][0](change, fields, document):
                self._key_cell(place, self._cells[place][0](change, fields, document))
        made.append(change.version)
        return tuple(made)

    def _document(self, change: Change) -> Any:
        try:
            return _decode(change.content or b"")
        except (msgspec.DecodeError, UnicodeDecodeError) as exc:
            raise BadRow("the content is not JSON") from exc

    def id(self, row: Sequence[Any]) -> str:
        """Return the id that a row of the target is from."""
        if self._template is None:
            value = row[self.key_places[0]]
            return bytes(value).decode() if isinstance(value, bytes | memoryview) else str(value)
        fields = {}
        for column, place in zip(self.declared.key_columns, self.key_places, strict=True):
            name = column.source.partition(".")[2] or self._template.fields[0]
            value = row[place]
            fields[name] = bytes(value).decode() if isinstance(value, bytes | memoryview) else value
        return self._template.render(fields)

    def digest(self, row: Sequence[Any]) -> bytes:
        """Return a row as bytes that are the same on every database."""
        cells = [canonical(kind, value) for kind, value in zip(self.kinds, row, strict=False)]
        cells.append(str(row[-1]).encode())
        return b"".join(len(cell).to_bytes(4, "big") + cell for cell in cells)
