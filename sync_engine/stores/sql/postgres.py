"""The archive on PostgreSQL through psycopg 3.

A batch is one ``INSERT … SELECT unnest(…)`` over binary arrays that are packed here: as text, bytes
cost four times as much.
"""

# ruff: noqa: S608 - texts hold checked table names and literals only; values are bound
from __future__ import annotations

import math
import struct
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import chain
from typing import Any

import numpy as np
from sqlalchemy import event
from sqlalchemy.engine import Engine

from sync_engine.stores.sql.dialect import Connection, Dialect
from sync_engine.stores.sql.rows import COLUMNS, Row

__all__ = ["PostgresDialect"]

_STATEMENT_BYTES_MAX = 64 << 20
_WAIT_S = 0.1  # how often a waiting driver looks up
_BYTEA, _BYTEA_ARRAY, _INT8, _INT8_ARRAY = 17, 1001, 20, 1016
_BYTES_COLUMNS = frozenset({"id", "state", "trace_parent", "content"})
_OFTEN_ALIKE = frozenset(
    {"tombstone", "content_type", "routes", "state", "expires_at_ms", "trace_parent"}
)
_GUARDED = (
    " ON CONFLICT (id) DO UPDATE SET "
    + ", ".join(f"{name} = EXCLUDED.{name}" for name in COLUMNS[1:])
    + " WHERE old.version < EXCLUDED.version"
)
_SAFE = {
    "fsync": ("on", "commits may be lost and the database damaged at power loss"),
    "synchronous_commit": ("on", "the last commits may be lost at a crash of the server"),
    "full_page_writes": ("on", "a torn page may damage the database at power loss"),
}
_pack_head = struct.Struct("!iIIii").pack
_pack_length = struct.Struct("!i").pack


class _Packed:
    """A parameter that is in the wire's form already."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data


class _PackedBytes(_Packed):
    """A ``bytea[]``."""

    __slots__ = ()

    @classmethod
    def of(cls, values: Sequence[bytes | None]) -> _PackedBytes:
        pairs = [
            (b"\xff\xff\xff\xff", b"") if value is None else (_pack_length(len(value)), value)
            for value in values
        ]
        body = b"".join(chain.from_iterable(pairs))
        return cls(_pack_head(1, None in values, _BYTEA, len(values), 1) + body)


class _PackedInts(_Packed):
    """An ``int8[]``."""

    __slots__ = ()

    @classmethod
    def of(cls, values: Sequence[int]) -> _PackedInts:
        packed = np.empty(len(values), dtype=[("length", ">i4"), ("value", ">i8")])
        packed["length"] = 8
        packed["value"] = values
        return cls(_pack_head(1, 0, _INT8, len(values), 1) + packed.tobytes())


@cache
def _dumpers() -> tuple[tuple[type[_Packed], Any], ...]:
    from psycopg.adapt import Dumper
    from psycopg.pq import Format

    class PackedDumper(Dumper):
        format = Format.BINARY

        def dump(self, obj: Any) -> bytes:
            data: bytes = obj.data
            return data

    class BytesDumper(PackedDumper):
        oid = _BYTEA_ARRAY

    class IntsDumper(PackedDumper):
        oid = _INT8_ARRAY

    return (_PackedBytes, BytesDumper), (_PackedInts, IntsDumper)


def _bounded_connection(timeout_s: float, monotonic: Callable[[], float]) -> Any:
    """Make a connection class that stops waiting: libpq has no bound on an answer.

    Both silence and a drip of bytes end: the first is counted in the driver's own looks at the
    socket, the second by the clock.
    """
    import psycopg

    silent_max = max(1, math.ceil(timeout_s / _WAIT_S))

    def bounded(gen: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        until = monotonic() + 2 * timeout_s
        silent = 0
        try:
            state = next(gen)
            while True:
                ready = yield state
                silent = 0 if ready else silent + 1
                if silent >= silent_max or monotonic() > until:
                    raise psycopg.OperationalError(f"no answer within {timeout_s} s")
                state = gen.send(ready)
        except StopIteration as done:
            return done.value

    class BoundedConnection(psycopg.Connection[Any]):
        def wait(  # type: ignore[override]  # its signature grew in 3.3
            self, gen: Any, interval: float = _WAIT_S, **more: Any
        ) -> Any:
            return super().wait(bounded(gen), interval, **more)

    return BoundedConnection


class PostgresDialect(Dialect):
    """PostgreSQL and what speaks its protocol."""

    kind = "postgres"
    purge_clause = " FOR UPDATE SKIP LOCKED"
    begin_fold = ("BEGIN ISOLATION LEVEL REPEATABLE READ",)
    begin_view = ("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY",)
    lock_tree = "LOCK TABLE {s} IN EXCLUSIVE MODE NOWAIT"  # the moment seen begins after it

    def connect_args(self) -> dict[str, Any]:
        """Return the driver's arguments."""
        return {
            "connect_timeout": max(2, math.ceil(self.settings.connect_timeout_s)),
            "tcp_user_timeout": int(self.settings.timeout_s * 1000),
            "autocommit": True,
        }

    def _make_engine(self, **options: Any) -> Engine:
        engine = super()._make_engine(**options)
        # The server is told the bound itself and shall be the first to give up.
        connection_class = _bounded_connection(self.settings.timeout_s * 1.2, self.clock.monotonic)

        def connect(_dialect: Any, _record: Any, args: Any, options: Any) -> Any:
            return connection_class.connect(*args, **options)

        event.listen(engine, "do_connect", connect)
        return engine

    def prepare(self, connection: Connection, info: dict[Any, Any]) -> None:
        """Set isolation and time limits."""
        del info
        for packed, dumper in _dumpers():
            connection.adapters.register_dumper(packed, dumper)
        milliseconds = max(1, int(self.settings.timeout_s * 1000))
        self.execute(
            connection,
            f"SET statement_timeout = {milliseconds}; SET lock_timeout = {milliseconds};"
            f" SET idle_in_transaction_session_timeout = {2 * milliseconds};"
            " SET default_transaction_isolation = 'read committed'",
        )

    def cursor(self, connection: Connection) -> Any:
        """Open a cursor that is answered in binary."""
        return connection.cursor(binary=True)

    def upsert(self, connection: Connection, info: dict[Any, Any], rows: Sequence[Row]) -> None:
        """Write rows from arrays, one statement for all but the largest batches."""
        del info
        self._write(connection, rows, _GUARDED)

    def insert(self, connection: Connection, info: dict[Any, Any], rows: Sequence[Row]) -> bool:
        """Write rows; one that is there after all is not counted."""
        del info
        return self._write(connection, rows, " ON CONFLICT (id) DO NOTHING") == len(rows)

    def _write(self, connection: Connection, rows: Sequence[Row], ending: str) -> int:
        written = 0
        cursor = connection.cursor()
        try:
            for part in _parts(rows):
                text, args = self._statement(part)
                self._run(cursor, text + ending, args)
                written += cursor.rowcount
        finally:
            cursor.close()
        return written

    def _statement(self, rows: Sequence[Row]) -> tuple[str, list[Any]]:
        """Return the insert of some rows: arrays, and one value for a column that has only one."""
        arrays: list[Any] = []
        scalars: list[Any] = []
        array_types: list[str] = []
        selected: list[str] = []
        for name, values in zip(COLUMNS, zip(*rows, strict=True), strict=True):
            is_bytes = name in _BYTES_COLUMNS
            kind = "bytea" if is_bytes else "int8"
            if name in _OFTEN_ALIKE and values.count(values[0]) == len(values):
                scalars.append(values[0])
                selected.append(f"%b::{kind}")
                continue
            arrays.append(_PackedBytes.of(values) if is_bytes else _PackedInts.of(values))
            selected.append(f"u{len(arrays)}")
            array_types.append(f"%b::{kind}[]")
        names = ", ".join(f"u{number}" for number in range(1, len(arrays) + 1))
        text = (
            f"INSERT INTO {self.tables['t']} AS old ({', '.join(COLUMNS)})"
            f" SELECT {', '.join(selected)} FROM unnest({', '.join(array_types)}) AS u({names})"
        )
        return text, scalars + arrays

    def select(
        self, connection: Connection, columns: str, ids: Sequence[str], *, lock: bool = False
    ) -> list[tuple[Any, ...]]:
        """Return rows by an array of ids."""
        ending = " ORDER BY id FOR UPDATE" if lock else ""
        cursor = connection.cursor(binary=True)
        try:
            cursor.execute(
                f"SELECT {columns} FROM {self.tables['t']} WHERE id = ANY(%b){ending}",
                (_PackedBytes.of([change_id.encode() for change_id in ids]),),
            )
            rows: list[tuple[Any, ...]] = cursor.fetchall()
            return rows
        finally:
            cursor.close()

    def server(self, connection: Connection) -> str:
        """Return product and version."""
        ((version,),) = self.query(connection, "SHOW server_version")
        return f"PostgreSQL {_text(version)}"

    def warnings(self, connection: Connection) -> tuple[str, ...]:
        """Compare the server's settings with those that make a commit safe from power loss."""
        names = ",".join(f"'{name}'" for name in _SAFE)
        found = {
            _text(name): _text(value)
            for name, value in self.query(
                connection, f"SELECT name, setting FROM pg_settings WHERE name IN ({names})"
            )
        }
        as_safe = {"remote_apply", "remote_write", "local"}
        return tuple(
            f"{name} is {found[name]}, not {safe}: {meaning}"
            for name, (safe, meaning) in _SAFE.items()
            if name in found and found[name] not in {safe, *as_safe}
        )

    @contextmanager
    def schema_lock(self, connection: Connection) -> Iterator[None]:
        """Hold an advisory lock of the server until the transaction ends."""
        self.query(connection, "SELECT pg_advisory_xact_lock(hashtext(?))", (self.settings.table,))
        yield


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _parts(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    if sum([len(row[-1]) for row in rows]) <= _STATEMENT_BYTES_MAX:
        yield rows
        return
    start = size = 0
    for index, row in enumerate(rows):
        if index > start and size + len(row[-1]) > _STATEMENT_BYTES_MAX:
            yield rows[start:index]
            start, size = index, 0
        size += len(row[-1])
    yield rows[start:]
