"""End to end: items a second from `submit` until every destination has them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.engines import opened, settle, workdir
from benchmarks.floors import Both, Floor, RedisFloor, SqliteCommits, batches, make_sql_floor
from benchmarks.measure import SIZES, Plan, Row, ids_of, interleaved, items_of
from benchmarks.servers import Servers
from sync_engine import Durability, SubmitOptions, SyncEngine, SyncItem

__all__ = ["MODES", "Pair", "deliver", "pairs_of", "run"]

_COUNT = 8_000
_AIM = 0.7
_LEVELS = {level: SubmitOptions(durability=level) for level in Durability}
_SQL = ("sqlite", "mariadb", "postgres")

MODES: dict[str, tuple[Durability, int]] = {
    "submit at log": (Durability.LOG, 1),
    "submit at memory": (Durability.MEMORY, 1),
    "submit_many(100) at log": (Durability.LOG, 100),
    "submit_many(1000) at log": (Durability.LOG, 1000),
}
"""How items are handed in: the durability, and how many a call."""
_LOGGED = ("submit at log", "submit_many(1000) at log")


@dataclass(frozen=True, slots=True)
class Pair:
    """An engine and its floor on the same servers.

    Attributes:
        name: The destinations.
        engine: A running engine.
        floor: The hand-written loop.
        log: Where a loop commits items first that promises as much as durability `log`.
    """

    name: str
    engine: SyncEngine
    floor: Floor
    log: SqliteCommits


@contextmanager
def pairs_of(plan: Plan, servers: Servers, sql: str, *, redis: bool) -> Iterator[Pair | None]:
    """Open an engine and a floor on a database, with or without Redis before it."""
    server = servers.get("redis") if redis else None
    if redis and server is None:
        yield None
        return
    if server is not None:
        server.flush()
    with servers.database(sql) as url, workdir(plan.directory) as directory:
        if url is None:
            yield None
            return
        with _opened(directory, sql, url, server.url if server else None) as pair:
            yield pair


@contextmanager
def _opened(directory: Path, sql: str, url: str, redis_url: str | None) -> Iterator[Pair]:
    embedded = sql == "sqlite"
    engine_url = f"sqlite:///{directory}/archive.db" if embedded else url
    floor = make_sql_floor(sql, f"sqlite:///{directory}/floor.db" if embedded else url)
    name = sql
    if redis_url is not None:
        floor = Both(RedisFloor(redis_url), floor)
        name = f"redis + {sql}"
    log = SqliteCommits(directory / "floor-log.db", "NORMAL")
    with opened(directory, sql_url=engine_url, redis_url=redis_url) as engine:
        try:
            yield Pair(name, engine, floor, log)
        finally:
            floor.close()
            log.close()


def deliver(engine: SyncEngine, items: Sequence[SyncItem], mode: str) -> None:
    """Hand items in, and wait until all are delivered."""
    level, group = MODES[mode]
    options = _LEVELS[level]
    if group == 1:
        submit = engine.submit
        for item in items:
            submit(item, options)
    else:
        for start in range(0, len(items), group):
            engine.submit_many(items[start : start + group], options)
    report = engine.flush(120)
    if not report.complete or report.dead_letters:
        raise AssertionError(f"not delivered: {report}")


def _floor_rate(floor: Floor, items: Sequence[SyncItem]) -> float:
    began = time.perf_counter()
    for batch in batches(items, items_max=1000, bytes_max=4 << 20):
        floor.write(batch)
    return len(items) / (time.perf_counter() - began)


def _logged_rate(pair: Pair, items: Sequence[SyncItem], group: int) -> float:
    began = time.perf_counter()
    for batch in batches(items, items_max=1000, bytes_max=4 << 20):
        for start in range(0, len(batch), group):
            pair.log.put_group(batch[start : start + group])
        pair.floor.write(batch)
    return len(items) / (time.perf_counter() - began)


def _measure(plan: Plan, pair: Pair, size: int) -> list[Row]:
    count = plan.items(size, _COUNT)

    def engine_side(mode: str) -> Callable[[int], float]:
        def side(number: int) -> float:
            items = items_of(ids_of(f"{size}.{mode}.{number}", count), size)
            began = time.perf_counter()
            deliver(pair.engine, items, mode)
            return len(items) / (time.perf_counter() - began)

        return side

    def floor_side(number: int) -> float:
        return _floor_rate(pair.floor, items_of(ids_of(f"{size}.floor.{number}", count), size))

    def logged_side(group: int) -> Callable[[int], float]:
        def side(number: int) -> float:
            items = items_of(ids_of(f"{size}.logged.{group}.{number}", count), size)
            return _logged_rate(pair, items, group)

        return side

    sides = {mode: engine_side(mode) for mode in MODES} | {"floor": floor_side}
    logged = {mode: f"logged floor of {mode}" for mode in _LOGGED} if size == 1024 else {}
    sides |= {name: logged_side(MODES[mode][1]) for mode, name in logged.items()}
    figures = interleaved(plan.rounds, sides, lambda: settle(pair.engine))
    return [
        Row.of(
            f"End to end: {pair.name}",
            mode,
            size,
            list(zip(figures[mode], figures["floor"], strict=True)),
            "items/s",
            ratio_min=_AIM if size == 1024 else None,
        )
        for mode in MODES
    ] + [
        Row.of(
            f"End to end: {pair.name}",
            f"{mode}, floor logs, too",
            size,
            list(zip(figures[mode], figures[name], strict=True)),
            "items/s",
        )
        for mode, name in logged.items()
    ]


def run(plan: Plan, servers: Servers) -> list[Row]:
    """Measure every way in, into every destination, at every size."""
    rows: list[Row] = []
    for redis in (False, True):
        for sql in _SQL:
            for size in SIZES:
                with pairs_of(plan, servers, sql, redis=redis) as pair:
                    if pair is not None:
                        rows += _measure(plan, pair, size)
    return rows
