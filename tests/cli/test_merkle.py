"""``merkle``, ``verify`` and ``repair`` as they are typed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

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
