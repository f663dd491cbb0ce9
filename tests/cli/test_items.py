"""put, get, delete, scan, status."""

from __future__ import annotations

import hashlib
import io
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Cli

HASH = hashlib.sha256(b"hello").hexdigest()


def test_what_is_put_is_got_byte_for_byte(cli: Cli, tmp_path: Path) -> None:
    content = bytes(range(256)) * 3 + b"no newline"
    file = tmp_path / "in"
    file.write_bytes(content)

    assert cli("put", "b", str(file)).code == 0

    assert cli("get", "b").raw == content
    out = tmp_path / "out"
    ran = cli("get", "b", "-o", str(out))
    assert out.read_bytes() == content
    assert ran.raw == b""
    assert [path.name for path in tmp_path.glob(".out*")] == []


def test_put_takes_standard_input(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\0piped")))

    assert cli("put", "p", "-").code == 0

    assert cli("get", "p").raw == b"\xff\0piped"


def test_put_tells_what_it_wrote(cli: Cli) -> None:
    first = cli("put", "a", "--text", "hello", "--json").json
    second = cli("put", "a", "--text", "hello", "--json").json

    assert first["id"] == "a"
    assert first["bytes"] == 5
    assert first["left"] == {}
    assert second["version"] > first["version"]
    assert cli("put", "a", "--text", "x", "-q").raw == b""


def test_put_on_a_condition(cli: Cli) -> None:
    version = cli("put", "a", "--text", "one", "--if-absent", "--json").json["version"]

    assert cli("put", "a", "--text", "two", "--if-absent").code == 1
    assert cli("put", "a", "--text", "two", "--if-version", "5").code == 1
    assert cli("get", "a").raw == b"one"
    assert cli("put", "a", "--text", "two", "--if-version", str(version)).code == 0
    assert cli("get", "a").raw == b"two"


@pytest.mark.parametrize("durability", ["memory", "log", "fsync", "archive"])
def test_put_at_every_durability(durability: str, cli: Cli) -> None:
    assert cli("put", "a", "--text", "x", "--durability", durability).code == 0
    assert cli("get", "a").raw == b"x"


def test_put_refuses_what_is_too_large(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "large"
    file.write_bytes(b"x" * 2000)
    cli("put", "b", "--text", "there")

    ran = cli("put", "a", str(file), "--set", "max_payload_bytes=1000")

    assert ran.code == 2
    assert "max_payload_bytes" in ran.err
    assert cli("get", "a").code == 1


def test_put_of_a_missing_file_fails(cli: Cli) -> None:
    ran = cli("put", "a", "/no/such/file")

    assert ran.code == 1
    assert ran.err.startswith("error: /no/such/file: No such file")


def test_what_is_absent_is_not_found(cli: Cli) -> None:
    cli("put", "a", "--text", "x")

    ran = cli("get", "b")

    assert (ran.code, ran.raw, ran.err) == (1, b"", "error: b: not found\n")


def test_reading_makes_no_data_dir(cli: Cli, data_dir: Path) -> None:
    for args in (["get", "a"], ["scan"], ["status", "a"], ["stats"], ["health"], ["flush"]):
        ran = cli(*args)
        assert ran.code == 2
        assert "there is no data_dir" in ran.err
    assert not data_dir.exists()


def test_get_verifies(cli: Cli, tmp_path: Path) -> None:
    cli("put", "a", "--text", "hello")

    assert cli("get", "a", "--verify", HASH).raw == b"hello"
    assert cli("get", "a", "--verify", f"sha256:{HASH.upper()}").code == 0
    out = tmp_path / "out"
    ran = cli("get", "a", "--verify", "0" * 64, "-o", str(out))
    assert ran.code == 5
    assert not out.exists()


def test_get_as_json(cli: Cli) -> None:
    cli("put", "a", "--text", "grün", "--state", "new", "--ttl", "1h")

    item = cli("get", "a", "--json").json

    assert (item["content"], item["bytes"], item["state"]) == ("grün", 5, "new")
    assert 3_590_000 < item["expires_at_ms"] - item["updated_at_ms"] <= 3_600_001


def test_get_of_a_damaged_row_tells_so(cli: Cli, data_dir: Path) -> None:
    import sqlite3

    cli("put", "a", "--text", "hello")
    db = sqlite3.connect(data_dir / "archive.db")
    db.execute("UPDATE sync_items SET content = x'00'")
    db.commit()
    db.close()

    assert cli("get", "a").code == 5


def test_get_keeps_the_mode_of_a_file_it_replaces(cli: Cli, tmp_path: Path) -> None:
    cli("put", "a", "--text", "hello")
    out = tmp_path / "out"
    out.write_text("old")
    out.chmod(0o600)

    assert cli("get", "a", "-o", str(out)).code == 0

    assert out.read_text() == "hello"
    assert out.stat().st_mode & 0o777 == 0o600


def test_a_file_that_cannot_be_written_whole_stays_as_it_was(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "here" / "out"
    out.parent.mkdir()
    out.write_text("old")
    assert cli("put", "a", "--text", "new").code == 0

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    ran = cli("get", "a", "-o", str(out))

    assert ran.code == 1
    assert "No space left" in ran.err
    assert {path.name: path.read_text() for path in out.parent.iterdir()} == {"out": "old"}


def test_delete_tells_what_there_was(cli: Cli) -> None:
    for id in ("a", "b", "c"):
        cli("put", id, "--text", id)

    assert cli("delete", "a").code == 0
    assert cli("get", "a").code == 1
    assert cli("delete", "a").code == 1
    assert cli("delete", "a", "--ignore-missing").code == 0
    ran = cli("delete", "b", "never", "--json")
    assert ran.code == 3
    assert ran.json == {"deleted": {"b": True, "never": False}}
    assert cli("get", "c").code == 0


def test_what_was_deleted_before_a_mistake_is_told(cli: Cli) -> None:
    assert cli("put", "a", "--text", "x").code == 0

    ran = cli("delete", "a", "x" * 600, "--json")

    assert ran.code == 2
    assert ran.json == {"deleted": {"a": True}}


def test_scan_lists_in_bytewise_order(cli: Cli) -> None:
    for id in ("b/2", "a", "b/1", "b/é", "b0"):
        cli("put", id, "--text", id)

    def ids(*args: str) -> list[str]:
        return [line["id"] for line in cli("scan", *args, "--json").lines]

    assert ids() == ["a", "b/1", "b/2", "b/é", "b0"]
    assert ids("b/") == ["b/1", "b/2", "b/é"]
    assert ids("b/", "--limit", "2") == ["b/1", "b/2"]
    assert ids("b/", "--after", "b/1") == ["b/2", "b/é"]
    assert ids("--limit", "0") == []
    assert ids("%") == []


def test_scan_by_state(cli: Cli) -> None:
    for id, state in (("a1", "new"), ("a2", "old"), ("b1", "new"), ("a3", "new")):
        cli("put", id, "--text", "x", "--state", state)

    def ids(*args: str) -> list[str]:
        return [line["id"] for line in cli("scan", *args, "--json").lines]

    assert ids("--state", "new") == ["a1", "a3", "b1"]
    assert ids("a", "--state", "new") == ["a1", "a3"]
    assert ids("a", "--state", "new", "--limit", "1") == ["a1"]
    assert ids("--state", "none") == []


def test_scan_prints_a_line_an_item_whatever_the_id(cli: Cli) -> None:
    cli("put", "two\nlines\x1b[31m", "--text", "con\ttent", "--state", "s")

    ran = cli("scan", "--values")

    (line,) = ran.out.splitlines()
    assert "two\\nlines\\x1b[31m" in line
    assert "con\\ttent" in line


def test_scan_gives_exact_values_as_json(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_bytes(b"\xff\xfe")
    cli("put", "bin", str(file))
    cli("put", "text", "--text", "ü\n")

    binary, text = cli("scan", "--values", "--json").lines

    assert binary["content_base64"] == "//4="
    assert text["content"] == "ü\n"
    assert "content" not in cli("scan", "--json").lines[1]


def test_status_tells_where_an_item_is(cli: Cli) -> None:
    cli("put", "a", "--text", "x")

    ran = cli("status", "a", "--json")
    assert ran.code == 0
    assert ran.json["in_l3"] is True
    assert ran.json["pending"] == []
    assert "no L2" in cli("status", "a").out
    assert cli("status", "b").code == 1


def test_an_archive_that_is_down_is_no_absence(cli: Cli) -> None:
    """Nobody could tell, so nobody says not found."""
    down = ["--sql-url", "mysql://root:x@127.0.0.1:1/x", "--set", "close_timeout_s=0"]

    assert cli("get", "a", *down).code == 4
    assert cli("scan", *down).code == 4
    assert cli("status", "a", *down).code == 4
    assert cli("health", *down).code == 4
    assert cli("put", "a", "--text", "x", "--durability", "archive", *down).code == 4


def test_a_write_while_the_archive_is_down_is_kept(cli: Cli, sqlite_url: str) -> None:
    down = ["--sql-url", "mysql://root:x@127.0.0.1:1/x", "--set", "close_timeout_s=0"]

    ran = cli("put", "a", "--text", "kept", *down)

    assert ran.code == 0
    assert "not yet delivered: 1 change for l3" in ran.err
    assert cli("flush", *down, "--timeout", "1ms").code == 4
    assert cli("get", "a", *down).raw == b"kept"
    assert cli("flush", "--sql-url", sqlite_url).code == 0
    assert cli("get", "a", "--sql-url", sqlite_url).raw == b"kept"
