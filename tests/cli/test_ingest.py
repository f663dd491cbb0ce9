"""ingest: every item is counted where it belongs."""

from __future__ import annotations

import io
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from sync_engine import SyncEngine
from sync_engine.errors import Backpressure
from tests.cli.conftest import Cli


def stdin(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), "utf-8"))


def ids(cli: Cli) -> list[str]:
    return [line["id"] for line in cli("scan", "--json").lines]


def test_a_directory_becomes_items_of_relative_paths(cli: Cli, tree: Path) -> None:
    ran = cli("ingest", str(tree), "--prefix", "t/", "--json")

    assert ran.code == 0
    report = ran.json
    assert (report["accepted"], report["refused"], report["skipped"]) == (5, 0, 1)
    assert report["bytes"] == 5 + 0 + 256 + 18 + len("Grüße".encode())
    assert report["left"] == {}
    assert ids(cli) == [
        "t/a.txt",
        "t/empty",
        "t/sub/.git/config",
        "t/sub/b.bin",
        "t/sub/grün é.txt",
    ]
    assert cli("get", "t/sub/b.bin").raw == bytes(range(256))
    assert cli("get", "t/empty").raw == b""


def test_options_hold_for_every_item(cli: Cli, tree: Path) -> None:
    ran = cli("ingest", str(tree), "--state", "new", "--ttl", "7d", "--durability", "fsync")

    assert ran.code == 0
    assert len(cli("scan", "--state", "new", "--json").lines) == 5
    assert all(line["expires_at_ms"] for line in cli("scan", "--json").lines)


def test_patterns_are_left_out(cli: Cli, tree: Path) -> None:
    cli("ingest", str(tree), "--exclude", ".git", "--exclude", "*.txt", "--exclude", "sub/b.*")

    assert ids(cli) == ["empty"]


def test_the_engines_own_directory_is_left_out(cli: Cli, tree: Path, data_dir: Path) -> None:
    data_dir.mkdir(mode=0o700)
    os.rename(data_dir, tree / "data")
    data_dir.symlink_to(tree / "data")

    cli("ingest", str(tree), "--data-dir", str(tree / "data"))

    assert not any(id.startswith("data") for id in ids(cli))
    assert "a.txt" in ids(cli)


def test_files_keep_their_path_from_here(
    cli: Cli, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tree)

    cli("ingest", "sub/b.bin", str(tree / "a.txt"))

    assert ids(cli) == ["a.txt", "sub/b.bin"]


def test_a_file_beside_here_has_its_name_for_an_id(
    cli: Cli, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No id leads out of anywhere, and a detour makes no other id."""
    monkeypatch.chdir(tree / "sub")

    cli("ingest", "../a.txt", "../sub/b.bin")

    assert ids(cli) == ["a.txt", "b.bin"]


def test_two_files_of_one_id_are_told(cli: Cli, tree: Path) -> None:
    ran = cli("ingest", str(tree), str(tree), "--json")

    assert ran.code == 3
    assert (ran.json["accepted"], ran.json["refused"]) == (5, 5)
    assert "same id" in ran.json["errors"][0]["error"]


def test_what_is_refused_is_counted_and_told(cli: Cli, tree: Path) -> None:
    (tree / "large").write_bytes(b"x" * 2001)
    (tree / "exact").write_bytes(b"x" * 2000)

    ran = cli("ingest", str(tree), "--set", "max_payload_bytes=2000")

    assert ran.code == 3
    assert "warning: refused large: " in ran.err
    assert "1 refused" in ran.out
    assert "large" not in ids(cli)
    assert "exact" in ids(cli)


def test_a_name_that_is_no_text_is_refused_alone(cli: Cli, tree: Path) -> None:
    (Path(os.fsdecode(os.fsencode(tree) + b"/bad-\xff"))).write_bytes(b"x")

    ran = cli("ingest", str(tree), "--json")

    assert ran.code == 3
    assert (ran.json["accepted"], ran.json["refused"]) == (5, 1)
    assert "surrogate" in ran.json["errors"][0]["error"]


def test_nothing_but_refusals_is_a_failure(cli: Cli, tmp_path: Path) -> None:
    lines = tmp_path / "lines"
    lines.write_text("no\njson\n")

    assert cli("ingest", "--jsonl", str(lines)).code == 1


def test_an_empty_directory_is_no_failure(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()

    ran = cli("ingest", str(tmp_path / "nothing"), "--json")

    assert ran.code == 0
    assert ran.json["accepted"] == 0


def test_json_lines_are_kept_byte_for_byte(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    stdin(
        monkeypatch,
        b'{"id": "a",  "n": 1.0}\r\n\n{"id": 7}\nnot json\n[1]\n{"id": true}\n{"x": 1}\n'
        b'{"id": "z"}',
    )

    ran = cli("ingest", "--jsonl", "-", "--prefix", "u.", "--json")

    assert ran.code == 3
    assert (ran.json["accepted"], ran.json["refused"]) == (3, 4)
    assert [error["id"] for error in ran.json["errors"]] == [
        f"standard input, line {n}" for n in (4, 5, 6, 7)
    ]
    assert cli("get", "u.a").raw == b'{"id": "a",  "n": 1.0}'
    assert cli("get", "u.7", "--json").json["content_type"] == "json"
    assert cli("get", "u.z").raw == b'{"id": "z"}'


def test_the_id_may_be_in_another_field(cli: Cli, tmp_path: Path) -> None:
    lines = tmp_path / "users.jsonl"
    lines.write_text('{"mail": "a@b", "id": 1}\n')

    assert cli("ingest", "--jsonl", str(lines), "--id-field", "mail").code == 0

    assert ids(cli) == ["a@b"]


def test_a_line_too_long_is_refused_alone(cli: Cli, tmp_path: Path) -> None:
    lines = tmp_path / "lines"
    lines.write_text('{"id": "a"}\n{"id": "' + "x" * 5000 + '"}\n{"id": "b"}\n')

    ran = cli("ingest", "--jsonl", str(lines), "--set", "max_payload_bytes=1000", "--json")

    assert ran.code == 3
    assert [error["id"] for error in ran.json["errors"]] == [f"{lines}, line 2"]
    assert ids(cli) == ["a", "b"]


def test_names_come_from_standard_input(
    cli: Cli, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tree)
    stdin(monkeypatch, b"a.txt\nsub/b.bin\nno/such\n")

    ran = cli("ingest", "-", "--json")

    assert ran.code == 3
    assert (ran.json["accepted"], ran.json["refused"]) == (2, 1)
    assert ids(cli) == ["a.txt", "sub/b.bin"]


def test_a_name_from_standard_input_that_is_no_text_is_refused_alone(
    cli: Cli, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tree)
    (tree / os.fsdecode(b"bad\xff")).write_bytes(b"x")
    stdin(monkeypatch, b"bad\xff\na.txt\n")

    ran = cli("ingest", "-", "--json")

    assert (ran.json["accepted"], ran.json["refused"]) == (1, 1)
    assert ids(cli) == ["a.txt"]


def test_a_signal_is_heard_while_the_archive_does_not_keep_up(
    cli: Cli, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def crowded(engine: SyncEngine, *args: Any) -> Any:
        calls.append(args)
        os.kill(os.getpid(), signal.SIGTERM)
        raise Backpressure("too much waits", 0.0)

    monkeypatch.setattr(SyncEngine, "submit_many", crowded)

    assert cli("ingest", str(tree)).code == 128 + signal.SIGTERM
    assert len(calls) == 1


def test_many_items_are_counted_over_groups(cli: Cli, tmp_path: Path) -> None:
    lines = tmp_path / "lines"
    lines.write_text("".join(f'{{"id": "{n}"}}\n' for n in range(1234)))

    ran = cli("ingest", "--jsonl", str(lines), "--json")

    assert ran.json["accepted"] == 1234
    assert len(ids(cli)) == 1234


def test_an_ingest_without_its_archive_tells_what_waits(cli: Cli, tree: Path) -> None:
    down = ["--sql-url", "mysql://root:x@127.0.0.1:1/x", "--set", "close_timeout_s=0"]

    ran = cli("ingest", str(tree), "--json", *down)

    assert ran.code == 0
    assert ran.json["left"] == {"l3": 5}
    assert "safe in the log" in ran.err


def test_an_archive_that_does_not_keep_up_is_told(cli: Cli, tmp_path: Path) -> None:
    """Durability archive cannot be had from an archive that is down; what was said stays true."""
    down = ["--sql-url", "mysql://root:x@127.0.0.1:1/x", "--set", "close_timeout_s=0"]
    lines = tmp_path / "lines"
    lines.write_text('{"id": "a"}\n')

    ran = cli(
        "ingest", "--jsonl", str(lines), "--durability", "archive", "--json", *down,
        "--set", "submit_timeout_s=0.2",
    )  # fmt: skip

    assert ran.code == 4
    assert ran.json["accepted"] == 0


def test_a_file_of_lines_that_cannot_be_opened_leaves_the_others(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = tmp_path / "lines"
    lines.mkdir()
    for name in ("a", "b", "c"):
        (lines / name).write_text(f'{{"id": "{name}"}}\n')
    opens = Path.open

    def refusing(self: Path, *args: Any, **more: Any) -> Any:
        if self == lines / "b":
            raise PermissionError(13, "Permission denied")
        return opens(self, *args, **more)

    monkeypatch.setattr(Path, "open", refusing)

    ran = cli("ingest", "--jsonl", str(lines), "--json")

    assert ran.code == 3
    assert ran.json["accepted"] == 2
    assert ran.json["errors"] == [{"id": str(lines / "b"), "error": "Permission denied"}]
