"""What reads cost: from memory one by one, from the servers a thousand at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.engines import forget_near, opened, settle, workdir
from benchmarks.floors import Floor, LockedDict, RedisFloor, batches, make_sql_floor
from benchmarks.measure import SIZES, Plan, Row, ids_of, interleaved, items_of, quiet_gc
from benchmarks.servers import Servers
from sync_engine import SyncEngine, SyncItem

__all__ = ["run"]

NEAR = "get, from memory"
FAR = "get_many of 1,000, from a server"
MANY = 1000
_NEAR_AIM = 3.0


def _each_us(call: Callable[[str], object], ids: Sequence[str], repeat: int) -> float:
    with quiet_gc():
        began = time.perf_counter()
        for _ in range(repeat):
            for id in ids:
                call(id)
        return (time.perf_counter() - began) / len(ids) / repeat * 1e6


def _near(plan: Plan, size: int, *, pending: bool) -> Row:
    """Read what L1 holds, or what is not archived yet."""
    ids = ids_of("near", MANY)
    items = items_of(ids, size)
    repeat = 20 if plan.quick else 100
    floor = LockedDict()
    for item in items:
        floor.put(item)
    with workdir(plan.directory) as directory, opened(directory) as engine:
        settle(engine)
        if pending:
            engine.pause("l3")
        engine.submit_many(items)
        if not pending:
            settle(engine)
        sides: dict[str, Callable[[int], float]] = {
            "engine": lambda _: _each_us(engine.get, ids, repeat),
            "floor": lambda _: _each_us(floor.get, ids, repeat),
        }
        figures = interleaved(plan.rounds, sides)
        if pending:
            engine.resume("l3")
    pairs = list(zip(figures["engine"], figures["floor"], strict=True))
    case = "not archived yet (overlay)" if pending else "L1 hit"
    return Row.of(NEAR, case, size, pairs, "us", ratio_max=None if pending else _NEAR_AIM)


def _many(
    plan: Plan, engine: SyncEngine, floor: Floor, case: str, items: Sequence[SyncItem], size: int
) -> Row:
    ids = [item.id for item in items]

    def engine_rate(_: int) -> float:
        forget_near(engine)
        began = time.perf_counter()
        found = engine.get_many(ids)
        seconds = time.perf_counter() - began
        if None in found:
            raise AssertionError("an item is missing")
        return len(ids) / seconds

    def floor_rate(_: int) -> float:
        began = time.perf_counter()
        found = floor.read(ids)
        seconds = time.perf_counter() - began
        if len(found) != len(ids):
            raise AssertionError("an item is missing")
        return len(ids) / seconds

    figures = interleaved(plan.rounds * 3, {"engine": engine_rate, "floor": floor_rate})
    pairs = list(zip(figures["engine"], figures["floor"], strict=True))
    return Row.of(FAR, case, size, pairs, "items/s")


def _fill(engine: SyncEngine, floor: Floor, items: Sequence[SyncItem]) -> None:
    engine.submit_many(items)
    settle(engine)
    for batch in batches(items, items_max=MANY, bytes_max=4 << 20):
        floor.write(batch)


def _from_l2(plan: Plan, servers: Servers, size: int) -> list[Row]:
    redis = servers.get("redis")
    if redis is None:
        return []
    redis.flush()
    items = items_of(ids_of("far", MANY), size)
    with workdir(plan.directory) as directory, opened(directory, redis_url=redis.url) as engine:
        floor = RedisFloor(redis.url)
        _fill(engine, floor, items)
        row = _many(plan, engine, floor, "redis", items, size)
        floor.close()
    return [row]


def _from_l3(plan: Plan, kind: str, url: str, directory: Path, size: int) -> Row:
    items = items_of(ids_of("far", MANY), size)
    floor_url = f"sqlite:///{directory}/floor.db" if kind == "sqlite" else url
    engine_url = f"sqlite:///{directory}/archive.db" if kind == "sqlite" else url
    with opened(directory, sql_url=engine_url) as engine:
        floor = make_sql_floor(kind, floor_url)
        _fill(engine, floor, items)
        row = _many(plan, engine, floor, kind, items, size)
        floor.close()
    return row


def run(plan: Plan, servers: Servers) -> list[Row]:
    """Measure reads from every tier at every size."""
    rows = [_near(plan, size, pending=pending) for pending in (False, True) for size in SIZES]
    for size in SIZES:
        rows += _from_l2(plan, servers, size)
    for kind in ("sqlite", "mariadb", "postgres"):
        for size in SIZES:
            with servers.database(kind) as url, workdir(plan.directory) as directory:
                if url is not None:
                    rows.append(_from_l3(plan, kind, url, directory, size))
    return rows
