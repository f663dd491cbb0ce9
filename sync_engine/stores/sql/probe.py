"""Questions to an archive's database that leave no trace."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sync_engine.core.item import Change
from sync_engine.ports import Clock
from sync_engine.stores.sql.dialect import Dialect
from sync_engine.stores.sql.errors import translated
from sync_engine.stores.sql.kinds import make_dialect
from sync_engine.stores.sql.rows import rows_of
from sync_engine.stores.sql.url import parse_url

__all__ = ["check_rights", "schema_version"]


class _RollBack(Exception):
    """Ends a transaction without leaving a trace."""


@contextmanager
def _dialect(url: str, clock: Clock, table: str, timeout_s: float) -> Iterator[Dialect]:
    dialect = make_dialect(
        url, clock=clock, table=table, connect_timeout_s=timeout_s, timeout_s=timeout_s
    )
    try:
        yield dialect
    finally:
        dialect.close()


def schema_version(
    url: str, *, clock: Clock, table: str = "sync_items", timeout_s: float = 5.0
) -> int:
    """Return the version of the tables there are; 0 for none. Creates nothing, no file either.

    Args:
        url: Where the archive is.
        clock: Its clock.
        table: Name of the item table.
        timeout_s: Bound of the connection and of each statement, in seconds.

    Raises:
        StoreUnavailable: The server is not there now.
        StoreRejected: It refuses us.
        ConfigError: The URL cannot be used.
    """
    parsed = parse_url(url)
    if parsed.get_backend_name() == "sqlite" and not Path(parsed.database or "").exists():
        return 0
    with (
        _dialect(url, clock, table, timeout_s) as dialect,
        translated("read the schema"),
        dialect.reading() as connection,
    ):
        if "schema_version" not in dialect.columns(connection, f"{table}_meta"):
            return 0
        rows = dialect.query(connection, "SELECT schema_version FROM {m} WHERE id = 1")
        return int(rows[0][0]) if rows else 0


def check_rights(
    url: str, *, clock: Clock, table: str = "sync_items", timeout_s: float = 5.0
) -> None:
    """Write to each table of the archive, as a batch and a fold do, and take it all back.

    Args:
        url: Where the archive is.
        clock: Its clock.
        table: Name of the item table.
        timeout_s: Bound of the connection and of each statement, in seconds.

    Raises:
        StoreUnavailable: The server is not there now, or a table or a privilege is missing.
        StoreRejected: It does not let us write.
        ConfigError: The URL cannot be used.
    """
    change = Change(f"sync-engine probe {uuid.uuid4()}", 1, b"x")
    key = change.id.encode()
    with (
        _dialect(url, clock, table, timeout_s) as dialect,
        translated("write"),
        suppress(_RollBack),
        dialect.writing() as (connection, info),
    ):
        rows = rows_of([change], lambda _: set(), text=dialect.text_labels)
        dialect.upsert(connection, info, rows)
        execute = dialect.execute
        execute(connection, "DELETE FROM {t} WHERE id = ?k", (key,))
        execute(connection, "UPDATE {w} SET beat = beat WHERE writer = ?k", (key,))
        execute(connection, "UPDATE {m} SET visits = visits WHERE id = 0")
        execute(connection, "UPDATE {n} SET seen = seen WHERE number < 0")
        execute(connection, "INSERT INTO {d} (legs, body) VALUES (?, ?)", (0, b""))
        execute(connection, "DELETE FROM {d} WHERE seq < ?", (0,))
        execute(connection, "DELETE FROM {b} WHERE low = ?k", (key,))
        execute(connection, "UPDATE {s} SET folds = folds WHERE id = 0")
        raise _RollBack
