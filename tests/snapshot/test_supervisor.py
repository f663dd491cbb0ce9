"""The engine's side: a child that is started, watched, started again, and ended."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from sync_engine import SyncEngine
from sync_engine.errors import ConfigError
from sync_engine.ports import AdapterContext
from sync_engine.runtime import SystemRuntime
from sync_engine.sinks.snapshot import SnapshotSupervisor, from_settings
from tests.snapshot.kit import until


@pytest.fixture
def context(tmp_path: Path) -> Iterator[AdapterContext]:
    runtime = SystemRuntime("supervised")
    (tmp_path / "data").mkdir()
    yield AdapterContext(
        name="backup", runtime=runtime, data_dir=tmp_path / "data", wake=lambda: None
    )
    runtime.close(5)


def make(context: AdapterContext, tmp_path: Path) -> SnapshotSupervisor:
    return from_settings(
        context, target=str(tmp_path / "target"), interval_s=0.2, poll_s=0.05, lease=False
    )


def test_an_archive_is_replicated_its_directory_lost_and_brought_back(
    context: AdapterContext, tmp_path: Path
) -> None:
    (tmp_path / "target").mkdir()
    supervisor = make(context, tmp_path)
    assert not supervisor.prepare()
    with SyncEngine.open(context.data_dir) as engine:
        supervisor.attach()
        supervisor.attach()
        for n in range(100):
            engine.submit(f"item.{n}", str(n).encode())
        assert engine.flush(30).complete
        assert supervisor.wait(timeout_s=60) >= 1
        assert supervisor.position() >= 1
        assert supervisor.ping() < 5
        assert supervisor.progress()["snapshot_txid"] >= 1
    supervisor.close()
    supervisor.close()
    shutil.rmtree(context.data_dir)

    again = make(context, tmp_path)
    assert again.prepare()
    with SyncEngine.open(context.data_dir) as engine:
        assert engine.count_prefix("item.") == 100
        old = engine.get("item.7")
        assert old is not None
        receipt = engine.submit("item.7", b"newer")
        assert receipt.version > old.version
        assert engine.flush(30).complete
        log = engine.stats()["log"]
        assert (log["head"], log["released"], log["lost_positions"]) == (1, 1, 0)


def test_a_child_that_dies_is_started_again(context: AdapterContext, tmp_path: Path) -> None:
    supervisor = make(context, tmp_path)
    with SyncEngine.open(context.data_dir) as engine:
        supervisor.attach()
        engine.submit("a", b"1")
        engine.flush(30)
        supervisor.wait(timeout_s=60)
        first = supervisor.status()["pid"]
        os.kill(first, signal.SIGKILL)

        def running_again() -> bool:
            status = supervisor.status()
            return status["pid"] != first and status["phase"] == "running"

        until(running_again)
        engine.submit("b", b"2")
        engine.flush(30)
        supervisor.wait(timeout_s=60)
        assert supervisor.restarts == 1
        last = supervisor.status()["pid"]
        supervisor.close()

    assert not Path(f"/proc/{last}").exists()
    assert supervisor.status()["phase"] == "stopped"


def test_settings_are_checked_and_never_ignored(context: AdapterContext, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="target"):
        from_settings(context)
    with pytest.raises(ConfigError, match="encryption"):
        from_settings(context, target=str(tmp_path), encryption="aes")
    with pytest.raises(ConfigError, match="compression_level"):
        from_settings(context, target=str(tmp_path), compression_level=99)
