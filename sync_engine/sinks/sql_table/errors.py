"""What a database's error means for a batch: refuse it, wait, or look at the tables again."""

from __future__ import annotations

import enum
import sqlite3

from sqlalchemy.exc import DBAPIError, IntegrityError

__all__ = ["Verdict", "about_references", "classify"]


class Verdict(enum.Enum):
    """What to do about an error."""

    REJECTED = "rejected"  # a row has to change
    DRIFTED = "drifted"  # a table is not what was agreed
    MISCONFIGURED = "misconfigured"  # access or database
    PASSING = "passing"  # the same batch may go through later


_MYSQL_REJECTED = {1048, 1062, 1118, 1216, 1217, 1264, 1265, 1292, 1364, 1366, 1406, 1451, 1452}
_MYSQL_REJECTED |= {1525, 1644, 3140, 3819, 4025}
_MYSQL_DRIFTED = {1054, 1146, 1136}
_MYSQL_ACCESS = {1044, 1045, 1049, 1142, 1698}
_SQLITE = {
    sqlite3.SQLITE_CONSTRAINT: Verdict.REJECTED,
    sqlite3.SQLITE_MISMATCH: Verdict.REJECTED,
    sqlite3.SQLITE_TOOBIG: Verdict.REJECTED,
    sqlite3.SQLITE_NOTADB: Verdict.MISCONFIGURED,
}
_POSTGRES = (
    ("42P01", Verdict.DRIFTED),
    ("42703", Verdict.DRIFTED),
    ("42804", Verdict.DRIFTED),
    ("42P10", Verdict.DRIFTED),
    ("42501", Verdict.MISCONFIGURED),
    ("28", Verdict.MISCONFIGURED),
    ("3D", Verdict.MISCONFIGURED),
    ("22", Verdict.REJECTED),
    ("23", Verdict.REJECTED),
    ("54", Verdict.REJECTED),
    ("P0001", Verdict.REJECTED),
)


def classify(error: BaseException) -> Verdict:
    """Return what an error of any driver means; the unknown counts as passing."""
    orig = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    if isinstance(orig, OverflowError | UnicodeError):
        return Verdict.REJECTED
    if isinstance(orig, sqlite3.Error):
        return _sqlite(orig)
    state = getattr(orig, "sqlstate", None)
    if type(orig).__module__.startswith("psycopg"):
        return _postgres(orig, state)
    code = orig.args[0] if orig.args else None
    if isinstance(code, int) and not isinstance(orig, OSError):
        return _mysql(code)
    return Verdict.REJECTED if isinstance(error, IntegrityError) else Verdict.PASSING


def about_references(error: BaseException) -> bool:
    """Tell whether a row was refused for what it refers to, or for what refers to it."""
    orig = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    if isinstance(orig, sqlite3.Error):
        return "FOREIGN KEY" in str(orig)
    if type(orig).__module__.startswith("psycopg"):
        return getattr(orig, "sqlstate", None) == "23503"
    return bool(orig.args) and orig.args[0] in (1216, 1217, 1451, 1452)


def _sqlite(error: sqlite3.Error) -> Verdict:
    text = str(error)
    if text.startswith(("no such table", "no such column")) or "has no column named" in text:
        return Verdict.DRIFTED
    if "ON CONFLICT clause does not match" in text:
        return Verdict.DRIFTED
    code = getattr(error, "sqlite_errorcode", None)
    if code is not None:
        return _SQLITE.get(code & 0xFF, Verdict.PASSING)
    refused = isinstance(error, sqlite3.DataError | sqlite3.ProgrammingError)
    return Verdict.REJECTED if refused else Verdict.PASSING


def _postgres(error: BaseException, state: str | None) -> Verdict:
    if state is None:
        text = str(error)
        if "password authentication failed" in text or "does not exist" in text:
            return Verdict.MISCONFIGURED
        # The driver refuses some values itself, such as NUL in text.
        return Verdict.REJECTED if type(error).__name__ == "DataError" else Verdict.PASSING
    for beginning, verdict in _POSTGRES:
        if state.startswith(beginning):
            return verdict
    return Verdict.PASSING


def _mysql(code: int) -> Verdict:
    if code in _MYSQL_REJECTED:
        return Verdict.REJECTED
    if code in _MYSQL_DRIFTED:
        return Verdict.DRIFTED
    return Verdict.MISCONFIGURED if code in _MYSQL_ACCESS else Verdict.PASSING
