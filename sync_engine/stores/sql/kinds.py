"""Which dialect serves which URL."""

from __future__ import annotations

from sync_engine.errors import ConfigError
from sync_engine.ports import Clock
from sync_engine.stores.sql import schema
from sync_engine.stores.sql.dialect import Dialect, Settings
from sync_engine.stores.sql.mysql import MysqlDialect
from sync_engine.stores.sql.postgres import PostgresDialect
from sync_engine.stores.sql.sqlite import SqliteDialect
from sync_engine.stores.sql.url import parse_url

__all__ = ["make_dialect"]

_DIALECTS: dict[str, type[Dialect]] = {
    "sqlite": SqliteDialect,
    "mysql": MysqlDialect,
    "mariadb": MysqlDialect,
    "postgresql": PostgresDialect,
}


def make_dialect(
    url: str,
    *,
    clock: Clock,
    table: str = "sync_items",
    connect_timeout_s: float = 5.0,
    timeout_s: float = 10.0,
    pool_size: int = 4,
) -> Dialect:
    """Return the dialect that serves a URL; connects to nothing.

    Raises:
        ConfigError: A setting cannot be used, or the driver is not installed.
    """
    parsed = parse_url(url)
    for name, value in (
        ("connect_timeout_s", connect_timeout_s),
        ("timeout_s", timeout_s),
        ("pool_size", pool_size),
    ):
        if not 0 < value < 1e6:
            raise ConfigError(f"{name}: must be positive, got {value!r}")
    settings = Settings(
        url=parsed,
        table=schema.check_table_name(table),
        connect_timeout_s=connect_timeout_s,
        timeout_s=timeout_s,
        pool_size=pool_size,
    )
    return _DIALECTS[parsed.get_backend_name()](settings, clock)
