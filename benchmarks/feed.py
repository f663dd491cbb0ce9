"""Engines that share servers: staleness, events a second on the feed, cost of a compare-and-set."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.engines import workdir
from benchmarks.measure import Plan, Row
from benchmarks.servers import Servers
from sync_engine import SubmitOptions, SyncEngine, SyncItem
from sync_engine.redis_link.stream import StreamLink
from sync_engine.redis_link.stream_reader import StreamReader
from sync_engine.runtime import SystemClock
from sync_engine.sinks.redis_stream import RedisStreamSink

__all__ = ["run"]

_SQL = ("sqlite", "mariadb")
_LIMIT_S = 10.0


def run(plan: Plan, servers: Servers) -> list[Row]:
    """Measure on each database, with Redis, and once without."""
    rows: list[str] = []
    for sql in _SQL:
        with _two(plan, servers, sql, redis=True) as both:
            if both is not None:
                rows += _staleness(both, f"redis + {sql}", 100 if plan.quick else 1000)
                rows += _conditional(both, f"redis + {sql}", 50 if plan.quick else 500)
    with _two(plan, servers, "mariadb", redis=False) as both:
        if both is not None:
            rows += _staleness(both, "mariadb, no redis", 20 if plan.quick else 100)
    rows += _events(plan, servers)
    if rows:
        print("\n### Engines that share servers\n")
        print("| | median | | |\n|---|---|---|---|")
        print("\n".join(rows), flush=True)
    return []


@contextmanager
def _two(
    plan: Plan, servers: Servers, sql: str, *, redis: bool
) -> Iterator[tuple[SyncEngine, SyncEngine] | None]:
    server = servers.get("redis")
    with servers.database(sql) as url, workdir(plan.directory) as directory:
        if url is None or server is None:
            yield None
            return
        server.flush()
        settings = {
            "sql_url": f"sqlite:///{directory}/archive.db" if sql == "sqlite" else url,
            **({"redis_url": server.url} if redis else {}),
        }
        with (
            SyncEngine.open(directory / "a", **settings) as one,
            SyncEngine.open(directory / "b", **settings) as two,
        ):
            time.sleep(4.0)  # until neither holds the lease any more
            yield one, two


def _staleness(both: tuple[SyncEngine, SyncEngine], where: str, count: int) -> list[str]:
    """Return how long after its acknowledgement a write of one engine is read at the other one."""
    writer, reader = both
    writer.submit("x", b"0")
    writer.flush(_LIMIT_S)
    seconds = []
    for number in range(1, count + 1):
        assert reader.get("x") is not None  # it is warm
        content = b"%d" % number
        writer.submit("x", content)
        started = time.perf_counter()
        while (item := reader.get("x")) is None or item.content != content:
            assert time.perf_counter() - started < _LIMIT_S, "never seen"
            time.sleep(0.0002)
        seconds.append(time.perf_counter() - started)
        time.sleep(0.003)
    return [_latency(f"seen by another engine, {where}", seconds)]


def _conditional(both: tuple[SyncEngine, SyncEngine], where: str, count: int) -> list[str]:
    """Return what a compare-and-set costs while the archive decides."""
    seconds = []
    options = SubmitOptions(if_absent=True)
    for number in range(count):
        started = time.perf_counter()
        both[number % 2].submit(f"cas.{number}", b"1", options)
        seconds.append(time.perf_counter() - started)
    return [_latency(f"compare-and-set between engines, {where}", seconds)]


def _latency(name: str, seconds: list[float]) -> str:
    cuts = statistics.quantiles(seconds, n=100)
    median, p99, most = (f"{value * 1e3:.1f} ms" for value in (cuts[49], cuts[98], max(seconds)))
    return f"| {name} | {median} | p99 {p99} | max {most}, n {len(seconds)} |"


def _events(plan: Plan, servers: Servers) -> list[str]:
    server = servers.get("redis")
    if server is None:
        return []
    server.flush()
    count = 5_000 if plan.quick else 50_000
    items = [SyncItem(f"item.{n}", b"x" * 100) for n in range(count)]
    clock = SystemClock()
    with workdir(plan.directory) as directory, SyncEngine.open(directory) as engine:
        engine.add_sink("feed", RedisStreamSink(server.url, clock=clock))
        engine.submit("first", b"")
        engine.flush(10, sinks=True)
        engine.pause("feed")
        for start in range(0, count, 1000):
            engine.submit_many(items[start : start + 1000])
        engine.flush(120)
        started = time.perf_counter()
        engine.resume("feed")
        assert engine.flush(120, sinks=True).complete
        written = time.perf_counter() - started
        link = StreamLink(server.url, prefix="se", name="changes", clock=clock)
        link.open()
        reader, read = StreamReader(link), 0
        started = time.perf_counter()
        while True:
            batch = reader.read(1000)
            read += len(batch.entries)
            if not batch.more:
                break
        seconds = time.perf_counter() - started
        link.close()
        assert read == count + 1
    return [
        f"| feed: written, 100 B items | {count / written:,.0f}/s | | n {count} |",
        f"| feed: read and proved | {count / seconds:,.0f}/s | | |",
    ]
