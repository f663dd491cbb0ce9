"""Database URLs: which driver serves one, and what is wrong with those that none can."""

from __future__ import annotations

from importlib.util import find_spec

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from sync_engine.errors import ConfigError
from sync_engine.telemetry.redaction import redact_url

__all__ = ["parse_url"]

# Scheme -> (SQLAlchemy's name, module of the driver, how to get it)
_MYSQL = "pip install 'sync-engine[mysql]'"
_POSTGRES = "pip install 'sync-engine[postgres]'"
_SCHEMES: dict[str, tuple[str, str, str]] = {
    "sqlite": ("sqlite", "sqlite3", ""),
    "sqlite+pysqlite": ("sqlite", "sqlite3", ""),
    **dict.fromkeys(
        ("mysql", "mariadb", "mysql+pymysql", "mariadb+pymysql"),
        ("mysql+pymysql", "pymysql", _MYSQL),
    ),
    **dict.fromkeys(
        ("mysql+mysqldb", "mariadb+mysqldb"),
        ("mysql+mysqldb", "MySQLdb", "pip install mysqlclient"),
    ),
    **dict.fromkeys(
        ("mariadb+mariadbconnector", "mysql+mariadbconnector"),
        ("mariadb+mariadbconnector", "mariadb", "pip install mariadb"),
    ),
    **dict.fromkeys(
        ("postgresql", "postgres", "postgresql+psycopg"),
        ("postgresql+psycopg", "psycopg", _POSTGRES),
    ),
}
_ENCODE = "write @ : / # % ? in user and password percent-encoded"


def parse_url(url: str) -> URL:
    """Return the URL with the driver that serves it.

    Raises:
        ConfigError: The URL cannot be used; the message shows it without its password.
    """
    shown = redact_url(url)
    scheme, separator, rest = url.partition("://")
    if not separator:
        raise ConfigError(f"sql_url: {shown!r} is no URL (expected e.g. mysql://user:pw@host/db)")
    served = _SCHEMES.get(scheme.lower())
    if served is None:
        raise ConfigError(
            f"sql_url: {scheme!r} is not supported; use one of {', '.join(sorted(_SCHEMES))}"
        )
    name, module, remedy = served
    if name != "sqlite":
        _check_authority(rest, shown)
    try:
        parsed = make_url(f"{name}://{rest}")
    except (ArgumentError, ValueError):  # their texts may quote parts of a password
        raise ConfigError(f"sql_url: cannot read {shown!r}; {_ENCODE}") from None
    _check_parts(parsed, shown)
    if find_spec(module) is None:
        raise ConfigError(f"sql_url: the driver of {scheme}:// is not installed: {remedy}")
    return parsed


def _check_authority(rest: str, shown: str) -> None:
    authority = rest.partition("?")[0]
    if "#" in rest or authority.count("@") > 1:
        raise ConfigError(f"sql_url: {shown!r} has an unescaped character; {_ENCODE}")
    credentials = authority.rpartition("@")[0]
    if "/" in credentials or credentials.count(":") > 1:
        raise ConfigError(f"sql_url: {shown!r} has an unescaped character; {_ENCODE}")


def _check_parts(url: URL, shown: str) -> None:
    if url.get_backend_name() == "sqlite":
        if url.host:
            raise ConfigError(f"sql_url: use three slashes before a path, sqlite:///x: {shown!r}")
        if not url.database or url.database == ":memory:" or url.database.startswith("file:"):
            raise ConfigError(f"sql_url: the archive must be a file, as sqlite:///path: {shown!r}")
        if url.query:
            raise ConfigError(f"sql_url: SQLite URLs take no options: {shown!r}")
        return
    if url.port is not None and not 0 < url.port < 65536:
        raise ConfigError(f"sql_url: port {url.port} is out of range: {shown!r}")
    if not url.host and not {"unix_socket", "host", "service"} & set(url.query):
        raise ConfigError(f"sql_url: {shown!r} names no host; {_ENCODE}")
    if not url.database and "service" not in url.query:
        raise ConfigError(f"sql_url: {shown!r} names no database")
