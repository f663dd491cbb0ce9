"""Tables and statements as a database wants them, made by SQLAlchemy, and drift from them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC
from decimal import Decimal
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.engine import Connection, Engine

from sync_engine.errors import ConfigError
from sync_engine.sinks.sql_table.bulk import Bulk
from sync_engine.sinks.sql_table.tables import VERSION_COLUMN, Column, Table
from sync_engine.sinks.sql_table.values import BadRow

__all__ = [
    "KINDS",
    "Books",
    "adapt",
    "book_upsert",
    "check_columns",
    "exact_type",
    "keyed_text",
    "made_table",
    "upsert_text",
]

KINDS = ("sqlite", "mysql", "mariadb", "postgresql")
"""Dialects whose SQL can be generated."""
_FAMILIES: dict[str, tuple[type[Any], ...]] = {
    "text": (sa.String,),
    "json": (sa.String,),
    "bytes": (
        *(sa.LargeBinary, sa.BINARY, sa.VARBINARY),
        *(mysql.TINYBLOB, mysql.MEDIUMBLOB, mysql.LONGBLOB),
    ),
    "integer": (sa.Integer,),
    "float": (sa.Float, sa.REAL, sa.Numeric),
    "decimal": (sa.Numeric, sa.String),
    "boolean": (sa.Boolean, sa.Integer),
    "timestamp": (sa.DateTime, sa.String),
}
_MYSQL_DIGITS = 20


class Books:
    """The sink's own tables in the target: positions, what must not come back, what has to wait."""

    def __init__(self, metadata: sa.MetaData) -> None:
        name = sa.String(64)
        self.offsets = sa.Table(
            "sync_engine_offsets",
            metadata,
            sa.Column("sink", name, primary_key=True),
            sa.Column("log_uuid", name, primary_key=True),
            sa.Column("position", sa.BigInteger, nullable=False),
            sa.Column("version", sa.BigInteger, nullable=False),
            mysql_engine="InnoDB",
        )
        self.ledger = sa.Table(
            "sync_engine_ledger",
            metadata,
            *_of_ids(),
            mysql_engine="InnoDB",
        )
        self.waiting = sa.Table(
            "sync_engine_waiting",
            metadata,
            *_of_ids(),
            sa.Column(
                "record",
                sa.LargeBinary().with_variant(mysql.LONGBLOB(), "mysql", "mariadb"),
                nullable=False,
            ),
            mysql_engine="InnoDB",
        )


def _of_ids() -> list[sa.Column[Any]]:
    """Return the columns of a book that knows of every id of a table one version."""
    name = sa.String(64)
    raw = sa.LargeBinary().with_variant(mysql.VARBINARY(512), "mysql", "mariadb")
    return [
        sa.Column("sink", name, primary_key=True),
        sa.Column("tbl", name, primary_key=True),
        sa.Column("id", raw, primary_key=True),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("gone", sa.SmallInteger, nullable=False),
    ]


def _type(column: Column, kind: str, *, key: bool) -> Any:
    if column.kind == "text":
        if column.length:
            return sa.String(column.length)
        return (
            sa.String(512)
            if key and kind == "mysql"
            else sa.Text().with_variant(mysql.LONGTEXT(), "mysql", "mariadb")
        )
    if column.kind == "bytes":
        if key and kind == "mysql":
            return mysql.VARBINARY(512)
        return sa.LargeBinary().with_variant(mysql.LONGBLOB(), "mysql", "mariadb")
    if column.kind in ("decimal", "timestamp") and kind == "sqlite":
        return sa.Text()  # SQLite has neither: text keeps them exact
    made: dict[str, Any] = {
        "json": sa.Text().with_variant(mysql.LONGTEXT(), "mysql", "mariadb"),
        "integer": sa.BigInteger(),
        "float": sa.Double(),
        "decimal": sa.Numeric(60, _MYSQL_DIGITS) if kind == "mysql" else sa.Numeric(),
        "boolean": sa.Boolean(),
        "timestamp": sa.DateTime(timezone=True).with_variant(
            mysql.DATETIME(fsp=6), "mysql", "mariadb"
        ),
    }
    return made[column.kind]


def made_table(table: Table, metadata: sa.MetaData, engine: Engine) -> sa.Table:
    """Return a declared table as SQLAlchemy knows it."""
    kind = "mysql" if engine.dialect.name in ("mysql", "mariadb") else engine.dialect.name
    bounded = {name for group in table.unique for name in group} | set(table.references or ())
    keys = set(table.key_columns)
    columns: list[Any] = [
        sa.Column(
            column.name,
            _type(column, kind, key=column in keys or column.name in bounded),
            *_reference(table, column),
            primary_key=column in keys,
            autoincrement=False,
            nullable=column.null and column not in keys,
        )
        for column in table.columns
    ]
    columns.append(sa.Column(VERSION_COLUMN, sa.BigInteger, nullable=False))
    columns += [sa.UniqueConstraint(*group) for group in table.unique]
    # Ids are compared bytewise here, trailing spaces included, as everywhere in the engine.
    nopad = (
        "utf8mb4_nopad_bin" if getattr(engine.dialect, "is_mariadb", False) else "utf8mb4_0900_bin"
    )
    return sa.Table(
        table.name,
        metadata,
        *columns,
        mysql_engine="InnoDB",
        mysql_charset="utf8mb4",
        mysql_collate=nopad,
    )


def _reference(table: Table, column: Column) -> list[Any]:
    target = (table.references or {}).get(column.name)
    return [sa.ForeignKey(target)] if target else []


def check_columns(connection: Connection, table: sa.Table, declared: Table) -> None:
    """Compare a table that is there with its declaration.

    Raises:
        ConfigError: A column is missing, or of another type; says how to mend it.
    """
    found = {one["name"]: one["type"] for one in sa.inspect(connection).get_columns(table.name)}
    kinds = {column.name: column.kind for column in declared.columns}
    for column in table.columns:
        told = column.type.compile(connection.dialect)
        if column.name not in found:
            told += " NOT NULL DEFAULT 0" if column.name == VERSION_COLUMN else ""
            raise ConfigError(
                f"table {table.name!r} has no column {column.name!r}: add it"
                f" (ALTER TABLE {table.name} ADD COLUMN {column.name} {told}), or drop the table"
                " so that it is made and filled again"
            )
        kind = kinds.get(column.name, "integer")
        if not isinstance(found[column.name], _FAMILIES[kind]):
            raise ConfigError(
                f"table {table.name!r}: column {column.name!r} is {found[column.name]!s}, declared"
                f" is {kind} ({told}): alter it, or drop the table so that it is made and filled"
                " again"
            )
    _check_guard(connection, table)


def _check_guard(connection: Connection, table: sa.Table) -> None:
    """Check what keeps the newest of two rows: one row a key, and a version in each."""
    asked = sa.inspect(connection)
    keys = {column.name for column in table.primary_key.columns}
    unique: list[Sequence[str | None]]  # None: an expression
    unique = [asked.get_pk_constraint(table.name)["constrained_columns"]]
    unique += [one["column_names"] for one in asked.get_unique_constraints(table.name)]
    unique += [one["column_names"] for one in asked.get_indexes(table.name) if one["unique"]]
    if keys not in [set(names) for names in unique]:
        raise ConfigError(
            f"table {table.name!r}: {', '.join(sorted(keys))} must be its primary key, or unique:"
            " else one key has several rows; alter it, or drop the table so that it is made and"
            " filled again"
        )
    version = table.c[VERSION_COLUMN]
    if connection.execute(sa.select(version).where(version.is_(None)).limit(1)).first():
        raise ConfigError(
            f"table {table.name!r}: rows without a version are never overwritten:"  # noqa: S608
            f" UPDATE {table.name} SET {VERSION_COLUMN} = 0"
            f" WHERE {VERSION_COLUMN} IS NULL"
        )


def adapt(kind: str, dialect: str, name: str) -> Any:
    """Return the function that makes a value fit a driver, or None where it fits as it is."""
    if dialect == "sqlite" and kind == "timestamp":
        return lambda value: value.isoformat()
    if dialect == "sqlite" and kind == "decimal":
        return lambda value: format(value, "f")
    if dialect in ("mysql", "mariadb") and kind == "timestamp":
        return lambda value: value.astimezone(UTC).replace(tzinfo=None)
    if dialect in ("mysql", "mariadb") and kind == "decimal":
        return lambda value: _fits(value, name)
    return None


def exact_type(kind: str) -> type | None:
    """Return the type whose values fit a column as they are."""
    return {"text": str, "bytes": bytes, "integer": int, "float": float, "boolean": bool}.get(kind)


def _fits(value: Decimal, name: str) -> Decimal:
    exponent = value.normalize().as_tuple().exponent
    if isinstance(exponent, int) and -exponent > _MYSQL_DIGITS:
        raise BadRow(f"column {name!r}: more than {_MYSQL_DIGITS} digits behind the point")
    return value


def upsert_text(table: sa.Table, engine: Engine, *, clock: str = VERSION_COLUMN) -> str:
    """Return the statement that writes a row over an older one only; parameters by position."""
    keys = [column.name for column in table.primary_key.columns]
    others = [c.name for c in table.columns if c.name not in keys and c.name != clock]
    version = table.c[clock]
    if engine.dialect.name in ("mysql", "mariadb"):
        inserted = mysql.insert(table)
        new = inserted.inserted
        newer = version < new[clock]
        # Assignments run from left to right: the version, which all compare with, comes last.
        pairs = [(name, sa.func.if_(newer, new[name], table.c[name])) for name in others]
        kept: Any = sa.func.if_(newer, new[clock], version)
        if len(table.indexes) or _unique(table):
            # A row that collides by another unique value is somebody else's: no version is NULL,
            # so the database refuses what would overwrite it.
            same = sa.and_(*[table.c[name] == new[name] for name in keys])
            kept = sa.func.if_(same, kept, sa.null())
        pairs.append((clock, kept))
        statement: Any = inserted.on_duplicate_key_update(pairs)
        text = str(statement.compile(dialect=engine.dialect)).replace("if_(", "if(")
        return " ".join(text.split())
    insert = sqlite.insert if engine.dialect.name == "sqlite" else postgresql.insert
    into: Any = insert(table)
    statement = into.on_conflict_do_update(
        index_elements=keys,
        set_={name: into.excluded[name] for name in [*others, clock]},
        where=version < into.excluded[clock],
    )
    return str(statement.compile(dialect=engine.dialect))


def book_upsert(book: sa.Table, engine: Engine) -> Bulk | None:
    """Return the `upsert_text` of a book; None where no SQL is generated for the database."""
    if engine.dialect.name not in KINDS:
        return None
    return Bulk(upsert_text(book, engine, clock="version"), len(book.columns))


def _unique(table: sa.Table) -> bool:
    return any(isinstance(one, sa.UniqueConstraint) for one in table.constraints)


def keyed_text(verb: str, table: sa.Table, engine: Engine, op: str) -> str:
    """Return ``VERB … WHERE key AND version OP``; parameters are the key's values, and a version.

    The verb is ``DELETE FROM {t}`` or ``UPDATE {t} SET …``.
    """
    quote = engine.dialect.identifier_preparer.quote
    keys = [column == sa.bindparam(None, type_=column.type) for column in table.primary_key]
    version = table.c[VERSION_COLUMN].op(op)(sa.bindparam(None, type_=sa.BigInteger()))
    text = str(sa.delete(table).where(*keys, version).compile(dialect=engine.dialect))
    return f"{verb.format(t=quote(table.name))} WHERE {text.partition(' WHERE ')[2]}"
