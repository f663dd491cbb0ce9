"""The wiring: orders of lines that are promises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sync_engine import Durability, SubmitOptions, SyncEngine, SyncEngineConfig
from sync_engine.house import Stores
from sync_engine.testing import ManualClock, ManualRuntime, MemoryArchive


def test_a_write_that_comes_as_the_log_goes_idle_is_written_soon(tmp_path: Path) -> None:
    """Else a `memory` write would wait for the next look, a second later."""
    clock = ManualClock()
    runtime = ManualRuntime(clock=clock)
    stores = Stores(None, MemoryArchive(clock=clock))
    engine = SyncEngine(SyncEngineConfig(data_dir=tmp_path), runtime=runtime, stores=stores).start()
    house: Any = engine._house
    for _ in range(20):
        clock.advance(1)
        for job in ("l3", "keeper", "log"):
            runtime.step(job)
    wanted: dict[str, int] = {}
    want, idle = house.log.want, house.log.idle

    def noted(name: str, position: int) -> None:
        wanted[name] = position
        want(name, position)

    def overtaken() -> bool:
        answer = idle()
        engine.submit("late", b"v", SubmitOptions(durability=Durability.MEMORY))
        return bool(answer)

    house.log.want, house.log.idle = noted, overtaken
    runtime.step("log")

    assert wanted["log"] <= house.log.head()  # reached already: the job is woken at once
    house.log.want, house.log.idle = want, idle
    runtime.step("log")
    assert house.log.written == house.log.head()
    house.log._file.close()
    house.owner.release()
