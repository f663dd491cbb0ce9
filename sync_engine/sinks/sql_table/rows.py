"""Rows of one declared table: made from changes, and read back into ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from sync_engine.core.item import Change
from sync_engine.sinks.sql_table import schema
from sync_engine.sinks.sql_table.tables import Table
from sync_engine.sinks.sql_table.values import (
    BadRow,
    KeyTemplate,
    canonical,
    converter,
    extractor,
)

__all__ = ["Rows"]


class Rows:
    """Makes rows of one table, and the statements that write them.

    Args:
        declared: The table.
        metadata: Where its tables are gathered.
        engine: Of the target.
    """

    def __init__(self, declared: Table, metadata: sa.MetaData, engine: Engine) -> None:
        self.declared = declared
        self.table = schema.made_table(declared, metadata, engine)
        self.upsert = schema.upsert_text(self.table, engine)
        self.delete = schema.delete_text(self.table, engine)
        self.delete_exact = schema.delete_text(self.table, engine, op="=")
        self.kinds = [column.kind for column in declared.columns]
        self._template = KeyTemplate(declared.key) if declared.key else None
        names = declared.fields
        dialect = engine.dialect.name
        self._cells = [
            (
                extractor(column.source, names),
                converter(column.kind, column.name),
                schema.adapt(column.kind, dialect, column.name),
            )
            for column in declared.columns
        ]
        self.key_places = [declared.columns.index(column) for column in declared.key_columns]
        self._integer_key = any(self.kinds[place] == "integer" for place in self.key_places)
        self._reads_json = any(
            column.source.partition(".")[0] == "json" for column in declared.columns
        )

    def key(self, id: str) -> tuple[Any, ...]:
        """Return the values of the primary key of an id.

        Raises:
            BadRow: The id is no key of this table.
        """
        fields = self._template.parse(id) if self._template else {}
        change = Change(id, 0, None)
        key = []
        for place in self.key_places:
            extract, convert, _ = self._cells[place]
            value = extract(change, fields, None)
            made = convert(value)
            if self.kinds[place] == "integer" and str(made) != value:
                raise BadRow(f"{value!r} in the id is not how the integer {made} is written")
            key.append(made)
        return tuple(key)

    def row(self, change: Change) -> tuple[Any, ...]:
        """Return the row of a put, its version last.

        Raises:
            BadRow: It cannot be a row.
        """
        fields: Mapping[str, str] = self._template.parse(change.id) if self._template else {}
        document = self._document(change) if self._reads_json else None
        made: list[Any] = []
        for extract, convert, adapt in self._cells:
            value = extract(change, fields, document)
            if value is not None:
                value = convert(value)
                if adapt is not None:
                    value = adapt(value)
            made.append(value)
        if self._integer_key:
            self.key(change.id)
        made.append(change.version)
        return tuple(made)

    def _document(self, change: Change) -> Any:
        try:
            return msgspec.json.decode(change.content or b"")
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
