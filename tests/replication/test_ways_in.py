"""Replication from a command line and from a pipeline file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sync_engine import SyncEngine
from sync_engine.cli import main
from sync_engine.errors import ConfigError
from sync_engine.pipeline import Pipeline, load
from tests.replication.nodes import Node, until

Make = Callable[..., Node]


def test_the_command_pulls_once_and_reports(
    make_node: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    b = make_node("b").start()
    b.engine.submit("k", b"v")
    b.engine.flush()
    mine = str(tmp_path / "mine")

    code = main(
        ["replicate-engine", "--data-dir", mine, "--peer-sql", b.sql_url, "--peer-name", "b",
         "--once", "--json"]
    )  # fmt: skip

    assert code == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["peer"] == "b"
    assert told["connected"] is True
    with SyncEngine.open(mine) as engine:
        item = engine.get("k")
        assert item is not None
        assert item.content == b"v"


def test_the_command_without_a_peer_says_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["replicate-engine", "--data-dir", str(tmp_path / "x")])

    assert code == 2
    assert "--peer-redis" in capsys.readouterr().err


def test_a_pipeline_file_names_peers(make_node: Make, tmp_path: Path) -> None:
    b = make_node("b").start()
    b.engine.submit("uk.k", b"v")
    b.engine.submit("fr.k", b"v")
    b.engine.flush()
    file = tmp_path / "pipeline.toml"
    file.write_text(
        f'[engine]\ndata_dir = "{tmp_path / "mine"}"\n'
        f'[[peer]]\nname = "b"\nsql_url = "{b.sql_url}"\ninterval_s = "1s"\nid_prefix = "uk."\n'
    )

    with Pipeline(load(file, {})) as pipeline:
        until(lambda: pipeline.engine.get("uk.k") is not None)
        assert pipeline.engine.get("fr.k") is None
        assert "peer-b-archive" in pipeline.status()["sources"]


def test_a_wrong_peer_section_is_told_whole(tmp_path: Path) -> None:
    file = tmp_path / "pipeline.toml"
    file.write_text('[[peer]]\nname = "b"\nintervall_s = 3\n[[peer]]\nredis_url = "redis://h"\n')

    with pytest.raises(ConfigError) as told:
        load(file, {})

    for part in ("intervall_s", "redis_url or sql_url is missing", "name is missing"):
        assert part in str(told.value)
