"""An outage of the archive, at full speed: what is accepted, what it costs, how it ends.

The database server is frozen (SIGSTOP: connections stay open, nothing answers), or, where none is
installed, an SQLite archive fails every call. One thread goes on submitting; refusals under
back-pressure are counted and tried again. Then the server is let go, and the backlog drains. At the
end every item that was acknowledged is counted in the database itself.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.engines import settle, workdir
from benchmarks.measure import Plan, Row, contents
from benchmarks.servers import Servers
from sync_engine import (
    Backpressure,
    Durability,
    StoreUnavailable,
    SubmitOptions,
    SyncEngine,
    SyncEngineConfig,
    SyncItem,
)
from sync_engine.house import Stores
from sync_engine.runtime import SystemRuntime
from sync_engine.stores.sql import SqlArchive
from sync_engine.testing import FlakyStore

__all__ = ["run"]

_SIZE = 1024
_LOG = SubmitOptions(durability=Durability.LOG)
_SETTINGS: dict[str, Any] = {
    "l3_timeout_s": 1.0,
    "l3_connect_timeout_s": 1.0,
    "l3_circuit_open_s": 1.0,
    "delivery_delay_s_max": 1.0,
    "overlay_bytes_max": 64 << 20,
    "submit_timeout_s": 1.0,
}


@dataclass(slots=True)
class _Outage:
    """A running engine, and the switches of its archive."""

    name: str
    engine: SyncEngine
    stop: Callable[[], None]
    go: Callable[[], None]
    count: Callable[[], int]
    directory: Path
    accepted: int = 0
    refused: int = 0
    began: float = field(default_factory=time.perf_counter)


def _resident_bytes() -> int:
    with Path("/proc/self/statm").open() as file:
        return int(file.read().split()[1]) * 4096


def _disk_bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in (directory / "engine").iterdir())


@contextmanager
def _embedded(directory: Path) -> Iterator[_Outage]:
    runtime = SystemRuntime("outage")
    archive = SqlArchive(f"sqlite:///{directory}/archive.db", clock=runtime.clock)
    flaky = FlakyStore(archive)
    config = SyncEngineConfig(data_dir=directory / "engine", **_SETTINGS)
    with SyncEngine(config, runtime=runtime, stores=Stores(None, flaky)) as engine:

        def switch(down: bool) -> Callable[[], None]:
            return lambda: setattr(flaky, "down", down)

        yield _Outage(
            "sqlite that fails every call",
            engine, switch(True), switch(False), archive.count, directory,
        )  # fmt: skip


@contextmanager
def _frozen(directory: Path, kind: str, url: str, server: Any) -> Iterator[_Outage]:
    config = SyncEngineConfig(data_dir=directory / "engine", sql_url=url, **_SETTINGS)
    database = url.rpartition("/")[2]

    def count() -> int:
        if kind == "mariadb":
            return int(server.execute(f"SELECT COUNT(*) FROM {database}.sync_items")[0][0])
        import psycopg

        with psycopg.connect(url.replace("+psycopg", "")) as connection:
            row = connection.execute("SELECT COUNT(*) FROM sync_items").fetchone()
            return int(row[0]) if row else 0

    with SyncEngine(config) as engine:
        yield _Outage(
            f"{kind}, frozen", engine, server.pause, server.resume, count, directory
        )  # fmt: skip


@contextmanager
def _outage(plan: Plan, servers: Servers) -> Iterator[_Outage]:
    with workdir(plan.directory) as directory:
        for kind in ("postgres", "mariadb"):
            server = servers.get(kind)
            if server is not None:
                with (
                    servers.database(kind) as url,
                    _frozen(directory, kind, str(url), server) as outage,
                ):
                    yield outage
                return
        with _embedded(directory) as outage:
            yield outage


def _report(outage: _Outage, before: int) -> None:
    print(
        f"{time.perf_counter() - outage.began:8.1f} s  {outage.accepted:>10,} accepted"
        f"  {outage.refused:>6,} refused  {before:>8,} a second"
        f"  {_resident_bytes() >> 20:>6,} MiB resident"
        f"  {_disk_bytes(outage.directory) >> 20:>7,} MiB of log"
        f"  {outage.engine.backpressure().name}",
        flush=True,
    )


def _submit_for(outage: _Outage, seconds: float, every_s: float) -> None:
    bodies = contents(_SIZE)
    submit = outage.engine.submit
    until = time.perf_counter() + seconds
    reported_at, reported = time.perf_counter(), outage.accepted
    while (now := time.perf_counter()) < until:
        if now - reported_at >= every_s:
            _report(outage, int((outage.accepted - reported) / (now - reported_at)))
            reported_at, reported = now, outage.accepted
        for _ in range(100):
            number = outage.accepted
            try:
                submit(SyncItem(f"outage.{number:010d}", bodies[number & 63]), _LOG)
            except (Backpressure, StoreUnavailable):
                outage.refused += 1
                time.sleep(0.05)
                break
            outage.accepted += 1


def run(plan: Plan, servers: Servers) -> list[Row]:
    """Print how the outage went; there is no floor to compare with."""
    seconds = plan.minutes * 60
    with _outage(plan, servers) as outage:
        print(f"\n### Outage: {outage.name}, {seconds:g} s, {_SIZE} B at log\n")
        settle(outage.engine)
        _submit_for(outage, min(2.0, seconds / 4), 3600)
        settle(outage.engine)
        print(f"before: {outage.accepted:,} items, {_resident_bytes() >> 20:,} MiB resident")
        outage.began = time.perf_counter()
        outage.stop()
        try:
            _submit_for(outage, seconds, max(1.0, seconds / 12))
            _report(outage, 0)
            waiting = outage.engine.health().pending_items
        finally:
            outage.go()
        began = time.perf_counter()
        report = outage.engine.flush(max(60.0, 4 * seconds))
        drained_s = time.perf_counter() - began
        _report(outage, int(waiting / drained_s))
        settle(outage.engine, 30)
        stored = outage.count()
        print(
            f"after: {waiting:,} waiting, drained in {drained_s:.1f} s"
            f" ({waiting / drained_s:,.0f} a second, the wait for the next attempt included),"
            f" {_resident_bytes() >> 20:,} MiB resident"
        )
        print(f"stored: {stored:,} of {outage.accepted:,} acknowledged", flush=True)
        if not report.complete or stored < outage.accepted:
            print("ACKNOWLEDGED ITEMS ARE MISSING", file=sys.stderr)
            raise SystemExit(1)
    return []
