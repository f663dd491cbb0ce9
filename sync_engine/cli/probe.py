"""Questions to the archive's database that leave no trace: for `migrate --dry-run` and `doctor`."""

from __future__ import annotations

import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from sync_engine.config import SyncEngineConfig
from sync_engine.config.urls import sqlite_file
from sync_engine.core.item import Change
from sync_engine.ports import Clock

__all__ = ["archive_url", "clock_difference_s", "packet_bytes_max", "schema_version", "try_write"]

_TABLE = "sync_items"
_NOW = {
    "mysql": "SELECT UNIX_TIMESTAMP(NOW(6))",
    "postgres": "SELECT EXTRACT(EPOCH FROM clock_timestamp())",
}


def archive_url(config: SyncEngineConfig) -> str:
    """Return where the archive is, as an engine would find it."""
    return config.sql_url or f"sqlite:///{Path(config.data_dir).absolute() / 'archive.db'}"


def _dialect(url: str, clock: Clock, timeout_s: float) -> Any:
    from sync_engine.stores.sql.kinds import make_dialect

    return make_dialect(
        url, clock=clock, table=_TABLE, connect_timeout_s=timeout_s, timeout_s=timeout_s
    )


def schema_version(url: str, clock: Clock, timeout_s: float) -> int:
    """Return the version of the tables there are; 0 for none. Creates nothing.

    Raises:
        StoreUnavailable: The server is not there now.
        StoreRejected: It refuses us.
    """
    from sync_engine.stores.sql.errors import translated

    file = sqlite_file(url)
    if file is not None and not Path(file).exists():
        return 0
    dialect = _dialect(url, clock, timeout_s)
    try:
        with translated("read the schema"), dialect.reading() as connection:
            if "schema_version" not in dialect.columns(connection, f"{_TABLE}_meta"):
                return 0
            rows = dialect.query(connection, "SELECT schema_version FROM {m} WHERE id = 1")
            return int(rows[0][0]) if rows else 0
    finally:
        dialect.close()


class _RollBack(Exception):
    """Ends a transaction without leaving a trace."""


def try_write(url: str, clock: Clock, timeout_s: float) -> None:
    """Write one row in a transaction and take it back.

    Raises:
        StoreUnavailable: The server is not there now.
        StoreRejected: It does not let us write.
    """
    from sync_engine.stores.sql.errors import translated
    from sync_engine.stores.sql.rows import rows_of

    dialect = _dialect(url, clock, timeout_s)
    change = Change(f"sync-engine doctor {uuid.uuid4()}", 1, b"x")
    try:
        with (
            translated("write"),
            suppress(_RollBack),
            dialect.writing() as (connection, info),
        ):
            rows = rows_of([change], lambda _: set(), text=dialect.text_labels)
            dialect.upsert(connection, info, rows)
            raise _RollBack
    finally:
        dialect.close()


def clock_difference_s(url: str, clock: Clock, timeout_s: float) -> float | None:
    """Return how far this machine's clock is ahead of the server's; None for SQLite.

    Raises:
        StoreUnavailable: The server is not there now.
    """
    now = _number(url, clock, timeout_s, _NOW)
    return None if now is None else clock.now_ms() / 1000 - now


def packet_bytes_max(url: str, clock: Clock, timeout_s: float) -> int | None:
    """Return the largest statement that a MySQL server takes, in bytes; None for others.

    Raises:
        StoreUnavailable: The server is not there now.
    """
    found = _number(url, clock, timeout_s, {"mysql": "SELECT @@max_allowed_packet"})
    return None if found is None else int(found)


def _number(url: str, clock: Clock, timeout_s: float, texts: dict[str, str]) -> float | None:
    from sync_engine.stores.sql.errors import translated

    dialect = _dialect(url, clock, timeout_s)
    if dialect.kind not in texts:
        return None
    try:
        with translated("ask"), dialect.reading() as connection:
            ((value,),) = dialect.query(connection, texts[dialect.kind])
            return float(value)
    finally:
        dialect.close()
