"""``merkle``, ``verify`` and ``repair`` as they are typed."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from sync_engine import SyncEngine, SyncItem
from sync_engine.config import SyncEngineConfig

Cli = Callable[..., Any]


def test_commands_tell_and_mend(cli: Cli, tmp_path: Path) -> None:
    here, there = ("--data-dir", str(tmp_path / "a")), ("--data-dir", str(tmp_path / "b"))
    url = f"sqlite:///{tmp_path}/a/archive.db"
    assert cli("put", "a.b", "--text", "1", *here).code == 0
    assert cli("put", "c", "--text", "2", *there).code == 0

    assert cli("merkle", "root", "--json", *here).json["live"] == 1
    assert cli("merkle", "show", "a", "--json", *here).json["children"][0]["path"] == "a.b"
    assert cli("merkle", "show", "nothing", *here).code == 1
    compared = cli("merkle", "diff", url, *there)
    assert compared.code == 1
    assert cli("repair", "--from", url, "--json", *there).json["ok"]
    assert cli("merkle", "root", "--json", *there).json["live"] == 2
    assert cli("verify", "--json", *there).json["items"] == 2
    assert cli("repair", "--dry-run", "--json", *there).json["actions"] == []
    assert cli("merkle", "build", "--json", *there).json["live"] == 2


def test_a_damaged_row_is_told_and_a_dry_run_leaves_everything(cli: Cli, data_dir: Path) -> None:
    for id in ("a", "b"):
        assert cli("put", id, "--text", "hello").code == 0
    with closing(sqlite3.connect(data_dir / "archive.db")) as db, db:
        assert db.execute("UPDATE sync_items SET version = version + 1 WHERE id = 'a'").rowcount

    assert cli("verify").code == 5
    told = cli("repair", "--dry-run", "--json").json
    assert told["dry_run"]
    assert told["actions"]
    assert cli("verify").code == 5
    assert cli("repair", "--dry-run", "--json").json == told


def test_a_comparison_that_may_tell_nothing_does_not_say_that_all_is_equal(
    cli: Cli, tmp_path: Path
) -> None:
    here, there = ("--data-dir", str(tmp_path / "a")), ("--data-dir", str(tmp_path / "b"))
    url = f"sqlite:///{tmp_path}/a/archive.db"
    assert cli("put", "a", "--text", "1", *here).code == 0
    for id in ("b", "c"):
        assert cli("put", id, "--text", "2", *there).code == 0

    refused = cli("merkle", "diff", url, "--limit", "0", *there)
    assert (refused.code, refused.out) == (2, "")
    for limit, told in (("2", True), ("3", False)):
        ran = cli("merkle", "diff", url, "--limit", limit, "--json", *there)
        assert ran.code == 1
        assert ("there are more than" in ran.err) is told
    assert len(ran.lines) == 3


@pytest.mark.parametrize(
    "words",
    [
        ("scan", "\udcff"),
        ("scan", "--after", "\udcff"),
        ("merkle", "show", "\udcff"),
        ("merkle", "show", "--after", "\udcff"),
        ("merkle", "diff", "sqlite:////nowhere/x.db", "--path", "\udcff"),
        ("verify", "--after", "\udcff"),
        ("repair", "--from", "sqlite:////nowhere/x.db", "--path", "\udcff"),
    ],
    ids=lambda words: "-".join(words[:-1]),
)
def test_a_word_that_is_not_utf8_is_a_mistake_of_who_wrote_it(
    cli: Cli, words: tuple[str, ...]
) -> None:
    """And no outage that would pass."""
    assert cli("put", "a", "--text", "1").code == 0

    ran = cli(*words)

    assert ran.code == 2
    assert "must be UTF-8" in ran.err


@pytest.mark.external
def test_the_mirror_tells_where_it_is_from_and_how_old_it_is(
    cli: Cli, data_dir: Path, redis_url: str
) -> None:
    given = ("--redis-url", redis_url, "--set", "merkle_mirror=true", "--from", "redis")
    config = SyncEngineConfig(data_dir=data_dir, redis_url=redis_url, merkle_mirror=True)
    with SyncEngine(config) as engine:
        engine.submit_many([SyncItem(id, b"v") for id in ("a.b", "c", "d")])
        assert engine.flush(30).complete
        engine._open().mirror.step()
    there = cli("merkle", "root", "--json").json

    root = cli("merkle", "root", "--json", *given)
    assert root.code == 0, root.err
    told = {name: root.json[name] for name in ("hash", "live", "position", "source", "behind")}
    expected = {name: there[name] for name in ("hash", "live", "position")}
    assert told == expected | {"source": "mirror", "behind": 0}
    assert 0 <= root.json["age_s"] < 60

    assert cli("put", "late", "--text", "1").code == 0
    shown = cli("merkle", "show", "--json", "--limit", "2", *given).json
    assert [child["path"] for child in shown["children"]] == ["a", "c"]
    assert (shown["position"], shown["next"]) == (there["position"], "d")
    assert shown["behind"] >= 1
    text = cli("merkle", "show", "--limit", "2", *given)
    assert there["position"] in text.out
    assert "--from archive --after 'd'" in text.err

    assert cli("merkle", "show", "nothing", *given).code == 4
    assert cli("merkle", "show", "--after", "c", *given).code == 2
    assert cli("merkle", "root", "--from", "redis").code == 2
