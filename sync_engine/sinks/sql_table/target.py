"""The connection to a target: its engine, its errors in our words, its books."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from sync_engine.errors import ConfigError, StoreRejected, StoreUnavailable, SyncEngineError
from sync_engine.sinks.sql_table.bulk import Bulk
from sync_engine.sinks.sql_table.errors import Verdict, classify
from sync_engine.sinks.sql_table.values import BadRow
from sync_engine.telemetry import redact

__all__ = ["Target"]

_EXTRAS = {"pymysql": "mysql", "psycopg": "postgres"}
_DRIVERS = {
    "mysql": "mysql+pymysql",
    "mariadb": "mariadb+pymysql",
    "postgresql": "postgresql+psycopg",
}


class Target:
    """One database, one connection.

    Args:
        name: Of the sink, for errors.
        url: Any SQLAlchemy URL; never shown with its password.
        connect_timeout_s: Bound of one connection attempt, in seconds.
        timeout_s: Bound of one statement, in seconds.
        drifted: Told when a statement found another table than was agreed.

    Raises:
        ConfigError: The URL cannot be used, or its driver is not installed.
    """

    def __init__(
        self,
        name: str,
        url: str | URL,
        *,
        connect_timeout_s: float,
        timeout_s: float,
        drifted: Callable[[], None],
    ) -> None:
        self.name = name
        self._drifted = drifted
        try:
            parsed = make_url(url)
            if parsed.drivername in _DRIVERS:
                parsed = parsed.set(drivername=_DRIVERS[parsed.drivername])
            self.engine = self._made(parsed, connect_timeout_s, timeout_s)
        except (ArgumentError, NoSuchModuleError, ValueError) as exc:
            raise ConfigError(f"url of sink {name!r} is no SQLAlchemy URL of a known kind") from exc
        except ImportError as exc:
            extra = next((e for module, e in _EXTRAS.items() if module in str(exc)), "")
            hint = f"pip install 'sync-engine[{extra}]'" if extra else f"install {exc.name}"
            raise ConfigError(f"sink {name!r}: the driver is not installed: {hint}") from exc
        self.shown = parsed.render_as_string(hide_password=True)
        self.dialect = self.engine.dialect.name

    def _made(self, url: URL, connect_timeout_s: float, timeout_s: float) -> Engine:
        driver = url.get_driver_name()
        arguments: dict[str, Any] = {}
        options: dict[str, Any] = {"pool_size": 1, "max_overflow": 2}
        if driver == "pysqlite":
            arguments = {"timeout": timeout_s, "check_same_thread": False}
        elif driver == "pymysql":
            arguments = {
                "connect_timeout": max(1, round(connect_timeout_s)),
                "read_timeout": timeout_s,
                "write_timeout": timeout_s,
                # What does not fit is refused, whatever the server's default.
                "init_command": "SET SESSION sql_mode = CONCAT(@@sql_mode, ',STRICT_ALL_TABLES')",
            }
            options["paramstyle"] = "format"
        elif driver == "psycopg":
            arguments = {
                "connect_timeout": max(1, round(connect_timeout_s)),
                "options": f"-c statement_timeout={round(timeout_s * 1000)}",
                "tcp_user_timeout": round(timeout_s * 1000),
            }
            options["paramstyle"] = "format"
        if driver == "pysqlite":
            # A database in memory is its connection.
            in_memory = not url.database or url.database == ":memory:"
            options = {"poolclass": sa.pool.StaticPool if in_memory else sa.pool.QueuePool}
        engine = sa.create_engine(url, connect_args=arguments, hide_parameters=True, **options)
        if driver == "pysqlite":
            _prepare_sqlite(engine)
        return engine

    @contextmanager
    def transaction(self, operation: str, *, writes: bool = True) -> Iterator[Connection]:
        """Give a connection in a transaction; it is committed at the end.

        Args:
            operation: For errors.
            writes: Whether SQLite takes its lock at the start, instead of failing half way.

        Raises:
            StoreUnavailable: Try again later; nothing is known to be done.
            StoreRejected: It can never be done.
            ConfigError: Access or database are not what they should be.
        """
        try:
            engine = self.engine.execution_options(writes=True) if writes else self.engine
            with engine.begin() as connection:
                yield connection
        except SyncEngineError:
            raise
        except BadRow as exc:
            raise StoreRejected(self.name, operation, redact(str(exc))) from exc
        except Exception as exc:
            self._translate(operation, exc)

    def _translate(self, operation: str, exc: Exception) -> None:
        verdict = classify(exc)
        told = _words(exc)
        if verdict is Verdict.REJECTED:
            raise StoreRejected(self.name, operation, told) from exc
        if verdict is Verdict.MISCONFIGURED:
            raise ConfigError(f"sink {self.name!r}: {told}; check user, database, rights") from exc
        if verdict is Verdict.DRIFTED:
            self._drifted()
            told += "; the table was changed or dropped: it is checked again before the next batch"
        else:
            self.engine.dispose()  # nothing is known of the connection
        raise StoreUnavailable(self.name, operation, told) from exc

    def run(self, connection: Connection, bulk: Bulk, rows: Sequence[tuple[Any, ...]]) -> None:
        """Run a statement for many rows, straight through the driver.

        SQLite's driver lets other threads run at every statement and has to wait for them after it,
        and MySQL's sends a deletion a row: both get many rows with one statement. What inserts is
        gathered by the other drivers themselves.
        """
        if not rows:
            return
        if bulk.inserts and self.dialect != "sqlite":
            connection.exec_driver_sql(bulk.text(1), list(rows))
            return
        start = 0
        for shape in bulk.shapes:
            while len(rows) - start >= shape:
                part = rows[start : start + shape]
                connection.exec_driver_sql(bulk.text(shape), tuple(chain.from_iterable(part)))
                start += shape

    def attempt(
        self,
        connection: Connection,
        bulk: Bulk,
        rows: Sequence[tuple[Any, ...]],
        refused: Callable[[BaseException], bool],
    ) -> list[int]:
        """Run a statement for rows; return the places of those that are refused for such an error.

        Other errors pass. Cost: a refused batch is halved until the rows that cannot be are alone.
        """
        if not rows:
            return []
        try:
            with connection.begin_nested():
                self.run(connection, bulk, rows)
        except Exception as exc:
            if not refused(exc):
                raise
            if len(rows) == 1:
                return [0]
            middle = len(rows) // 2
            left = self.attempt(connection, bulk, rows[:middle], refused)
            right = self.attempt(connection, bulk, rows[middle:], refused)
            return left + [middle + place for place in right]
        return []

    def close(self) -> None:
        """Let go of connections; safe twice."""
        self.engine.dispose()


def _words(exc: Exception) -> str:
    """Return what a driver says, without the statement, its values, and secrets of URLs."""
    orig = getattr(exc, "orig", None) or exc
    code = orig.args[1] if len(orig.args) > 1 and isinstance(orig.args[0], int) else str(orig)
    lines = str(code).strip().splitlines()
    return redact(lines[0])[:300] if lines else type(orig).__name__


def _prepare_sqlite(engine: Engine) -> None:
    """Let transactions begin where we say, DDL included, and hold foreign keys."""

    def connected(connection: Any, _record: Any) -> None:
        connection.isolation_level = None
        connection.execute("PRAGMA foreign_keys=ON")

    def begun(connection: Connection) -> None:
        writes = connection.get_execution_options().get("writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    event.listen(engine, "connect", connected)
    event.listen(engine, "begin", begun)
