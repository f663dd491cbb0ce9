"""The drivers' errors, translated at the door."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum

from sqlalchemy.exc import DBAPIError

from sync_engine.errors import (
    ConfigError,
    StorageError,
    StoreRejected,
    StoreUnavailable,
    SyncEngineError,
)

__all__ = ["STORE", "Verdict", "classify", "is_duplicate", "translated", "verdict_of"]

STORE = "sql"


class Verdict(Enum):
    """What an error means for the caller and for the connection."""

    REJECTED = "rejected"  # this statement can never succeed; the connection is fine
    MISCONFIGURED = "misconfigured"  # credentials, database or schema are not what was promised
    PASSING = "passing"  # the server refuses now; the connection is fine after a rollback
    LOST = "lost"  # nothing is known of the connection: throw it away


_MYSQL: dict[int, tuple[Verdict, str]] = {
    1040: (Verdict.LOST, "too many connections: raise max_connections or lower pool_size"),
    1203: (Verdict.LOST, "too many connections of this user"),
    1044: (Verdict.MISCONFIGURED, "the user has no access to the database"),
    1045: (Verdict.MISCONFIGURED, "access denied: check user and password"),
    1698: (Verdict.MISCONFIGURED, "access denied: check user and password"),
    1049: (Verdict.MISCONFIGURED, "the database does not exist: create it"),
    1142: (Verdict.MISCONFIGURED, "the user lacks a privilege on the tables"),
    1054: (Verdict.MISCONFIGURED, "a column is missing: run `sync-engine migrate`"),
    1146: (Verdict.MISCONFIGURED, "a table is missing: run `sync-engine migrate`"),
    1153: (Verdict.LOST, "a packet is larger than max_allowed_packet"),
    1205: (Verdict.PASSING, "a lock was not free in time"),
    1213: (Verdict.PASSING, "deadlock: the server chose this transaction to fail"),
    1290: (Verdict.PASSING, "the server is read-only"),
    1836: (Verdict.PASSING, "the server is read-only"),
    1792: (Verdict.PASSING, "the transaction is read-only"),
    1021: (Verdict.PASSING, "the server's disk is full"),
    1114: (Verdict.PASSING, "the table is full: the server has no room"),
    3572: (Verdict.PASSING, "a lock was not free"),
    1317: (Verdict.PASSING, "the statement was killed"),
    1969: (Verdict.PASSING, "the statement took longer than timeout_s"),
    3024: (Verdict.PASSING, "the statement took longer than timeout_s"),
    1048: (Verdict.REJECTED, "a value is NULL"),
    1062: (Verdict.REJECTED, "a constraint does not hold"),
    1118: (Verdict.REJECTED, "the row is too large for the server's redo log"),
    1264: (Verdict.REJECTED, "a number is out of range"),
    1366: (Verdict.REJECTED, "a value does not fit its column"),
    1406: (Verdict.REJECTED, "a value is too long for its column"),
    1451: (Verdict.REJECTED, "a constraint does not hold"),
    1452: (Verdict.REJECTED, "a constraint does not hold"),
    1644: (Verdict.REJECTED, "a trigger refused the row"),
    3819: (Verdict.REJECTED, "a constraint does not hold"),
    4025: (Verdict.REJECTED, "a constraint does not hold"),
    2002: (Verdict.LOST, "the server cannot be reached"),
    2003: (Verdict.LOST, "the server cannot be reached"),
    2006: (Verdict.LOST, "the connection is gone"),
    2013: (Verdict.LOST, "the connection was lost, or no answer came within timeout_s"),
}
_POSTGRES: dict[str, tuple[Verdict, str]] = {
    "28": (Verdict.MISCONFIGURED, "access denied: check user and password"),
    "3D": (Verdict.MISCONFIGURED, "the database does not exist: create it"),
    "42501": (Verdict.MISCONFIGURED, "the user lacks a privilege on the tables"),
    "42P01": (Verdict.MISCONFIGURED, "a table is missing: run `sync-engine migrate`"),
    "42703": (Verdict.MISCONFIGURED, "a column is missing: run `sync-engine migrate`"),
    "25006": (Verdict.PASSING, "the server is read-only"),
    "40": (Verdict.PASSING, "deadlock or serialization conflict"),
    "53300": (Verdict.LOST, "too many connections: raise max_connections or lower pool_size"),
    "53": (Verdict.PASSING, "the server is out of disk or memory"),
    "55P03": (Verdict.PASSING, "a lock was not free in time"),
    "57014": (Verdict.PASSING, "the statement took longer than timeout_s, or was cancelled"),
    "57": (Verdict.LOST, "the server is stopping or starting"),
    "08": (Verdict.LOST, "the connection is gone"),
    "22": (Verdict.REJECTED, "a value does not fit its column"),
    "23": (Verdict.REJECTED, "a constraint does not hold"),
    "54": (Verdict.REJECTED, "a limit of the server is exceeded"),
    "P0001": (Verdict.REJECTED, "a trigger refused the row"),
}
_SQLITE: dict[int, tuple[Verdict, str]] = {
    sqlite3.SQLITE_BUSY: (Verdict.PASSING, "another process holds the file's write lock"),
    sqlite3.SQLITE_LOCKED: (Verdict.PASSING, "a table is locked"),
    sqlite3.SQLITE_READONLY: (Verdict.PASSING, "the file is read-only"),
    sqlite3.SQLITE_FULL: (Verdict.PASSING, "the disk is full"),
    sqlite3.SQLITE_IOERR: (Verdict.LOST, "the disk failed"),
    sqlite3.SQLITE_CANTOPEN: (Verdict.LOST, "the file cannot be opened"),
    sqlite3.SQLITE_CORRUPT: (Verdict.LOST, "the file is damaged: restore it from a copy"),
    sqlite3.SQLITE_NOTADB: (Verdict.MISCONFIGURED, "the file is no SQLite database"),
    sqlite3.SQLITE_TOOBIG: (Verdict.REJECTED, "the value is larger than SQLite allows"),
    sqlite3.SQLITE_CONSTRAINT: (Verdict.REJECTED, "a constraint does not hold"),
    sqlite3.SQLITE_MISMATCH: (Verdict.REJECTED, "a value does not fit its column"),
}
_MYSQL_DUPLICATE = 1062
_UNKNOWN = (Verdict.LOST, "")


def verdict_of(exc: BaseException) -> Verdict:
    """Return what an error of any supported driver means; the unknown counts as `LOST`."""
    return classify(exc)[0]


def is_duplicate(exc: BaseException) -> bool:
    """Tell whether a MySQL driver says that a key was there already."""
    code = getattr(exc, "errno", None)
    if not isinstance(code, int):
        code = exc.args[0] if exc.args else None
    return code == _MYSQL_DUPLICATE


def classify(exc: BaseException) -> tuple[Verdict, str]:
    """Return the verdict on a driver's error, and a hint for the operator."""
    if isinstance(exc, DBAPIError) and exc.orig is not None:
        exc = exc.orig
    if isinstance(exc, ConfigError):
        return Verdict.MISCONFIGURED, ""
    if isinstance(exc, StorageError):
        return (Verdict.REJECTED if isinstance(exc, StoreRejected) else Verdict.PASSING), ""
    if isinstance(exc, OverflowError):
        return Verdict.REJECTED, "a number is out of range"
    if isinstance(exc, sqlite3.Error):
        return _classify_sqlite(exc)
    sqlstate = getattr(exc, "sqlstate", None)
    if isinstance(sqlstate, str) and type(exc).__module__.startswith("psycopg"):
        return _POSTGRES.get(sqlstate) or _POSTGRES.get(sqlstate[:2], _UNKNOWN)
    if type(exc).__module__.startswith("psycopg"):
        return _classify_libpq(exc)
    code = getattr(exc, "errno", None)
    if not isinstance(code, int):
        code = exc.args[0] if exc.args else None
    if isinstance(code, int) and not isinstance(exc, OSError):
        return _MYSQL.get(code, _UNKNOWN)
    return _UNKNOWN


def _classify_sqlite(exc: sqlite3.Error) -> tuple[Verdict, str]:
    code = getattr(exc, "sqlite_errorcode", None)
    if code is not None:
        return _SQLITE.get(code & 0xFF, _by_class(exc))
    return _by_class(exc)


def _by_class(exc: Exception) -> tuple[Verdict, str]:
    # The driver refuses some values itself, without a code of the library.
    if isinstance(exc, sqlite3.DataError | sqlite3.IntegrityError):
        return Verdict.REJECTED, "a value does not fit its column"
    text = str(exc)
    if text.startswith(("no such table", "no such column")) or "has no column named" in text:
        return Verdict.MISCONFIGURED, "the tables differ: run `sync-engine migrate`"
    return _UNKNOWN


def _classify_libpq(exc: BaseException) -> tuple[Verdict, str]:
    # A refused connection carries no code, only the server's words.
    text = str(exc)
    if "password authentication failed" in text or "no password supplied" in text:
        return _POSTGRES["28"]
    if "role " in text and "does not exist" in text:
        return _POSTGRES["28"]
    if "database " in text and "does not exist" in text:
        return _POSTGRES["3D"]
    if "invalid connection option" in text or "invalid sslmode" in text:
        return Verdict.MISCONFIGURED, "the URL has an option that the driver does not know"
    return Verdict.LOST, "the server cannot be reached, or did not answer in time"


@contextmanager
def translated(operation: str) -> Iterator[None]:
    """Raise the engine's errors in place of a driver's: known-permanent first, cause kept.

    Raises:
        StoreRejected: The statement can never succeed.
        StoreUnavailable: Anything else, the unknown included.
    """
    try:
        yield
    except SyncEngineError:
        raise
    except Exception as exc:
        verdict, hint = classify(exc)
        if verdict is Verdict.REJECTED:
            raise StoreRejected(STORE, operation, hint) from exc
        raise StoreUnavailable(STORE, operation, hint or type(exc).__name__) from exc
