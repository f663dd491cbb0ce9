"""What a user says of a table: where its rows come from, and where they go."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sync_engine.core.item import SyncItem
from sync_engine.errors import ConfigError
from sync_engine.sinks.sql_table.values import TYPES, KeyTemplate, extractor

__all__ = ["VERSION_COLUMN", "Column", "RawTable", "Table", "tables_from"]

VERSION_COLUMN = "_version"
"""Column of every declared table that says which change a row is from."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")
_TYPE = re.compile(r"([a-z]+)(?:\((\d+)\))?")
Parameters = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Column:
    """One column.

    Attributes:
        name: Letters, digits, underscores.
        type: One of `values.TYPES`; ``text(N)`` is bounded to N characters.
        source: What it is taken from; see `values.SOURCES`.
        null: Whether the item may lack it.
    """

    name: str
    type: str = "text"
    source: str = "content"
    null: bool = True

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or self.name == VERSION_COLUMN:
            raise ConfigError(f"{self.name!r} cannot be the name of a column")
        found = _TYPE.fullmatch(self.type)
        if not found or found[1] not in TYPES or (found[2] and found[1] != "text"):
            raise ConfigError(
                f"column {self.name!r}: there is no type {self.type!r}: there is {', '.join(TYPES)}"
            )

    @property
    def kind(self) -> str:
        """The type without its bound."""
        return self.type.partition("(")[0]

    @property
    def length(self) -> int | None:
        """Characters of a bounded text."""
        found = _TYPE.fullmatch(self.type)
        return int(found[2]) if found and found[2] else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table whose SQL is generated.

    Attributes:
        name: Of the table.
        columns: In order; those from the key are the primary key.
        key: Template of ids, such as ``user.{id}``; empty where a column has the source ``id``.
        prefix: Ids that are rows here; by default the text that the template begins with.
        unique: Sets of columns that are unique beside the key.
        references: Column to ``table.column`` of a table that stands before this one.
    """

    name: str
    columns: tuple[Column, ...]
    key: str = ""
    prefix: str | None = None
    unique: tuple[tuple[str, ...], ...] = ()
    references: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ConfigError(f"{self.name!r} cannot be the name of a table")
        names = [column.name for column in self.columns]
        if len({name.lower() for name in names}) != len(names):
            raise ConfigError(f"table {self.name!r}: a column is there twice")
        for column in self.columns:
            extractor(column.source, self.fields)
        if not self.key_columns:
            raise ConfigError(f"table {self.name!r} needs a `key` template, or a column from `id`")
        if self.key and sorted(self._key_fields()) != sorted(self.fields):
            raise ConfigError(f"table {self.name!r}: each field of {self.key!r} needs one column")
        for column in self.key_columns:
            if column.kind not in ("text", "bytes", "integer"):
                raise ConfigError(f"column {column.name!r}: a key is text, bytes or integer")
        used = {name for group in self.unique for name in group} | set(self.references or ())
        if used - set(names):
            raise ConfigError(f"table {self.name!r} has no column {min(used - set(names))!r}")

    def _key_fields(self) -> list[str]:
        return [c.source.partition(".")[2] or self.fields[0] for c in self.key_columns]

    @property
    def fields(self) -> tuple[str, ...]:
        """Fields of the template."""
        return KeyTemplate(self.key).fields if self.key else ()

    @property
    def key_columns(self) -> tuple[Column, ...]:
        """Columns of the primary key."""
        if self.key:
            return tuple(c for c in self.columns if c.source.partition(".")[0] == "key")
        return tuple(c for c in self.columns if c.source == "id")[:1]

    @property
    def begins(self) -> str:
        """What ids of rows begin with."""
        return self.prefix if self.prefix is not None else self.key.partition("{")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class RawTable:
    """A table written by statements of the user's own; parameters are ``:name``.

    Attributes:
        name: Of the table, for the books; unique in a sink.
        prefix: Ids that are rows here.
        create: Idempotent commands.
        upsert: Inserts or replaces one row.
        remove: Deletes one row.
        parameters: From id and item to the parameters of `upsert`; a `ValueError` refuses the item.
        key_parameters: From id to the parameters of `remove`.
        select: Returns every row, with columns named as the parameters of `upsert`: what `verify`
            compares; without it only ids and versions in the books are compared.
        swaps: Take rows of a batch out with `remove` before they are put in, so that they may swap
            unique values; what `upsert` does not set is lost.
    """

    name: str
    prefix: str
    create: tuple[str, ...]
    upsert: str
    remove: str
    parameters: Callable[[str, SyncItem], Parameters]
    key_parameters: Callable[[str], Parameters]
    select: str = ""
    swaps: bool = False

    @property
    def begins(self) -> str:
        """What ids of rows begin with."""
        return self.prefix


def tables_from(settings: Sequence[Any]) -> tuple[Table | RawTable, ...]:
    """Return the tables that settings describe.

    Raises:
        ConfigError: Names the table and the setting.
    """
    made: list[Table | RawTable] = []
    for number, one in enumerate(settings, 1):
        if not isinstance(one, Mapping) or not isinstance(one.get("name"), str):
            raise ConfigError(f"table {number} of `tables` needs a name")
        known = dict(one)
        try:
            made.append(_raw(known) if "upsert" in known else _declared(known))
        except (TypeError, AttributeError, ValueError) as exc:
            raise ConfigError(f"table {one['name']!r}: {exc}") from exc
    return tuple(made)


def _declared(one: dict[str, Any]) -> Table:
    columns = tuple(_column(name, said) for name, said in dict(one.pop("columns", {})).items())
    unique = tuple(tuple(group) for group in one.pop("unique", ()))
    return Table(columns=columns, unique=unique, **one)


def _column(name: str, said: Any) -> Column:
    if isinstance(said, str):
        kind, _, source = said.partition(" from ")
        return Column(name, kind.strip(), source.strip() or f"json.{name}")
    said = dict(said)
    column = Column(
        name, said.pop("type", "text"), said.pop("from", f"json.{name}"), said.pop("null", True)
    )
    if said:
        raise ConfigError(f"column {name!r}: there is no setting {min(said)!r}")
    return column


def _raw(one: dict[str, Any]) -> RawTable:
    create = one.pop("create", ())
    one["create"] = (create,) if isinstance(create, str) else tuple(create)
    for name in ("parameters", "key_parameters"):
        if isinstance(one.get(name), str):
            one[name] = _imported(one[name])
    return RawTable(**one)


def _imported(path: str) -> Callable[..., Parameters]:
    module, _, attribute = path.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for name in attribute.split("."):
            found = getattr(found, name)
    except (ImportError, AttributeError, ValueError) as exc:
        raise ConfigError(f"{path!r} cannot be imported: {exc}") from exc
    if not callable(found):
        raise ConfigError(f"{path!r} is no function")
    return found  # type: ignore[no-any-return]
