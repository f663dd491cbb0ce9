"""Where the processor's time goes, per item, on the way from `submit` to every destination.

Two looks at the same work. The first runs undisturbed and counts the processor time of each
thread (the caller's, and one for each job of the engine), so what a thread spends waiting for a
server, the disk or the interpreter's lock does not count. The second runs under cProfile, on the
same clock, and lists the costliest functions; profiling itself makes calls dearer, so read it for
the order.
"""

from __future__ import annotations

import cProfile
import io
import pstats
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from benchmarks.delivery import deliver
from benchmarks.engines import settle, workdir
from benchmarks.floors import batches, make_sql_floor
from benchmarks.measure import Plan, Row, ids_of, items_of
from benchmarks.servers import Servers
from sync_engine import SyncEngine, SyncEngineConfig
from sync_engine.runtime import SystemRuntime

__all__ = ["run"]

_SIZE = 1024
_ROUNDS = 5
_MODES = ("submit at log", "submit_many(1000) at log")


class _MeteredRuntime(SystemRuntime):
    """Real jobs whose steps are counted in processor time, and profiled on demand."""

    def __init__(self) -> None:
        super().__init__("costs")
        self.spent_s: defaultdict[str, float] = defaultdict(float)
        self.profilers: dict[str, cProfile.Profile] = {}
        self.profiling = False

    def add_job(self, name: str, step: Callable[[], float]) -> None:
        def metered() -> float:
            return self.metered(name, step)

        super().add_job(name, metered)

    def metered(self, name: str, call: Callable[[], float]) -> float:
        """Run one step, or the caller's whole work, and count it under a name."""
        began = time.thread_time()
        profiling = self.profiling
        profiler = self.profilers.setdefault(name, cProfile.Profile(time.thread_time))
        try:
            if profiling:
                profiler.enable()
            return call()
        finally:
            if profiling:
                profiler.disable()
            self.spent_s[name] += time.thread_time() - began


def _functions(profilers: dict[str, cProfile.Profile], count: int) -> str:
    text = io.StringIO()
    for name, profiler in profilers.items():
        profiler.create_stats()
        stats = pstats.Stats(profiler, stream=text).strip_dirs()
        if stats.total_tt > 0.01:  # type: ignore[attr-defined]
            text.write(f"\n--- {name}: us an item ---\n")
            text.write(_table(stats, count))
    return text.getvalue()


def _table(stats: pstats.Stats, count: int) -> str:
    entries = sorted(
        stats.stats.items(),  # type: ignore[attr-defined]
        key=lambda entry: entry[1][2],
        reverse=True,
    )
    lines = [f"{'own':>7} {'with callees':>13} {'calls/item':>11}  function"]
    for (path, line, name), (_, calls, own, total, _) in entries[:18]:
        where = f"{path}:{line} {name}" if line else name
        lines.append(
            f"{own / count * 1e6:7.2f} {total / count * 1e6:13.2f} {calls / count:11.3f} {where}"
        )
    return "\n".join(lines) + "\n"


def _costs(plan: Plan, directory: Path, kind: str, url: str, mode: str, redis: str | None) -> None:
    count = plan.items(_SIZE, 20_000)
    embedded = kind == "sqlite"
    runtime = _MeteredRuntime()
    config = SyncEngineConfig(
        data_dir=directory / "engine",
        sql_url=f"sqlite:///{directory}/archive.db" if embedded else url,
        redis_url=redis,
    )
    floor = make_sql_floor(kind, f"sqlite:///{directory}/floor.db" if embedded else url)

    def floor_work() -> float:
        for batch in batches(items, items_max=1000, bytes_max=4 << 20):
            floor.write(batch)
        return 0.0

    def engine_work() -> float:
        deliver(engine, items, mode)
        return 0.0

    seconds: list[float] = []
    with SyncEngine(config, runtime=runtime) as engine:
        for number in range(_ROUNDS + 1):
            items = items_of(ids_of(f"cost.{number}", count), _SIZE)
            if number == 1:
                runtime.spent_s.clear()
            began = time.perf_counter()
            runtime.metered("caller", engine_work)
            seconds.append(time.perf_counter() - began)
            settle(engine)
            runtime.metered("floor (SQL)", floor_work)
        plain = dict(runtime.spent_s)
        runtime.profiling = True
        runtime.profilers = {}
        items = items_of(ids_of("cost.profiled", count), _SIZE)
        runtime.metered("caller", engine_work)
        settle(engine)
        runtime.metered("floor (SQL)", floor_work)
        runtime.profiling = False
    floor.close()
    print(f"\n### {'redis + ' if redis else ''}{kind}, {mode}, {_SIZE} B\n")
    print(f"wall clock {min(seconds[1:]) / count * 1e6:.1f} us an item (best of {_ROUNDS})")
    for name, spent in sorted(plain.items(), key=lambda entry: -entry[1]):
        print(f"  {name:<12} {spent / count / _ROUNDS * 1e6:6.2f} us an item of processor time")
    print(_functions(runtime.profilers, count))


def run(plan: Plan, servers: Servers) -> list[Row]:
    """Print costs by thread and function; there is no row to compare."""
    for kind in ("sqlite", "mariadb", "postgres"):
        for mode in _MODES:
            with servers.database(kind) as url, workdir(plan.directory) as directory:
                if url is not None:
                    _costs(plan, directory, kind, url, mode, None)
    redis = servers.get("redis")
    if redis is not None:
        redis.flush()
        with workdir(plan.directory) as directory:
            _costs(plan, directory, "sqlite", "", _MODES[0], redis.url)
    return []
