"""quickstart: real files, a real kill, and a verdict that can be no."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from sync_engine.cli import main
from tests.cli.conftest import Cli

FILES = {"a.txt", "empty", "sub/b.bin", "sub/grün é.txt"}


def test_every_file_comes_back_from_the_killed_process(
    cli: Cli, tree: Path, data_dir: Path
) -> None:
    ran = cli("quickstart", str(tree), "--json")

    assert ran.code == 0
    report = ran.json
    assert report["complete"] is True
    assert report["killed"]["signal"] == 9
    assert report["files"] == report["archived"] == report["log"]["positions"] == len(FILES)
    assert report["data_dir"] == str(data_dir)
    for reading in ("read_after_kill", "read_after_flush", "read_again"):
        assert report[reading]["verified"] == len(FILES)
        assert sum(report[reading]["by_tier"].values()) == len(FILES)
    assert report["read_again"]["by_tier"] == {"memory": len(FILES)}
    assert report["stats"]["l1"]["items"] == len(FILES)
    assert {line["id"] for line in cli("scan", "--json").lines} == FILES
    assert cli("get", "sub/b.bin").raw == bytes(range(256))


def test_the_tables_show_what_was_measured(cli: Cli, tree: Path) -> None:
    ran = cli("quickstart", str(tree))

    assert ran.code == 0
    for word in ("overlay", "L1 memory", "filter", "L3 archive", "log", "signal 9"):
        assert word in ran.out
    assert "Next:" in ran.out.splitlines()
    assert "All 4 files came back from a killed process, byte for byte." in ran.out
    assert "L2 Redis" not in ran.out


def test_a_file_that_does_not_come_back_is_told(
    cli: Cli, tree: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The verdict is measured: what is damaged after the kill makes it a no."""
    from sync_engine.cli import quickstart

    look = quickstart.look_into_log

    def damage(config: object, clock: object) -> object:
        found = look(config, clock)  # type: ignore[arg-type]
        for path in data_dir.glob("*.log.*"):
            path.unlink()
        with closing(sqlite3.connect(data_dir / "archive.db")) as db, db:
            db.execute("DELETE FROM sync_items WHERE id = 'a.txt'")
            db.execute("UPDATE sync_items SET content = x'00' WHERE id = 'sub/b.bin'")
        return found

    monkeypatch.setattr(quickstart, "look_into_log", damage)
    ran = cli("quickstart", str(tree), "--set", "fsync_interval_ms=1000", "--json")

    assert ran.code == 1
    assert ran.json["complete"] is False
    assert "a.txt" in ran.json["read_again"]["missing"]


def test_without_a_data_dir_it_leaves_a_temporary_one(
    tree: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tree)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    assert main(["quickstart"]) == 0

    (made,) = tmp_path.glob("sync-engine-quickstart-*")
    shown = capsys.readouterr()
    assert f"--data-dir {made} get a.txt" in shown.out
    assert not (tree / "sync-engine-data").exists()
    assert main(["--data-dir", str(made), "get", "a.txt"]) == 0
    assert capsys.readouterr().out == "alpha"
    shutil.rmtree(made)


def test_where_nothing_is_it_takes_its_own_files(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nothing").mkdir()
    monkeypatch.chdir(tmp_path / "nothing")

    ran = cli("quickstart", "--limit", "7", "--json")

    assert ran.code == 0
    assert ran.json["directory"].endswith("sync_engine")
    assert ran.json["files"] == 7


def test_a_directory_named_and_empty_is_a_mistake(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()

    assert cli("quickstart", str(tmp_path / "nothing")).code == 2


def test_a_writer_that_cannot_start_is_told(cli: Cli, tree: Path, data_dir: Path) -> None:
    data_dir.mkdir()
    data_dir.chmod(0o777)

    ran = cli("quickstart", str(tree))

    assert ran.code == 1
    assert "writable for everybody" in ran.err


@pytest.mark.external
def test_it_uses_the_servers_that_are_configured(
    cli: Cli, tree: Path, redis_url: str, postgres_url: str
) -> None:
    ran = cli("quickstart", str(tree), "--redis-url", redis_url, "--sql-url", postgres_url)

    assert ran.code == 0, ran.err
    assert "L2 Redis" in ran.out
    ids = [line["id"] for line in cli("scan", "--sql-url", postgres_url, "--json").lines]
    assert len(ids) == len(FILES)
    assert all(id.startswith("quickstart-") for id in ids)


@pytest.mark.external
def test_it_keeps_to_itself_in_a_redis_of_others(
    cli: Cli, tree: Path, redis_server: object
) -> None:
    url = redis_server.url  # type: ignore[attr-defined]

    assert cli("quickstart", str(tree), "--redis-url", url).code == 0

    keys = redis_server.execute("KEYS", "*")  # type: ignore[attr-defined]
    assert keys
    assert all(key.startswith(b"quickstart-") for key in keys)
