"""dlq: what an archive refuses is put aside, shown, sent again or dropped."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.cli.conftest import Cli

REFUSE = """
CREATE TRIGGER refuse BEFORE INSERT ON sync_items WHEN CAST(NEW.id AS TEXT) LIKE 'bad%'
BEGIN SELECT RAISE(ABORT, 'the rule says no'); END
"""


@pytest.fixture
def archive(cli: Cli, data_dir: Path) -> Callable[[str], None]:
    """Run a statement in the archive."""
    assert cli("put", "first", "--text", "x").code == 0

    def run(statement: str) -> None:
        with closing(sqlite3.connect(data_dir / "archive.db")) as db, db:
            db.execute(statement)

    return run


@pytest.fixture
def position(cli: Cli, archive: Callable[[str], None]) -> str:
    archive(REFUSE)
    ran = cli("put", "bad", "--text", "poison")
    assert ran.code == 0
    assert "1 dead letter" in ran.err
    assert cli("put", "good", "--text", "fine").code == 0
    return str(cli("dlq", "list", "--json").json[0]["position"])


def test_no_letters(cli: Cli, archive: Callable[[str], None]) -> None:
    assert "no dead letters" in cli("dlq", "list").out
    assert cli("dlq", "list", "--json").json == []


def test_a_refused_change_is_listed_and_shown(cli: Cli, position: str) -> None:
    (letter,) = cli("dlq", "list", "--json").json
    assert (letter["id"], letter["destination"], letter["bytes"]) == ("bad", "l3", 6)
    assert "content" not in letter

    assert "bad" in cli("dlq", "list").out
    assert cli("dlq", "show", position, "--raw").raw == b"poison"
    (shown,) = cli("dlq", "show", position, "--json").json
    assert shown["content"] == "poison"
    assert cli("dlq", "show", "999").code == 2
    assert cli("get", "good").raw == b"fine"
    assert cli("health").code == 1


def test_a_mended_change_is_delivered(
    cli: Cli, archive: Callable[[str], None], position: str
) -> None:
    ran = cli("dlq", "requeue", position, "--json")
    assert ran.code == 1
    assert (ran.json["requeued"], ran.json["refused"]) == (1, 1)
    assert cli("dlq", "requeue", "999").code == 2

    archive("DROP TRIGGER refuse")
    ran = cli("dlq", "requeue", "--all", "--json")

    assert ran.code == 0
    assert ran.json == {"requeued": 1, "delivered": 1, "refused": 0, "left": {}}
    assert cli("dlq", "list", "--json").json == []
    assert cli("get", "bad").raw == b"poison"


def test_dropping_asks_first(cli: Cli, position: str) -> None:
    ran = cli("dlq", "drop", position)
    assert ran.code == 2
    assert "add --yes" in ran.err
    assert len(cli("dlq", "list", "--json").json) == 1

    assert cli("dlq", "drop", position, "--yes", "--json").json == {"dropped": 1}
    assert cli("dlq", "list", "--json").json == []
    assert cli("get", "bad").code == 1
