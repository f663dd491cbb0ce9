"""Servers die, hang and forget under load: reads never go back, and everything arrives in the end.

Short in the suite; ``OUTAGE_SECONDS=60 pytest tests/faults/test_outages.py`` is the full length.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from sync_engine.config import SyncEngineConfig
from sync_engine.engine import SyncEngine
from sync_engine.errors import Backpressure, StoreUnavailable

OUTAGE_S = float(os.environ.get("OUTAGE_SECONDS", "3"))
KEYS = 50
SERVED = 2000
pytestmark = [pytest.mark.external, pytest.mark.timeout(600)]


class Load:
    """One writer and two readers; no reader sees less than was acknowledged before it asked."""

    def __init__(self, engine: SyncEngine) -> None:
        self.engine = engine
        self.acked: dict[str, int] = {}
        self.deleted: set[str] = set()
        self.faults: list[str] = []
        self.reads = self.writes = self.unavailable = 0
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._write),
            threading.Thread(target=self._read, args=(1,)),
            threading.Thread(target=self._read, args=(2,)),
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in self._threads), "a caller hangs"

    def goes_on(self, *tiers: str) -> None:
        """Wait until callers were served some more, and some of what they wrote was delivered."""
        reads, writes = self.reads + SERVED, self.writes + SERVED
        head = self.engine.stats()["log"]["head"]
        deadline = time.monotonic() + 60
        while True:
            cursors = self.engine.stats()["cursors"]
            delivered = all(cursors[tier] > head for tier in tiers)
            if delivered and self.reads >= reads and self.writes >= writes:
                return
            assert time.monotonic() < deadline, (cursors, head, self.reads, self.writes)
            time.sleep(0.01)

    def _write(self) -> None:
        rng = random.Random(1)
        n = 0
        while not self._stop.is_set():
            n += 1
            id = f"k{rng.randrange(KEYS)}"
            try:
                self.engine.submit(id, b"%d" % n)
            except Backpressure:
                continue
            self.acked[id] = n
            self.writes += 1
            if n % 50 == 0:
                self._stop.wait(0.002)

    def _read(self, seed: int) -> None:
        rng = random.Random(seed)
        while not self._stop.is_set():
            id = f"k{rng.randrange(KEYS)}"
            known = self.acked.get(id, 0)
            if rng.random() < 0.3:
                self.engine._house.l1.discard(id)  # type: ignore[union-attr]
            started = time.monotonic()
            try:
                item = self.engine.get(id)
            except StoreUnavailable:
                self.unavailable += 1
                continue
            if time.monotonic() - started > 12:
                self.faults.append(f"{id}: a read took {time.monotonic() - started:.1f} s")
            self.reads += 1
            found = int(item.content) if item is not None else 0
            if found < known:
                self.faults.append(f"{id}: read {found}, {known} was acknowledged before")


@pytest.fixture(params=["mariadb", "postgres"])
def sql(request: pytest.FixtureRequest) -> tuple[str, Any]:
    url = request.getfixturevalue("archive_url")(request.param)
    return url, request.getfixturevalue(f"{request.param}_server")


@pytest.fixture
def start(tmp_path: Path, redis_server: Any) -> Iterator[Callable[[str], SyncEngine]]:
    engines = []

    def start_(sql_url: str) -> SyncEngine:
        config = SyncEngineConfig(
            data_dir=tmp_path,
            sql_url=sql_url,
            redis_url=redis_server.url,
            l3_timeout_s=2,
            l3_connect_timeout_s=1,
            l2_timeout_s=0.3,
            l2_connect_timeout_s=0.3,
            delivery_delay_s_max=1,
            read_timeout_s=3,
            l1_bytes_max=20_000,
        )
        engines.append(SyncEngine(config).start())
        return engines[-1]

    yield start_
    for engine in engines:
        engine.close(timeout=5)


def converge(engine: SyncEngine, load: Load) -> None:
    """After the servers are back: all is archived, the newest value wins everywhere."""
    assert load.faults == []
    assert load.writes > 100
    assert load.reads > 100
    assert engine.flush(60).complete
    for clear_first in (False, True):
        if clear_first:
            engine._house.l1.clear()  # type: ignore[union-attr]
        for id, n in load.acked.items():
            assert engine.get(id).content == b"%d" % n  # type: ignore[union-attr]
    house: Any = engine._house
    rows = house.stores.l3.get_many(list(load.acked))
    assert {id: int(row.content) for id, row in rows.items()} == load.acked
    cached = house.stores.l2.get_many(list(load.acked))
    assert all(int(row.content) == load.acked[id] for id, row in cached.items() if row.content)


def test_sql_killed_under_load_and_back(start: Callable[[str], SyncEngine], sql: Any) -> None:
    url, server = sql
    engine = start(url)
    with Load(engine) as load:
        load.goes_on("l2", "l3")
        server.kill()
        time.sleep(OUTAGE_S)
        assert engine.submit("during", b"the outage").version
        assert engine.get("during").content == b"the outage"  # type: ignore[union-attr]
        server.start()
        load.goes_on("l3")
    converge(engine, load)
    assert engine.get("during").content == b"the outage"  # type: ignore[union-attr]


def test_sql_hung_under_load_and_back(start: Callable[[str], SyncEngine], sql: Any) -> None:
    url, server = sql
    engine = start(url)
    with Load(engine) as load:
        load.goes_on("l2", "l3")
        server.pause()
        time.sleep(OUTAGE_S)
        server.resume()
        load.goes_on("l3")
    converge(engine, load)


@pytest.mark.parametrize("hurt", ["kill", "flush", "pause"])
def test_redis_killed_emptied_or_hung_under_load(
    start: Callable[[str], SyncEngine],
    archive_url: Callable[[str], str],
    redis_server: Any,
    hurt: str,
) -> None:
    engine = start(archive_url("sqlite"))
    with Load(engine) as load:
        for _ in range(2):
            load.goes_on("l2", "l3")
            if hurt == "flush":
                redis_server.flush()
                continue
            getattr(redis_server, hurt)()
            time.sleep(OUTAGE_S / 3)
            redis_server.start() if hurt == "kill" else redis_server.resume()
        load.goes_on("l2", "l3")
    assert load.unavailable == 0, "the archive was there all the time"
    converge(engine, load)
