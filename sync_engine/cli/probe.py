"""Questions to the archive's database that leave no trace: for `migrate --dry-run` and `doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sync_engine.config import SyncEngineConfig
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
    from sync_engine.stores.sql import schema_version as found

    return found(url, clock=clock, timeout_s=timeout_s)


def try_write(url: str, clock: Clock, timeout_s: float) -> None:
    """Write one row in a transaction and take it back.

    Raises:
        StoreUnavailable: The server is not there now.
        StoreRejected: It does not let us write.
    """
    from sync_engine.stores.sql import check_rights

    check_rights(url, clock=clock, timeout_s=timeout_s)


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
