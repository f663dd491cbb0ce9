"""An engine whose jobs run when told, for the tests of its two open ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sync_engine.config import SyncEngineConfig
from sync_engine.engine import SyncEngine
from sync_engine.house import Stores
from sync_engine.testing import FlakyStore, ManualRuntime, MemoryArchive


class Bench:
    """One data_dir and one archive, over any number of lives of the engine."""

    def __init__(self, path: Path, **settings: Any) -> None:
        self.path = path
        self.settings = settings
        self.runtime = ManualRuntime(waits_run_jobs=True)
        self.rows = MemoryArchive(self.runtime.clock)
        self.archive = FlakyStore(self.rows)
        self.engine = self._started()

    def _started(self) -> SyncEngine:
        config = SyncEngineConfig(data_dir=self.path, **self.settings)
        stores = Stores(None, self.archive)
        return SyncEngine(config, runtime=self.runtime, stores=stores).start()

    def crash(self) -> SyncEngine:
        """Let the process die, and start another one: nothing is flushed, saved or closed well."""
        house = self.engine._house
        assert house is not None
        house.owner.release()
        house.log._file.close()
        clock = self.runtime.clock
        self.runtime = ManualRuntime(clock, waits_run_jobs=True)
        self.archive = FlakyStore(self.rows.client())
        self.rows = self.archive.store
        self.engine = self._started()
        return self.engine

    def run(self, seconds: float = 1.0) -> None:
        """Let jobs run for some time."""
        self.runtime.event().wait(seconds)

    def expected(self, prefix: str = "") -> dict[str, bytes]:
        """Return what sinks have to hold in the end."""
        return {item.id: item.content for item in self.engine.scan_prefix(prefix)}


def sink_of(bench: Bench, name: str = "copy") -> dict[str, object]:
    """Return what an engine says of a sink."""
    return dict(bench.engine.stats()["sinks"][name])
