"""The whole engine under the deterministic scheduler: any interleaving keeps its promises."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

import sync_engine
from sync_engine.config import SyncEngineConfig
from sync_engine.core.item import Change
from sync_engine.engine import SyncEngine
from sync_engine.house import Stores
from sync_engine.testing import (
    Action,
    FlakyStore,
    History,
    MemoryArchive,
    MemoryCacheStore,
    SimulatedRuntime,
    Violation,
    check,
)

SEEDS = int(os.environ.get("SCHEDULES", "30"))
ROOT = Path(sync_engine.__path__[0])
INTERRUPTED = [ROOT / "flow", ROOT / "wal", ROOT / "engine.py", ROOT / "house"]


class Forgetful(FlakyStore):
    """An archive with a planted fault: it takes every second batch and keeps nothing of it."""

    def apply(self, changes: Sequence[Change]) -> None:
        if self.calls["apply"] % 2 == 1:
            self.calls["apply"] += 1
            return
        super().apply(changes)


def run(
    seed: int, path: Path, archive_kind: type[FlakyStore] = FlakyStore
) -> tuple[list[Violation], str]:
    """Let three clients write, delete and read two ids while the tiers come and go."""
    runtime = SimulatedRuntime(seed, trace=INTERRUPTED, switch_probability=0.05)
    rows, cached = MemoryArchive(runtime.clock), MemoryCacheStore(runtime.clock)
    l3, l2 = archive_kind(rows), FlakyStore(cached)
    history = History()  # counts: virtual time stands still while threads run
    finished: list[str] = []

    def client(engine: SyncEngine, name: str) -> None:
        for number in range(4):
            id = "ab"[int(runtime.random() * 2)]
            if runtime.random() < 0.25:
                delete(engine, name, id)
            else:
                call = history.invoke(name, Action.PUT, id)
                call.ok(engine.submit(id, b"%d" % number).version)
            call = history.invoke(name, Action.GET, id)
            item = engine.get(id)
            call.ok(item.version if item is not None else 0)
            runtime.clock.sleep(runtime.random() * 0.01)
        finished.append(name)

    def delete(engine: SyncEngine, name: str, id: str) -> None:
        call = history.invoke(name, Action.DELETE, id)
        engine.delete(id)
        call.unknown()  # its version is not told

    def main() -> None:
        config = SyncEngineConfig(data_dir=path, read_timeout_s=60.0)
        engine = SyncEngine(config, runtime=runtime, stores=Stores(l2, l3)).start()
        for name in ("one", "two", "three"):
            runtime.spawn(lambda name=name: client(engine, name))
        while len(finished) < 3:
            runtime.clock.sleep(0.005)
            l2.down = runtime.random() < 0.3
        l2.down = False
        assert engine.close(120).complete

    runtime.run(main)
    final = {change.id: change.version for change in rows.scan()}
    return check(history.entries, final), runtime.scheduler.fingerprint


@pytest.mark.parametrize("seed", range(SEEDS))
def test_no_interleaving_breaks_a_promise(seed: int, tmp_path: Path) -> None:
    violations, _ = run(seed, tmp_path)
    assert violations == []


def test_a_schedule_is_replayed_by_its_seed(tmp_path: Path) -> None:
    assert run(3, tmp_path / "a")[1] == run(3, tmp_path / "b")[1]
    assert run(3, tmp_path / "c")[1] != run(4, tmp_path / "d")[1]


def test_a_planted_fault_is_found(tmp_path: Path) -> None:
    found = [
        violation.kind
        for seed in range(40)
        for violation in run(seed, tmp_path / str(seed), Forgetful)[0]
    ]
    assert "lost" in found
