"""Several callers ask for one id at one moment: the tiers are asked once, and all are told."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sync_engine import SyncEngine, SyncEngineConfig
from sync_engine.core.item import Change
from sync_engine.house import Stores
from sync_engine.runtime import SystemClock
from sync_engine.testing import FlakyStore, MemoryArchive, MemoryCacheStore


class Joined:
    """Stands in for the event that a flight lands by, and tells when somebody waits for it."""

    def __init__(self, real: Any) -> None:
        self._real = real
        self.waited = threading.Event()
        self.set: Callable[[], None] = real.set

    def wait(self, timeout_s: float) -> bool:
        self.waited.set()
        return bool(self._real.wait(timeout_s))


def test_who_joins_a_question_is_not_told_its_own_older_change(tmp_path: Path) -> None:
    """It waits for an L2 that is away, and was heard to have been replaced in the archive."""
    clock = SystemClock()
    cache, archive = FlakyStore(MemoryCacheStore(clock)), FlakyStore(MemoryArchive(clock))
    stores = Stores(cache, archive)
    with SyncEngine(SyncEngineConfig(data_dir=tmp_path), stores=stores) as engine:
        house: Any = engine._house
        cache.down = True
        own = engine.submit("x", b"own")
        own.wait("archive", timeout=10)
        assert house.log.pending("x") is not None
        theirs = Change("x", own.version + 1_000_000, b"theirs")
        archive.store.apply([theirs])
        house.heard.note([theirs])

        with ThreadPoolExecutor(1) as pool:
            answers = []

            def join(operation: str) -> None:
                if operation == "get_many":
                    archive.on_call = None
                    flight = house.reader._flights["x"]
                    joined = flight.landed = Joined(flight.landed)
                    answers.append(pool.submit(engine.get, "x"))
                    assert joined.waited.wait(10)

            archive.on_call = join
            first = engine.get("x")
            (second,) = [answer.result(10) for answer in answers]
        cache.down = False

    assert first is not None
    assert second is not None
    assert first.content == second.content == b"theirs"
