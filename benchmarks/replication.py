"""Replication between two engines with archives of their own: by the feed, and by comparing trees.

Beside the hot path stands a loop that reads the stream with redis-py, upserts each batch into
SQLite, and keeps its cursor in a file. Beside the cold path stands one that reads id and version of
every row on both sides, and fetches what differs. Neither has a log, and neither would notice a
gap, a deletion, or a row that is newer here.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.engines import opened, settle, workdir
from benchmarks.floors import SqliteFloor
from benchmarks.measure import Plan, Row, ids_of, interleaved, items_of
from benchmarks.merkle import Metered
from benchmarks.servers import Servers
from sync_engine import SyncEngine, SyncItem
from sync_engine.replication import Peer, Replicator
from sync_engine.runtime import SystemClock
from sync_engine.sinks.redis_stream import RedisStreamSink
from sync_engine.stores.sql import open_archive

__all__ = ["run"]

_SIZES = (100, 1024)
_READ = 1000
_DIFFERENT = 20
_LIMIT_S = 60.0


def run(plan: Plan, servers: Servers) -> list[Row]:
    """Measure the hot path where there is a Redis, and the cold path."""
    rows = []
    for size in _SIZES:
        rows += _hot(plan, servers, size)
    return rows + _cold(plan)


def _until(condition: Callable[[], object], what: str) -> None:
    end = time.perf_counter() + _LIMIT_S
    while not condition():
        if time.perf_counter() > end:
            raise AssertionError(f"{what}: not within {_LIMIT_S:.0f} s")
        time.sleep(0.001)


# -- the hot path ---------------------------------------------------------------------------------


def _hot(plan: Plan, servers: Servers, size: int) -> list[Row]:
    server = servers.get("redis")
    if server is None:
        return []
    server.flush()
    count = plan.items(size, 8_000)
    items = items_of(ids_of("hot", count), size)
    with workdir(plan.directory) as directory, opened(directory / "a") as origin:
        origin.add_sink("feed", RedisStreamSink(server.url, clock=SystemClock()))
        for start in range(0, count, _READ):
            origin.submit_many(items[start : start + _READ])
        if not origin.flush(_LIMIT_S, sinks=True).complete:
            raise AssertionError("the feed was not written")
        figures = interleaved(
            plan.rounds,
            {
                "engine": lambda n: count / _followed(directory / f"b{n}", server.url, items),
                "floor": lambda n: count / _read_by_hand(directory / f"c{n}", server, count),
            },
            lambda: settle(origin),
        )
    pairs = list(zip(figures["engine"], figures["floor"], strict=True))
    return [Row.of("replication", "hot path: a feed, until archived", size, pairs, "items/s")]


def _followed(directory: Path, url: str, items: list[SyncItem]) -> float:
    """Return the seconds until a new engine has archived everything that a feed tells."""
    with opened(directory) as engine:
        began = time.perf_counter()
        with Replicator(engine, [Peer(name="a", redis_url=url)]):
            _until(lambda: engine.stats()["sources"]["peer-a-feed"]["taken"] >= len(items), "taken")
            complete = engine.flush(_LIMIT_S).complete
            seconds = time.perf_counter() - began
        last = engine.get(items[-1].id)
        if not complete or last is None or last.content != items[-1].content:
            raise AssertionError("it is not all there")
    return seconds


def _read_by_hand(directory: Path, server: Any, count: int) -> float:
    """Return the seconds that the shortest loop takes."""
    directory.mkdir()
    floor = SqliteFloor(f"sqlite:///{directory / 'floor.db'}")
    cursor, last, written = directory / "cursor", b"0-0", 0
    try:
        with server.client() as client:
            (stream,) = [key for key in client.keys("*") if client.type(key) == b"stream"]
            began = time.perf_counter()
            while entries := client.xread({stream: last}, count=_READ):
                told = [fields for _, fields in entries[0][1] if fields[b"op"] == b"PUT"]
                floor.write([SyncItem(one[b"id"].decode(), one[b"data"]) for one in told])
                written += len(told)
                last = entries[0][1][-1][0]
                cursor.write_bytes(last)
            seconds = time.perf_counter() - began
    finally:
        floor.close()
    if written != count:
        raise AssertionError(f"{written} of {count} items")
    return seconds


# -- the cold path --------------------------------------------------------------------------------


def _cold(plan: Plan) -> list[Row]:
    count = 10_000 if plan.quick else 50_000
    ids = ids_of("cold", count)
    with (
        workdir(plan.directory) as directory,
        opened(directory / "a") as origin,
        opened(directory / "b") as other,
        _copy(directory / "floor.db") as copy,
    ):
        items = items_of(ids, 100)
        for start in range(0, count, _READ):
            origin.submit_many(items[start : start + _READ])
        origin.flush(_LIMIT_S)
        theirs = directory / "a" / "engine" / "archive.db"
        peer = Peer(name="a", sql_url=f"sqlite:///{theirs}", interval_s=3600.0)
        with Replicator(other, [peer]) as replicator:
            joined = _timed(lambda: _wait_equal(origin, other))
            copied = _timed(lambda: _compared_by_hand(theirs, copy))
            bytes_of: dict[str, list[float]] = {"engine": [], "floor": []}

            def change(number: int) -> None:
                places = range(number, count, count // _DIFFERENT)
                origin.submit_many([SyncItem(ids[place], b"%d" % number) for place in places])
                origin.flush(_LIMIT_S)

            def engine(number: int) -> float:
                change(2 * number)
                bytes_of["engine"].append(_tree_bytes(other, theirs))
                seconds = _timed(lambda: _compare(replicator, other))
                if other.merkle_root() != origin.merkle_root():
                    raise AssertionError("the archives differ")
                return seconds * 1e3

            def floor(number: int) -> float:
                change(2 * number + 1)
                began = time.perf_counter()
                bytes_of["floor"].append(_compared_by_hand(theirs, copy))
                seconds = time.perf_counter() - began
                _compare(replicator, other)
                return seconds * 1e3

            figures = interleaved(plan.rounds, {"engine": engine, "floor": floor})
    case = f"cold path: {_DIFFERENT} of {count:,} differ"
    pairs = list(zip(figures["engine"], figures["floor"], strict=True))
    sizes = list(zip(bytes_of["engine"][1:], bytes_of["floor"][1:], strict=True))
    return [
        Row.of("replication", f"{case}, until archived", 100, pairs, "ms"),
        Row.of("replication", f"{case}, asked to find them", 100, sizes, "bytes"),
        Row.of(
            "replication",
            f"cold path: a new engine joins {count:,}",
            100,
            [(count / joined, count / copied)],
            "items/s",
        ),
    ]


def _timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _wait_equal(origin: SyncEngine, other: SyncEngine) -> None:
    progress = other.stats
    _until(
        lambda: progress()["sources"]["peer-a-archive"]["progress"]["compared_s_ago"] >= 0, "joined"
    )
    if not other.flush(_LIMIT_S).complete or other.merkle_root() != origin.merkle_root():
        raise AssertionError("the archives differ")


def _compare(replicator: Replicator, engine: SyncEngine) -> None:
    """Compare once, and wait until what was missing is archived."""
    asked = time.perf_counter()
    replicator.compare("a")
    _until(
        lambda: replicator.status()["a"].compared_s_ago < time.perf_counter() - asked, "compared"
    )
    if not engine.flush(_LIMIT_S).complete:
        raise AssertionError("not archived")


def _tree_bytes(engine: SyncEngine, theirs: Path) -> float:
    """Return the bytes of a peer's answers to a comparison."""
    archive = open_archive(f"sqlite:///{theirs}", clock=SystemClock(), create_schema=False)
    try:
        tree = Metered(archive.merkle)
        engine.diff(tree)
    finally:
        archive.close()
    return float(tree.bytes)


@contextmanager
def _copy(path: Path) -> Iterator[sqlite3.Connection]:
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=FULL")
    db.execute("CREATE TABLE t (id TEXT PRIMARY KEY, version INTEGER, content BLOB)")
    try:
        yield db
    finally:
        db.close()


def _compared_by_hand(theirs: Path, mine: sqlite3.Connection) -> float:
    """Compare every row of two databases, and take what differs; return the bytes of the keys."""
    there = sqlite3.connect(f"file:{theirs}?mode=ro", uri=True)
    try:
        known = dict(mine.execute("SELECT id, version FROM t"))
        found = there.execute("SELECT id, version FROM sync_items").fetchall()
        wanted = [id for id, version in found if known.get(id, -1) < version]
        for start in range(0, len(wanted), 500):
            part = wanted[start : start + 500]
            marks = ",".join("?" * len(part))
            rows = there.execute(
                f"SELECT id, version, content FROM sync_items WHERE id IN ({marks})", part
            ).fetchall()
            mine.execute("BEGIN IMMEDIATE")
            mine.executemany(
                "INSERT OR REPLACE INTO t VALUES (?, ?, ?)",
                rows,
            )
            mine.execute("COMMIT")
    finally:
        there.close()
    return float(sum(len(id) + 8 for id, _ in found))
