"""The archive on MySQL, MariaDB and what speaks their protocol.

pymysql and mysqlclient send a batch as one multi-VALUES statement with hex literals: escaping
binary text costs both sides more than twice the bytes do. MariaDB's connector has a binary bulk
protocol for ``executemany``, which beats both.
"""

# ruff: noqa: S608 - texts hold checked table names and literals only; values are bound
from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sync_engine.errors import StoreRejected, StoreUnavailable
from sync_engine.stores.sql.dialect import Connection, Dialect
from sync_engine.stores.sql.errors import STORE, is_duplicate
from sync_engine.stores.sql.rows import COLUMNS, Row

__all__ = ["MysqlDialect"]

_PACKET = "max_allowed_packet"
_STATEMENT_BYTES_MAX = 4 << 20
_MARGIN_BYTES = 1024
_SQL_MODE = "STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION,ERROR_FOR_DIVISION_BY_ZERO"

# Assignments run from left to right: `version` comes last, as the others compare with the old one.
_GUARDED = ", ".join(
    [
        *(
            f"{name} = IF(VALUES(version) > version, VALUES({name}), {name})"
            for name in COLUMNS[2:]
        ),
        "version = GREATEST(version, VALUES(version))",
    ]
)
# Variable -> (the value that is safe, what another one means)
_SAFE = {
    "innodb_flush_log_at_trx_commit": ("1", "commits of the last second may be lost"),
    "innodb_doublewrite": ("ON", "a torn page may lose data at power loss"),
    "sync_binlog": ("1", "replicas may miss commits after power loss"),
}


class MysqlDialect(Dialect):
    """MySQL and MariaDB through pymysql, mysqlclient or MariaDB's connector."""

    kind = "mysql"
    quote = "`"
    begin = "START TRANSACTION"
    current_schema = "DATABASE()"
    begin_fold = ("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ", "START TRANSACTION")
    begin_view = (
        "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ",
        "START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY",
    )
    lock_tree = "SELECT id FROM {s} WHERE id = 1 FOR UPDATE NOWAIT"  # and sees nothing before

    @property
    def driver(self) -> str:
        """Name of the driver, as SQLAlchemy calls it."""
        return self.settings.url.get_driver_name()

    @property
    def placeholder(self) -> str:  # type: ignore[override]
        """The driver's mark for a value."""
        return "?" if self.driver == "mariadbconnector" else "%s"

    @property
    def key_placeholder(self) -> str:  # type: ignore[override]
        """The driver's mark for a value."""
        return self.placeholder

    def connect_args(self) -> dict[str, Any]:
        """Return the driver's arguments; only pymysql knows fractions of a second."""
        settings = self.settings
        whole = self.driver != "pymysql"
        # The server is told the same bound and shall be the first to give up.
        wait_s = settings.timeout_s * 1.2
        args: dict[str, Any] = {
            "connect_timeout": (
                math.ceil(settings.connect_timeout_s) if whole else settings.connect_timeout_s
            ),
            "read_timeout": math.ceil(wait_s) if whole else wait_s,
            "write_timeout": math.ceil(wait_s) if whole else wait_s,
        }
        if self.driver != "mysqldb":
            args["autocommit"] = True
        return args

    def prepare(self, connection: Connection, info: dict[Any, Any]) -> None:
        """Set strict mode, isolation and time limits; learn the packet limit."""
        if self.driver == "mysqldb":
            connection.autocommit(True)
        seconds = self.settings.timeout_s
        ((version, packet),) = self.query(connection, "SELECT @@version, @@max_allowed_packet")
        info[_PACKET] = int(packet)
        limit = (
            f"max_statement_time = {seconds:.3f}"
            if "mariadb" in _text(version).lower()
            else f"max_execution_time = {max(1, int(seconds * 1000))}"
        )
        whole_s = max(1, math.ceil(seconds))
        self.execute(
            connection,
            f"SET SESSION sql_mode = '{_SQL_MODE}', SESSION innodb_lock_wait_timeout = {whole_s},"
            f" SESSION lock_wait_timeout = {whole_s}, SESSION {limit}",
        )
        self.execute(connection, "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")

    def upsert(self, connection: Connection, info: dict[Any, Any], rows: Sequence[Row]) -> None:
        """Write rows in as few statements as the packet limit allows."""
        self._write(connection, info, rows, f" ON DUPLICATE KEY UPDATE {_GUARDED}")

    def insert(self, connection: Connection, info: dict[Any, Any], rows: Sequence[Row]) -> bool:
        """Write rows; a key that is there after all fails the statement."""
        try:
            self._write(connection, info, rows, "")
        except Exception as exc:
            if is_duplicate(exc):
                return False
            raise
        return True

    def _write(
        self, connection: Connection, info: dict[Any, Any], rows: Sequence[Row], ending: str
    ) -> None:
        packet = info[_PACKET] - _MARGIN_BYTES
        if self._has_bulk_protocol():
            self._write_bulk(connection, rows, packet, ending)
            return
        head = f"INSERT INTO {self.tables['t']} ({','.join(COLUMNS)}) VALUES ".encode()
        tail = ending.encode()
        room = packet - len(head) - len(tail)
        values = [_literal(row) for row in rows]
        cursor = connection.cursor()
        try:
            as_text = self.driver == "mariadbconnector"  # takes no bytes, so no binary literals
            for part in _parts(values, None if as_text else rows, room):
                statement = b"%b%b%b" % (head, b",".join(part), tail)
                cursor.execute(statement.decode("ascii") if as_text else statement)
        finally:
            cursor.close()

    def _has_bulk_protocol(self) -> bool:
        """Tell whether ``executemany`` is one round trip: in the connector's 1.x, written in C.

        Its 2.0 sends such a statement row by row.
        """
        if self.driver != "mariadbconnector":
            return False
        version: tuple[Any, ...] = getattr(self.engine.dialect.dbapi, "__version_info__", (2,))
        return int(version[0]) == 1

    def _write_bulk(
        self, connection: Connection, rows: Sequence[Row], packet: int, ending: str
    ) -> None:
        marks = ",".join("?" * len(COLUMNS))
        text = f"INSERT INTO {self.tables['t']} ({','.join(COLUMNS)}) VALUES ({marks}){ending}"
        if any(len(row[-1]) + 2048 > packet for row in rows):  # the driver splits, not a row
            raise _too_large(packet)
        cursor = connection.cursor()
        try:
            cursor.executemany(text, rows)
        finally:
            cursor.close()

    def select(
        self, connection: Connection, columns: str, ids: Sequence[str], *, lock: bool = False
    ) -> list[tuple[Any, ...]]:
        """Return rows by an IN query with hex literals."""
        keys = ",".join([f"x'{change_id.encode().hex()}'" for change_id in ids])
        ending = " ORDER BY id FOR UPDATE" if lock else ""
        cursor = connection.cursor()
        try:
            cursor.execute(f"SELECT {columns} FROM {self.tables['t']} WHERE id IN ({keys}){ending}")
            return list(cursor.fetchall())
        finally:
            cursor.close()

    def server(self, connection: Connection) -> str:
        """Return product and version."""
        ((version,),) = self.query(connection, "SELECT VERSION()")
        text = _text(version)
        return text if "mariadb" in text.lower() or "tidb" in text.lower() else f"MySQL {text}"

    def warnings(self, connection: Connection) -> tuple[str, ...]:
        """Compare the server's settings with those that make a commit safe from power loss."""
        names = ",".join(f"'{name}'" for name in (*_SAFE, "log_bin"))
        found = {
            _text(name).lower(): _text(value).upper()
            for name, value in self.query(
                connection, f"SHOW GLOBAL VARIABLES WHERE Variable_name IN ({names})"
            )
        }
        if found.get("log_bin") != "ON":
            found.pop("sync_binlog", None)
        return tuple(
            f"{name} is {found[name]}, not {safe}: {meaning}"
            for name, (safe, meaning) in _SAFE.items()
            if name in found and found[name] not in {safe, "DETECT_AND_RECOVER"}
        )

    @contextmanager
    def schema_lock(self, connection: Connection) -> Iterator[None]:
        """Hold a named lock of the server: its DDL ends transactions."""
        name = f"sync_engine:{self.settings.table}"
        seconds = max(1, int(self.settings.timeout_s))
        ((held,),) = self.query(connection, "SELECT GET_LOCK(?, ?)", (name, seconds))
        if held != 1:
            raise StoreUnavailable(STORE, "create schema", "another engine is creating it")
        try:
            yield
        finally:
            self.query(connection, "SELECT RELEASE_LOCK(?)", (name,))


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _too_large(limit: int) -> StoreRejected:
    return StoreRejected(
        STORE, "apply", f"a row is larger than the server's max_allowed_packet allows ({limit} B)"
    )


def _literal(row: Row) -> bytes:
    id, version, tombstone, kind, routes, state, expires, checksum, trace, content = row
    return (
        f"(x'{id.hex()}',{version},{tombstone},{kind},{routes},x'{state.hex()}',{expires},"
        f"{checksum},{_hex(trace)},x'{content.hex()}')"
    ).encode()


def _hex(value: bytes | None) -> str:
    return "NULL" if value is None else f"x'{value.hex()}'"


def _escaped(row: Row) -> bytes:
    # Half as long as hex: for the row that would not fit otherwise. The connection's character set
    # has no multi-byte character with a quote or backslash in it.
    body = row[-1].replace(b"\\", b"\\\\").replace(b"'", b"\\'")
    bare: Row = (*row[:-1], b"")
    return b"%b_binary'%b')" % (_literal(bare)[: -len(b"x'')")], body)


def _parts(values: Sequence[bytes], rows: Sequence[Row] | None, room: int) -> Iterator[list[bytes]]:
    """Split rows into statements of a good size; a row alone may take all the room.

    Args:
        values: The rows as hex literals.
        rows: The rows themselves, for one that only fits otherwise; None where that is no way out.
        room: Bytes that a statement may have.
    """
    wanted = min(room, _STATEMENT_BYTES_MAX)
    part: list[bytes] = []
    size = 0
    for index, value in enumerate(values):
        fitting = value if len(value) <= room or rows is None else _escaped(rows[index])
        if len(fitting) > room:
            raise _too_large(room)
        if part and size + len(fitting) + 1 > wanted:
            yield part
            part, size = [], 0
        part.append(fitting)
        size += len(fitting) + 1
    yield part
