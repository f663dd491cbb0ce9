"""The floor: the shortest code that does the same to the same server, with the same driver.

Each floor keeps id, version, checksum and content, replaces a row only by a newer version, and uses
the statement form that measured fastest for its driver. It promises nothing: no log, no order, no
retry, no filter, no read-your-writes.
"""

from __future__ import annotations

import itertools
import os
import sqlite3
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

from xxhash import xxh3_64_intdigest

from sync_engine import SyncItem

__all__ = [
    "AppendFile",
    "Both",
    "Floor",
    "LockedDict",
    "MariaDBFloor",
    "PostgresFloor",
    "RedisFloor",
    "SqliteCommits",
    "SqliteFloor",
    "batches",
    "make_sql_floor",
]

_versions = itertools.count(time.time_ns()).__next__


class Floor(Protocol):
    """Writes and reads batches."""

    def write(self, items: Sequence[SyncItem]) -> None:
        """Upsert a batch, in one transaction or call."""

    def read(self, ids: Sequence[str]) -> dict[str, bytes]:
        """Return the contents of ids."""

    def close(self) -> None:
        """Close the connection."""


def batches(
    items: Sequence[SyncItem], *, items_max: int, bytes_max: int
) -> Iterator[Sequence[SyncItem]]:
    """Cut items into batches as the engine does."""
    step = max(1, min(items_max, bytes_max // (len(items[0].content) + 128)))
    for start in range(0, len(items), step):
        yield items[start : start + step]


def _checksum(content: bytes) -> int:
    return xxh3_64_intdigest(content) >> 1  # fits a signed column


# -- in the process -------------------------------------------------------------------------------


class LockedDict:
    """A dict and a lock."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._items: dict[str, SyncItem] = {}

    def put(self, item: SyncItem) -> None:
        with self._lock:
            self._items[item.id] = item

    def get(self, id: str) -> SyncItem:
        with self._lock:
            return self._items[id]


class SqliteCommits:
    """One INSERT, one commit; `synchronous` as the level needs it."""

    def __init__(self, path: Path, synchronous: str) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute(f"PRAGMA synchronous={synchronous}")
        self._db.execute("CREATE TABLE IF NOT EXISTS t (n INTEGER PRIMARY KEY, id, content)")

    def put(self, item: SyncItem) -> None:
        self._db.execute("INSERT INTO t (id, content) VALUES (?, ?)", (item.id, item.content))

    def put_group(self, items: Sequence[SyncItem]) -> None:
        ids, body = "\n".join([i.id for i in items]), b"".join([i.content for i in items])
        self._db.execute("INSERT INTO t (id, content) VALUES (?, ?)", (ids, body))

    def close(self) -> None:
        self._db.close()


class AppendFile:
    """One write and one fdatasync."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)

    def put(self, item: SyncItem) -> None:
        os.write(self._fd, item.id.encode() + item.content)
        os.fdatasync(self._fd)

    def close(self) -> None:
        os.close(self._fd)


# -- SQL ------------------------------------------------------------------------------------------


class SqliteFloor:
    """One prepared statement, ``executemany``; synced at every commit, as the archive is."""

    _UPSERT = (
        "INSERT INTO t VALUES (?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET version ="
        " excluded.version, checksum = excluded.checksum, content = excluded.content"
        " WHERE excluded.version > version"
    )

    def __init__(self, url: str) -> None:
        path = url.removeprefix("sqlite:///")
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute(
            "CREATE TABLE t (id TEXT PRIMARY KEY, version INTEGER, checksum INTEGER, content BLOB)"
        )

    def write(self, items: Sequence[SyncItem]) -> None:
        rows = [(i.id, _versions(), _checksum(i.content), i.content) for i in items]
        self._db.execute("BEGIN IMMEDIATE")
        self._db.executemany(self._UPSERT, rows)
        self._db.execute("COMMIT")

    def read(self, ids: Sequence[str]) -> dict[str, bytes]:
        marks = ",".join("?" * len(ids))
        return dict(self._db.execute(f"SELECT id, content FROM t WHERE id IN ({marks})", ids))

    def close(self) -> None:
        self._db.close()


class MariaDBFloor:
    """pymysql, one multi-VALUES statement with hex literals."""

    def __init__(self, url: str) -> None:
        import pymysql
        from sqlalchemy.engine import make_url

        parts = make_url(url)
        self._db = pymysql.connect(
            host=parts.host,
            port=int(parts.port or 3306),
            user=parts.username,
            password=parts.password or "",
            database=parts.database,
            autocommit=True,
        )
        self._cursor: Any = self._db.cursor()  # untyped, as it takes bytes too
        self._cursor.execute(
            "CREATE TABLE floor_items (id VARBINARY(512) PRIMARY KEY, version BIGINT,"
            " checksum BIGINT, content LONGBLOB)"
        )

    def write(self, items: Sequence[SyncItem]) -> None:
        rows = ",".join(
            [
                f"(x'{i.id.encode().hex()}',{_versions()},{_checksum(i.content)},"
                f"x'{i.content.hex()}')"
                for i in items
            ]
        )
        self._cursor.execute(
            f"INSERT INTO floor_items VALUES {rows} ON DUPLICATE KEY UPDATE"
            " checksum = IF(VALUES(version) > version, VALUES(checksum), checksum),"
            " content = IF(VALUES(version) > version, VALUES(content), content),"
            " version = GREATEST(version, VALUES(version))".encode()
        )

    def read(self, ids: Sequence[str]) -> dict[str, bytes]:
        keys = ",".join([f"x'{id.encode().hex()}'" for id in ids])
        self._cursor.execute(f"SELECT id, content FROM floor_items WHERE id IN ({keys})")
        return {id.decode(): content for id, content in self._cursor.fetchall()}

    def close(self) -> None:
        self._db.close()


_pack_head = struct.Struct("!iIIii").pack
_pack_length = struct.Struct("!i").pack
_pack_int = struct.Struct("!iq").pack


class _Array:
    __slots__ = ("data",)

    def __init__(self, kind: int, parts: list[bytes], count: int) -> None:
        self.data = _pack_head(1, 0, kind, count, 1) + b"".join(parts)


class _Bytes(_Array):
    __slots__ = ()

    def __init__(self, values: Sequence[bytes]) -> None:
        parts = [part for value in values for part in (_pack_length(len(value)), value)]
        super().__init__(17, parts, len(values))


class _Ints(_Array):
    __slots__ = ()

    def __init__(self, values: Sequence[int]) -> None:
        super().__init__(20, [_pack_int(8, value) for value in values], len(values))


class PostgresFloor:
    """psycopg 3, one ``INSERT … SELECT unnest(…)`` of binary arrays packed by hand."""

    _UPSERT = (
        "INSERT INTO floor_items AS old SELECT * FROM"
        " unnest(%b::bytea[], %b::int8[], %b::int8[], %b::bytea[])"
        " ON CONFLICT (id) DO UPDATE SET version = EXCLUDED.version,"
        " checksum = EXCLUDED.checksum, content = EXCLUDED.content"
        " WHERE old.version < EXCLUDED.version"
    )

    def __init__(self, url: str) -> None:
        import psycopg
        from psycopg.adapt import Dumper
        from psycopg.pq import Format

        class Packed(Dumper):
            format = Format.BINARY

            def dump(self, obj: Any) -> bytes:
                data: bytes = obj.data
                return data

        class PackedBytes(Packed):
            oid = 1001

        class PackedInts(Packed):
            oid = 1016

        self._db = psycopg.connect(url.replace("+psycopg", ""), autocommit=True)
        self._db.adapters.register_dumper(_Bytes, PackedBytes)
        self._db.adapters.register_dumper(_Ints, PackedInts)
        self._cursor = self._db.cursor(binary=True)
        self._cursor.execute(
            "CREATE TABLE floor_items (id BYTEA PRIMARY KEY, version BIGINT, checksum BIGINT,"
            " content BYTEA)"
        )

    def write(self, items: Sequence[SyncItem]) -> None:
        args = (
            _Bytes([i.id.encode() for i in items]),
            _Ints([_versions() for _ in items]),
            _Ints([_checksum(i.content) for i in items]),
            _Bytes([i.content for i in items]),
        )
        self._cursor.execute(self._UPSERT, args)

    def read(self, ids: Sequence[str]) -> dict[str, bytes]:
        keys = (_Bytes([id.encode() for id in ids]),)
        self._cursor.execute("SELECT id, content FROM floor_items WHERE id = ANY(%b)", keys)
        return {id.decode(): content for id, content in self._cursor.fetchall()}

    def close(self) -> None:
        self._db.close()


_SQL: dict[str, Callable[[str], Floor]] = {
    "sqlite": SqliteFloor,
    "mariadb": MariaDBFloor,
    "postgres": PostgresFloor,
}


def make_sql_floor(kind: str, url: str) -> Floor:
    """Return the floor of a database; the URL's database must be empty of its table."""
    return _SQL[kind](url)


# -- Redis ----------------------------------------------------------------------------------------


class RedisFloor:
    """One script call "set if newer" a batch, cut at 256 KiB of values; reads by MGET."""

    _SCRIPT = """
    for i = 1, #KEYS do
      local value = ARGV[i]
      local old = redis.call('GETRANGE', KEYS[i], 0, 19)
      local newer = #old < 20
      if not newer then
        local high, low = tonumber(string.sub(old, 1, 10)), tonumber(string.sub(old, 11, 20))
        local h, l = tonumber(string.sub(value, 1, 10)), tonumber(string.sub(value, 11, 20))
        newer = h > high or (h == high and l > low)
      end
      if newer then redis.call('SET', KEYS[i], value) end
    end
    """
    _CHUNK_BYTES = 256 << 10

    def __init__(self, url: str) -> None:
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        self._client = redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0))
        self._sha = self._client.script_load(self._SCRIPT)

    def write(self, items: Sequence[SyncItem]) -> None:
        step = max(1, self._CHUNK_BYTES // (len(items[0].content) + 28))
        for start in range(0, len(items), step):
            part = items[start : start + step]
            keys = [b"floor:" + i.id.encode() for i in part]
            values = [b"%020d%d" % (_versions(), _checksum(i.content)) + i.content for i in part]
            self._client.evalsha(self._sha, len(keys), *keys, *values)

    def read(self, ids: Sequence[str]) -> dict[str, bytes]:
        values: Any = self._client.mget([b"floor:" + id.encode() for id in ids])
        return {id: value[20:] for id, value in zip(ids, values, strict=True)}

    def close(self) -> None:
        self._client.close()


class Both:
    """Redis, then SQL: what a program without an engine does."""

    def __init__(self, redis: Floor, sql: Floor) -> None:
        self._redis = redis
        self._sql = sql

    def write(self, items: Sequence[SyncItem]) -> None:
        self._redis.write(items)
        self._sql.write(items)

    def read(self, ids: Sequence[str]) -> dict[str, bytes]:
        return self._redis.read(ids)

    def close(self) -> None:
        self._redis.close()
        self._sql.close()
