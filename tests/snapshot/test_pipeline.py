"""A pipeline whose archive is replicated: lost with its directory, and back at the next start."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from sync_engine.errors import ConfigError, StoreUnavailable
from sync_engine.pipeline import Pipeline, PipelineConfig, load
from tests.snapshot.kit import Replica


class Setting:
    """A pipeline file with a `snapshot` sink, and the places it names."""

    def __init__(self, directory: Path) -> None:
        self.data_dir = directory / "data"
        self.target = directory / "target"
        self.target.mkdir()
        self._path = directory / "pipeline.toml"
        self._replica = Replica(directory, str(self.target))
        self._replica.state_dir = self.data_dir / "backup.replica"

    def load(self) -> PipelineConfig:
        self._path.write_text(
            f"[engine]\ndata_dir = {json.dumps(str(self.data_dir))}\n"
            f'[[sink]]\nname = "backup"\ntype = "snapshot"\n'
            f"target = {json.dumps(str(self.target))}\n"
            "interval_s = 0.1\npoll_s = 0.05\nlease = false\n"
        )
        return load(self._path, {})

    def replicated(self, count: int) -> None:
        """Run the pipeline until so many items are in the replica; stop it."""
        with Pipeline(self.load()) as pipeline:
            for n in range(count):
                pipeline.engine.submit(f"item.{n}", str(n).encode())
            assert pipeline.engine.flush(30, sinks=True).complete
            self._replica.durable()


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return Setting(tmp_path)


def test_a_pipeline_whose_directory_is_lost_has_everything_at_its_next_start(
    setting: Setting,
) -> None:
    setting.replicated(100)
    shutil.rmtree(setting.data_dir)

    with Pipeline(setting.load()) as pipeline:
        assert pipeline.engine.count_prefix("item.") == 100
        old = pipeline.engine.get("item.7")
        assert old is not None
        assert old.content == b"7"
        assert pipeline.engine.submit("item.7", b"newer").version > old.version
        assert pipeline.engine.flush(30, sinks=True).complete
        assert pipeline.status()["log"]["pending_items"] == 0


def test_a_log_that_outlived_its_archive_is_not_put_beside_an_older_one(setting: Setting) -> None:
    setting.replicated(10)
    for path in setting.data_dir.glob("archive.db*"):
        path.unlink()
    logs = {path: path.read_bytes() for path in setting.data_dir.glob("*.log.db")}
    assert logs

    with pytest.raises(ConfigError, match=r"move .*data away.*or run `sync-engine restore"):
        Pipeline(setting.load()).start()

    assert not (setting.data_dir / "archive.db").exists()
    assert {path: path.read_bytes() for path in logs} == logs

    setting.data_dir.rename(setting.data_dir.with_name("away"))  # as the message says
    with Pipeline(setting.load()) as pipeline:
        assert pipeline.engine.count_prefix("item.") == 10


def test_a_replica_that_cannot_be_looked_at_starts_no_empty_archive(setting: Setting) -> None:
    setting.replicated(10)
    shutil.rmtree(setting.data_dir)
    for head in setting.target.rglob("HEAD*"):
        head.write_bytes(b"not what was written")

    with pytest.raises(StoreUnavailable, match="HEAD"):
        Pipeline(setting.load()).start()

    assert not list(setting.data_dir.glob("*.db"))
