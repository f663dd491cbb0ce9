"""Both ends under the deterministic scheduler: no interleaving loses, skips or reorders."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

import sync_engine
from sync_engine.config import SyncEngineConfig
from sync_engine.core.item import Change
from sync_engine.engine import SyncEngine
from sync_engine.errors import StoreUnavailable
from sync_engine.house import Stores
from sync_engine.testing import (
    ListSource,
    MemoryArchive,
    MemorySink,
    PositionedMemorySink,
    SimulatedRuntime,
)

SEEDS = int(os.environ.get("SCHEDULES", "12"))
ROOT = Path(sync_engine.__path__[0])
INTERRUPTED = [ROOT / "flow", ROOT / "wal", ROOT / "engine.py", ROOT / "house"]


@pytest.mark.parametrize("kind", [MemorySink, PositionedMemorySink])
@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_sink_ends_up_equal_to_the_engine(
    seed: int, kind: type[MemorySink], tmp_path: Path
) -> None:
    """A source and a client write while the sink is added, fails, pauses and comes back."""
    runtime = SimulatedRuntime(seed, trace=INTERRUPTED, switch_probability=0.05)
    sink = kind()
    source = ListSource(Change(f"s.{n % 5}", 0, b"%d" % n) for n in range(20))
    expected: dict[str, bytes] = {}
    newest: dict[str, int] = {}

    def flaky(changes: Sequence[Change]) -> None:
        if runtime.random() < 0.2:
            raise StoreUnavailable("memory", "apply", "now and then")
        for change in changes:
            assert newest.get(change.id, 0) <= change.version or sink.rows[change.id]
            newest[change.id] = max(newest.get(change.id, 0), change.version)

    def client(engine: SyncEngine) -> None:
        for n in range(8):
            id = "ab"[n % 2]
            if runtime.random() < 0.3:
                engine.delete(id)
            else:
                engine.submit(id, b"%d" % n)
            runtime.clock.sleep(runtime.random() * 0.02)
            if n == 4:
                engine.pause("copy")
                runtime.clock.sleep(0.01)
                engine.resume("copy")

    def main() -> None:
        config = SyncEngineConfig(data_dir=tmp_path, delivery_delay_s_min=0.01)
        stores = Stores(None, MemoryArchive(runtime.clock))
        engine = SyncEngine(config, runtime=runtime, stores=stores).start()
        engine.submit("old", b"1")
        sink.on_apply = flaky
        engine.add_sink("copy", sink)
        engine.add_source("list", source, items_max=3)
        done: list[bool] = []

        def spawned() -> None:
            client(engine)
            done.append(True)

        runtime.spawn(spawned)
        while not done or source.acknowledged < 20:
            runtime.clock.sleep(0.05)
        sink.on_apply = None
        assert engine.flush(300, sinks=True).complete
        expected.update((item.id, item.content) for item in engine.scan_prefix())
        engine.close(60)

    runtime.run(main)
    assert sink.contents() == expected
    assert {f"s.{n}" for n in range(5)} <= set(expected)
    assert [expected[f"s.{n}"] for n in range(5)] == [b"%d" % (15 + n) for n in range(5)]
