"""The archive (L3) on SQLite, MySQL, MariaDB and PostgreSQL."""

from __future__ import annotations

from typing import Any

from sync_engine.errors import ConfigError
from sync_engine.ports import Clock
from sync_engine.stores.sql import schema
from sync_engine.stores.sql.errors import translated
from sync_engine.stores.sql.kinds import make_dialect
from sync_engine.stores.sql.lease import NotAdmitted
from sync_engine.stores.sql.merkle import SqlMerkle
from sync_engine.stores.sql.probe import check_rights, schema_version
from sync_engine.stores.sql.schema import SCHEMA_VERSION
from sync_engine.stores.sql.store import SqlArchive

__all__ = [
    "SCHEMA_VERSION",
    "NotAdmitted",
    "SqlArchive",
    "SqlMerkle",
    "check_rights",
    "migrate",
    "migration_sql",
    "open_archive",
    "schema_version",
]

_PLACES = {
    "sqlite": "sqlite:///archive.db",
    "mysql": "mysql://host/db",
    "mariadb": "mysql://host/db",
    "postgres": "postgresql://host/db",
    "postgresql": "postgresql://host/db",
}


class _NoClock:
    """Schema work counts no time."""

    def now_ms(self) -> int:
        return 0

    def monotonic(self) -> float:
        return 0.0

    def sleep(self, seconds: float) -> None:
        del seconds


def open_archive(url: str, *, clock: Clock, **settings: Any) -> SqlArchive:
    """Return an attached archive.

    Args:
        url: Where it is.
        clock: Its clock.
        settings: As for `SqlArchive`.

    Raises:
        StoreUnavailable: The server is not there now.
        ConfigError: A setting, credential or table does not fit.
    """
    archive = SqlArchive(url, clock=clock, **settings)
    archive.attach()
    return archive


def migrate(url: str, *, table: str = "sync_items", timeout_s: float = 60.0) -> tuple[int, int]:
    """Create the archive's tables, or bring them to this version.

    Safe to repeat; engines of the old version have to be stopped first. Blocking: for as long as
    the database needs.

    Args:
        url: Where it is.
        table: Name of the item table.
        timeout_s: Bound of one statement, in seconds.

    Returns:
        The version before (0: there were no tables) and the version after.

    Raises:
        StoreUnavailable: The server is not there now.
        ConfigError: A newer software wrote the tables, or they belong to something else.
    """
    dialect = make_dialect(url, clock=_NoClock(), table=table, timeout_s=timeout_s)
    try:
        with translated("migrate"):
            return schema.upgrade(dialect), SCHEMA_VERSION
    finally:
        dialect.close()


def migration_sql(url_or_dialect: str, *, table: str = "sync_items", from_version: int = 0) -> str:
    """Return the DDL that `migrate` would run, for whoever runs it by hand; connects to nothing.

    Args:
        url_or_dialect: A URL, or ``sqlite``, ``mysql`` or ``postgresql``.
        table: Name of the item table.
        from_version: Version of the tables there are; 0 is none.

    Raises:
        ConfigError: The URL or name is not known, or there is no such version.
    """
    if not 0 <= from_version <= SCHEMA_VERSION:
        raise ConfigError(f"from_version: must be 0 to {SCHEMA_VERSION}, got {from_version}")
    url = _PLACES.get(url_or_dialect, url_or_dialect)
    dialect = make_dialect(url, clock=_NoClock(), table=table)
    return "".join(f"{text};\n" for text in schema.statements(dialect, from_version))
