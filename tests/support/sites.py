"""Several engines in one test, on one runtime: each has jobs of its own, and time is the same."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from sync_engine import SyncEngine
from sync_engine.config import SyncEngineConfig
from sync_engine.house import Stores
from sync_engine.testing import (
    FlakyStore,
    ManualRuntime,
    MemoryArchive,
    MemoryCacheStore,
    MemoryFeed,
)


class Site:
    """The part of a runtime that one engine uses."""

    def __init__(self, runtime: Any, name: str) -> None:
        self.runtime = runtime
        self.name = name
        self.clock = runtime.clock
        self.jobs: set[str] = set()

    def lock(self) -> AbstractContextManager[Any]:
        return self.runtime.lock()

    def event(self) -> Any:
        return self.runtime.event()

    def random(self) -> float:
        return self.runtime.random()

    def executor(self) -> Executor:
        return self.runtime.executor()

    def at_exit(self, callback: Callable[[], object] | None) -> None:
        del callback

    def add_job(self, name: str, step: Callable[[], float]) -> None:
        self.jobs.add(name)
        self.runtime.add_job(f"{self.name}/{name}", step)

    def wake(self, name: str) -> None:
        self.runtime.wake(f"{self.name}/{name}")

    def remove_job(self, name: str, timeout_s: float) -> bool:
        self.jobs.discard(name)
        return self.runtime.remove_job(f"{self.name}/{name}", timeout_s)

    def close(self, timeout_s: float) -> list[str]:
        return [name for name in list(self.jobs) if not self.remove_job(name, timeout_s)]


class Fleet:
    """Engines on one archive, one cache and one feed, all in memory and all breakable.

    Attributes:
        engines: By name.
        l2: What each engine sees of the cache.
        l3: What each engine sees of the archive.
        feeds: What each engine sees of the feed.
    """

    def __init__(
        self, path: Path, *names: str, runtime: Any = None, with_feed: bool = True, **settings: Any
    ) -> None:
        self.path = path
        self.runtime = runtime or ManualRuntime(waits_run_jobs=True)
        clock = self.runtime.clock
        self.archive = MemoryArchive(clock)
        self.cache = MemoryCacheStore(clock)
        self.feed = MemoryFeed()
        self.with_feed = with_feed
        self.settings = settings
        self.engines: dict[str, SyncEngine] = {}
        self.l2: dict[str, FlakyStore] = {}
        self.l3: dict[str, FlakyStore] = {}
        self.feeds: dict[str, MemoryFeed] = {}
        for name in names:
            self.open(name)

    def open(self, name: str) -> SyncEngine:
        """Start an engine; under a name that was there before, on the same log."""
        self.l2[name] = FlakyStore(self.cache)
        self.l3[name] = FlakyStore(self.archive.client())
        self.feeds[name] = self.feed.client()
        config = SyncEngineConfig(data_dir=self.path / name, **self.settings)
        stores = Stores(self.l2[name], self.l3[name], self.feeds[name] if self.with_feed else None)
        engine = SyncEngine(config, runtime=Site(self.runtime, name), stores=stores)
        self.engines[name] = engine.start()
        return engine

    def __getitem__(self, name: str) -> SyncEngine:
        return self.engines[name]

    def kill(self, name: str) -> None:
        """Let an engine be gone without a word, as a killed process is."""
        house = self.engines.pop(name)._house
        assert house is not None
        house.runtime.close(0)
        house.log._file.close()
        house.owner.release()

    def settle(self, seconds: float = 0.5) -> None:
        """Let time pass."""
        self.runtime.run_for(seconds)

    def meet(self) -> None:
        """Let time pass until every engine knows that it is not the only one."""
        self.settle(8.0)

    def content(self, name: str, id: str) -> bytes | None:
        """Return what an engine says is stored under an id."""
        item = self.engines[name].get(id)
        return None if item is None else item.content

    def close(self) -> None:
        """Close every engine."""
        for store in (*self.l2.values(), *self.l3.values()):
            store.down = False
        for engine in self.engines.values():
            engine.close(5)


def warm(fleet: Fleet, name: str, id: str) -> bool:
    """Tell whether an engine would answer from memory."""
    return fleet[name].warm(id)[0]


def agreed(fleet: Callable[..., Fleet], *names: str, **settings: Any) -> Fleet:
    """Return engines of which `a` wrote a first value of `x`, and all others have it in memory."""
    made = fleet(*names, **settings)
    made["a"].submit("x", b"1")
    made.settle()
    assert {made.content(name, "x") for name in made.engines} == {b"1"}
    assert all(warm(made, name, "x") for name in made.engines)
    return made
