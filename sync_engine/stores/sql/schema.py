"""The archive's tables: their versions, how to get from one to the next, and how to check them."""

# ruff: noqa: S608, ISC004 - texts hold checked table names and literals only
from __future__ import annotations

import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from sync_engine.errors import ConfigError
from sync_engine.stores.sql.dialect import Connection, Dialect
from sync_engine.stores.sql.rows import COLUMNS

__all__ = ["SCHEMA_VERSION", "check_table_name", "ensure", "statements", "upgrade"]

SCHEMA_VERSION = 1

_TABLE = re.compile(r"[a-z][a-z0-9_]{0,47}", re.ASCII)

# Kind -> column type of: id, label (64 B), number, small number, trace parent, content
_TYPES = {
    "sqlite": ("TEXT", "TEXT", "INTEGER", "INTEGER", "TEXT", "BLOB"),
    "mysql": (
        "VARBINARY(512)", "VARBINARY(64)", "BIGINT", "SMALLINT", "VARBINARY(512)", "LONGBLOB",
    ),
    "postgres": ("BYTEA", "BYTEA", "BIGINT", "SMALLINT", "BYTEA", "BYTEA"),
}  # fmt: skip
# Kind -> what the database calls columns that compare ids byte by byte
_BYTEWISE = {"sqlite": {"TEXT"}, "mysql": {"VARBINARY", "BINARY"}, "postgres": {"BYTEA"}}

_META_COLUMNS = (
    "id", "schema_version", "uuid", "retired", "holder", "epoch", "beat", "ttl_ms", "visits",
)  # fmt: skip
_WRITER_COLUMNS = ("writer", "owner", "admitted", "generation", "beat", "ttl_ms")


def check_table_name(table: str) -> str:
    """Return the name if it needs no care in any database.

    Raises:
        ConfigError: It is not lower-case ASCII letters, digits and underscores, 1 to 48.
    """
    if not _TABLE.fullmatch(table):
        raise ConfigError(f"table: {table!r} must match {_TABLE.pattern}")
    return table


def statements(dialect: Dialect, from_version: int = 0) -> list[str]:
    """Return the DDL that leads from a version to `SCHEMA_VERSION`, one statement each.

    Safe to repeat after an interruption. Version 0 is an empty database.
    """
    migrations = {1: _version_1}
    made: list[str] = []
    for version in range(from_version + 1, SCHEMA_VERSION + 1):
        made += migrations[version](dialect)
    if from_version:
        made.append(f"UPDATE {dialect.tables['m']} SET schema_version = {SCHEMA_VERSION}")
    return made


def _version_1(dialect: Dialect) -> list[str]:
    kind, names, table = dialect.kind, dialect.tables, dialect.settings.table
    key, label, number, small, trace, content = _TYPES[kind]
    suffix = " ENGINE=InnoDB ROW_FORMAT=DYNAMIC" if kind == "mysql" else ""
    within = (
        f",\n  KEY {table}_state (state, id),\n  KEY {table}_gone (tombstone)"
        if kind == "mysql"
        else ""
    )
    made = [
        f"CREATE TABLE IF NOT EXISTS {names['m']} (\n  id {small} NOT NULL PRIMARY KEY,\n"
        f"  schema_version {number} NOT NULL,\n  uuid {label} NOT NULL,\n"
        f"  retired {number} NOT NULL,\n  holder {label} NOT NULL,\n"
        f"  epoch {number} NOT NULL,\n  beat {number} NOT NULL,\n"
        f"  ttl_ms {number} NOT NULL,\n  visits {number} NOT NULL\n){suffix}",
        f"CREATE TABLE IF NOT EXISTS {names['w']} (\n  writer {label} NOT NULL PRIMARY KEY,\n"
        f"  owner {key} NOT NULL,\n  admitted {small} NOT NULL,\n"
        f"  generation {number} NOT NULL,\n  beat {number} NOT NULL,\n"
        f"  ttl_ms {number} NOT NULL\n){suffix}",
        f"CREATE TABLE IF NOT EXISTS {names['t']} (\n  id {key} NOT NULL PRIMARY KEY,\n"
        f"  version {number} NOT NULL,\n  tombstone {number} NOT NULL,\n"
        f"  content_type {small} NOT NULL,\n  routes {small} NOT NULL,\n"
        f"  state {label} NOT NULL,\n  expires_at_ms {number} NOT NULL,\n"
        f"  checksum {number} NOT NULL,\n  trace_parent {trace},\n"
        f"  content {content} NOT NULL{within}\n){suffix}",
    ]
    if kind != "mysql":
        made += [
            f"CREATE INDEX IF NOT EXISTS {table}_state ON {names['t']} (state, id)",
            f"CREATE INDEX IF NOT EXISTS {table}_gone ON {names['t']} (tombstone)"
            " WHERE tombstone > 0",
        ]
    made.append(_first_row(dialect))
    return made


def _first_row(dialect: Dialect) -> str:
    """Return the statement that names the archive; the first one to run it wins."""
    row = f"1, {SCHEMA_VERSION}, {_label(dialect, str(uuid.uuid4()))}, 0, {_label(dialect, '')}"
    into = f"INTO {dialect.tables['m']} ({', '.join(_META_COLUMNS)}) VALUES ({row}, 1, 0, 0, 0)"
    if dialect.kind == "mysql":
        return f"INSERT IGNORE {into}"
    return f"INSERT {into} ON CONFLICT (id) DO NOTHING"


def _label(dialect: Dialect, text: str) -> str:
    return f"'{text}'::bytea" if dialect.kind == "postgres" else f"'{text}'"


def ensure(dialect: Dialect, *, create: bool) -> None:
    """Check the tables; create them where there are none and that is allowed.

    Raises:
        ConfigError: They are of another version, of somebody else, or not there.
    """
    with dialect.writing() as (connection, _):
        found = _columns(dialect, connection)
        version = _version(dialect, connection, found) if all(found.values()) else 0
    if version == 0:  # none yet, or somebody is just making them: only the lock tells
        with _locked(dialect) as connection:
            version = _version(dialect, connection, _columns(dialect, connection))
            if version == 0 and not create:
                raise ConfigError(
                    f"sql_url: table {dialect.settings.table} does not exist and create_schema is"
                    " off: run `sync-engine migrate`"
                )
            if version == 0:
                _run(dialect, connection, 0)
            found = _columns(dialect, connection)
            version = _version(dialect, connection, found)
    _check_version(version)
    _check_columns(dialect, found)


def upgrade(dialect: Dialect) -> int:
    """Bring the tables to `SCHEMA_VERSION`; return the version they had (0: none).

    Raises:
        ConfigError: They belong to somebody else, or to a newer version of this software.
    """
    with _locked(dialect) as connection:
        before = _version(dialect, connection, _columns(dialect, connection))
        if before > SCHEMA_VERSION:
            _check_version(before)
        if before < SCHEMA_VERSION:
            _run(dialect, connection, before)
    return before


@contextmanager
def _locked(dialect: Dialect) -> Iterator[Connection]:
    with dialect.writing() as (connection, _), dialect.schema_lock(connection):
        yield connection


def _run(dialect: Dialect, connection: Connection, from_version: int) -> None:
    for statement in statements(dialect, from_version):
        cursor = connection.cursor()  # not through `Dialect.text`: these words are final
        try:
            cursor.execute(statement)
        finally:
            cursor.close()


def _version(
    dialect: Dialect, connection: Connection, found: Mapping[str, Mapping[str, str]]
) -> int:
    """Return the version of the tables; 0 where there are none, or not all of them yet."""
    if not any(found.values()):
        return 0
    if not {"id", "schema_version"} <= set(found["m"]):
        raise _foreign(dialect)
    rows = dialect.query(connection, "SELECT schema_version FROM {m} WHERE id = 1")
    return int(rows[0][0]) if rows else 0


def _foreign(dialect: Dialect) -> ConfigError:
    return ConfigError(
        f"sql_url: table {dialect.settings.table} is not an archive of sync_engine:"
        " choose another `table` or database"
    )


def _check_version(version: int) -> None:
    if version == SCHEMA_VERSION:
        return
    remedy = (
        "run `sync-engine migrate`"
        if version < SCHEMA_VERSION
        else "a newer sync_engine wrote it: upgrade this one, do not run `sync-engine migrate` here"
    )
    raise ConfigError(
        f"sql_url: the archive's schema has version {version}, this is {SCHEMA_VERSION}: {remedy}"
    )


def _columns(dialect: Dialect, connection: Connection) -> dict[str, dict[str, str]]:
    """Return the type of every column there is, by table; empty where there is no table."""
    table = dialect.settings.table
    return {
        "t": dialect.columns(connection, table),
        "m": dialect.columns(connection, f"{table}_meta"),
        "w": dialect.columns(connection, f"{table}_writers"),
    }


def _check_columns(dialect: Dialect, found: Mapping[str, Mapping[str, str]]) -> None:
    expected = {"t": COLUMNS, "m": _META_COLUMNS, "w": _WRITER_COLUMNS}
    missing = [
        f"{dialect.tables[key]} lacks {', '.join(gone)}"
        for key, columns in expected.items()
        if (gone := [name for name in columns if name not in found[key]])
    ]
    if missing:
        raise ConfigError(f"sql_url: the archive's tables differ: {'; '.join(missing)}")
    for name in ("id", "state"):
        if found["t"][name] not in _BYTEWISE[dialect.kind]:
            raise ConfigError(
                f"sql_url: column {name} of {dialect.tables['t']} is {found['t'][name]}, which"
                f" does not compare byte by byte; expected {_TYPES[dialect.kind][0]}"
            )
