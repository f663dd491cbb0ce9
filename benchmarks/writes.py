"""What one `submit` costs its caller, at each durability."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.engines import opened, settle, workdir
from benchmarks.floors import AppendFile, LockedDict, SqliteCommits
from benchmarks.measure import SIZES, Plan, Row, ids_of, interleaved, items_of
from benchmarks.servers import Servers
from sync_engine import Durability, SubmitOptions, SyncEngine, SyncItem

__all__ = ["run"]

SUBJECT = "submit, one caller"
GROUPED = "submit at fsync, eight callers"
CALLERS = 8
_OPTIONS = {level: SubmitOptions(durability=level) for level in Durability}
_COUNTS = {
    Durability.MEMORY: 20_000,
    Durability.LOG: 10_000,
    Durability.FSYNC: 200,
    Durability.ARCHIVE: 200,
}
_AIMS_US = {Durability.MEMORY: 10.0, Durability.LOG: 60.0}


def _each_us(call: Callable[[SyncItem], object], items: Sequence[SyncItem]) -> float:
    began = time.perf_counter()
    for item in items:
        call(item)
    return (time.perf_counter() - began) / len(items) * 1e6


def _floor(level: Durability, directory: Path) -> LockedDict | SqliteCommits | AppendFile:
    if level is Durability.MEMORY:
        return LockedDict()
    if level is Durability.FSYNC:
        return AppendFile(directory / "floor.bin")
    synchronous = "NORMAL" if level is Durability.LOG else "FULL"
    return SqliteCommits(directory / "floor.db", synchronous)


def _submit(engine: SyncEngine, level: Durability) -> Callable[[SyncItem], object]:
    options = _OPTIONS[level]
    return lambda item: engine.submit(item, options)


def _lone(plan: Plan, level: Durability, size: int, *, paused: bool) -> Row:
    count = plan.items(size, _COUNTS[level])
    with workdir(plan.directory) as directory, opened(directory) as engine:
        floor = _floor(level, directory)
        settle(engine)
        submit = _submit(engine, level)

        def engine_us(number: int) -> float:
            items = items_of(ids_of(f"write.{number}", count), size)
            if paused:
                engine.pause("l3")
            try:
                return _each_us(submit, items)
            finally:
                engine.resume("l3")

        def floor_us(number: int) -> float:
            return _each_us(floor.put, items_of(ids_of(f"write.{number}", count), size))

        sides = {"engine": engine_us, "floor": floor_us}
        figures = interleaved(plan.rounds, sides, lambda: settle(engine))
        if not isinstance(floor, LockedDict):
            floor.close()
    case = f"{level}, delivery paused" if paused else str(level)
    pairs = list(zip(figures["engine"], figures["floor"], strict=True))
    aim = _AIMS_US.get(level) if size == 1024 else None
    return Row.of(SUBJECT, case, size, pairs, "us", value_max=aim)


def _callers(put: Callable[[SyncItem], object], items: Sequence[SyncItem], callers: int) -> float:
    """Return items a second of so many threads at once."""
    start = threading.Barrier(callers + 1)

    def work(part: Sequence[SyncItem]) -> None:
        start.wait()
        for item in part:
            put(item)

    threads = [
        threading.Thread(target=work, args=(items[number::callers],)) for number in range(callers)
    ]
    for thread in threads:
        thread.start()
    start.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    return len(items) / (time.perf_counter() - began)


def _grouped(plan: Plan, size: int) -> Row:
    """Eight callers beside one, both through the engine: what group commit gains."""
    count = plan.items(size, 400)
    with workdir(plan.directory) as directory, opened(directory) as engine:
        settle(engine)
        submit = _submit(engine, Durability.FSYNC)

        def measure(callers: int) -> Callable[[int], float]:
            def side(number: int) -> float:
                share = count if callers > 1 else count // 4
                ids = ids_of(f"group.{callers}.{number}", share)
                return _callers(submit, items_of(ids, size), callers)

            return side

        sides = {"many": measure(CALLERS), "one": measure(1)}
        figures = interleaved(plan.rounds, sides, lambda: settle(engine))
    pairs = list(zip(figures["many"], figures["one"], strict=True))
    return Row.of(GROUPED, "beside a lone caller", size, pairs, "items/s", ratio_min=4)


def run(plan: Plan, servers: Servers) -> list[Row]:
    """Measure every durability at every size."""
    del servers
    rows = []
    for level in Durability:
        rows += [_lone(plan, level, size, paused=False) for size in SIZES]
        if level in _AIMS_US:
            rows += [_lone(plan, level, size, paused=True) for size in SIZES]
    rows += [_grouped(plan, size) for size in SIZES]
    return rows
