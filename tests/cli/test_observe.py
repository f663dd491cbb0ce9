"""stats, health, flush, migrate, config."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from sync_engine.stores.sql import SCHEMA_VERSION
from tests.cli.conftest import Cli


def test_stats_tell_of_every_part(cli: Cli) -> None:
    cli("put", "a", "--text", "x")

    ran = cli("stats", "--json")

    assert ran.code == 0
    assert ran.json["log"]["head"] == 1
    assert ran.json["cursors"] == {"l3": 1}
    assert {"l1", "l2", "l3", "filter", "metrics", "backpressure"} <= set(ran.json)
    assert "pending_items" in cli("stats").out


def test_health_of_an_engine_that_is_well(cli: Cli) -> None:
    cli("put", "a", "--text", "x")

    ran = cli("health", "--json")

    assert ran.code == 0
    assert ran.json["ready"] is True
    assert ran.json["tiers"]["l3"]["latency_s"] > 0
    assert "all is well" in cli("health").out


def test_flush_tells_that_all_is_delivered(cli: Cli) -> None:
    cli("put", "a", "--text", "x")

    assert cli("flush", "--json").json["left"] == {}
    assert "everything is delivered" in cli("flush").out


def test_migrate_creates_and_repeats(cli: Cli, any_sql_url: str) -> None:
    url = ["--sql-url", any_sql_url, "--json"]

    dry = cli("migrate", "--dry-run", *url)
    assert dry.json == {"before": 0, "after": SCHEMA_VERSION, "dry_run": True}
    assert cli("migrate", "--dry-run", *url).json["before"] == 0
    assert cli("migrate", *url).json["before"] == 0
    assert cli("migrate", *url).json["before"] == SCHEMA_VERSION
    assert cli("migrate", "--dry-run", *url).json["before"] == SCHEMA_VERSION
    assert cli("put", "a", "--text", "x", *url, "--set", "create_schema=false").code == 0
    assert cli("get", "a", "--sql-url", any_sql_url).raw == b"x"


def test_a_dry_run_makes_no_file(cli: Cli, data_dir: Path) -> None:
    assert "no tables" in cli("migrate", "--dry-run").out
    assert not data_dir.exists()
    assert cli("migrate").code == 0
    assert (data_dir / "archive.db").exists()


@pytest.mark.parametrize("url", ["mysql://u:hidden@h/d", "postgresql://u:hidden@h/d"])
def test_the_statements_are_printed_without_a_server(url: str, cli: Cli) -> None:
    ran = cli("migrate", "--sql", "--sql-url", url)

    assert ran.code == 0
    assert ran.out.startswith("CREATE TABLE")
    assert "hidden" not in ran.out


def test_the_statements_make_the_tables(cli: Cli, data_dir: Path) -> None:
    statements = cli("migrate", "--sql").out
    data_dir.mkdir(mode=0o700)
    with closing(sqlite3.connect(data_dir / "archive.db")) as db:
        db.executescript(statements)

    assert "nothing to do" in cli("migrate").out


def test_migrate_without_its_server(cli: Cli) -> None:
    url = "mysql://root:x@127.0.0.1:1/x"

    assert cli("migrate", "--sql-url", url).code == 4
    assert cli("migrate", "--dry-run", "--sql-url", url).code == 4


def test_explain_shows_what_was_changed(cli: Cli, data_dir: Path) -> None:
    ran = cli("config", "explain", "--changed", "--set", "l2_timeout_s=2s", "--json")

    assert {row["setting"]: row["value"] for row in ran.json} == {
        "data_dir": str(data_dir),
        "l2_timeout_s": "2 s",
    }
    assert not data_dir.exists()
    assert len(cli("config", "explain", "--json").json) > 40
    assert "Largest content of one item." in " ".join(cli("config", "explain").out.split())
