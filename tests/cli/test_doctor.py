"""doctor: what is amiss is found, graded, and comes with a remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sync_engine.cli.doctor_local import file_system_of
from sync_engine.cli.doctor_servers import policy_finding
from sync_engine.cli.findings import Severity
from tests.cli.conftest import Cli, Ran

SQL_DOWN = "mysql://root:x@127.0.0.1:1/x"


def found(ran: Ran, part: str, words: str = "") -> list[dict[str, Any]]:
    return [f for f in ran.json["findings"] if f["part"] == part and words in f["what"]]


def test_a_sound_engine_has_no_errors(cli: Cli) -> None:
    cli("put", "a", "--text", "x")

    ran = cli("doctor", "--json")

    assert ran.code == 0
    assert not [f for f in ran.json["findings"] if f["severity"] == "error"]
    assert found(ran, "log", "sound; 0 changes wait")
    assert found(ran, "sql", "may read and write")
    assert found(ran, "sql", "schema version 2; a round trip takes")
    assert found(ran, "disk", "fsync takes")
    assert cli("scan", "--json").lines[0]["id"] == "a"
    assert len(cli("scan", "--json").lines) == 1


def test_it_makes_nothing_where_nothing_is(cli: Cli, data_dir: Path) -> None:
    ran = cli("doctor", "--json")

    assert ran.code == 0
    assert found(ran, "sql", "no tables yet")
    assert not data_dir.exists()


def test_servers_that_are_down_are_told_with_what_to_do(cli: Cli) -> None:
    ran = cli("doctor", "--sql-url", SQL_DOWN, "--redis-url", "redis://127.0.0.1:1/0", "--json")

    assert ran.code == 4
    for part in ("sql", "redis"):
        (finding,) = found(ran, part)
        assert finding["severity"] == "error"
        assert finding["remedy"].startswith("start it")


def test_missing_tables_that_nobody_may_create_are_an_error(cli: Cli) -> None:
    ran = cli("doctor", "--set", "create_schema=false", "--json")

    assert ran.code == 1
    assert found(ran, "sql")[0]["remedy"] == "run `sync-engine migrate`"


@pytest.mark.parametrize(
    ("mode", "severity", "code"),
    [(0o777, "error", 2), (0o770, "warning", 0), (0o755, "note", 0), (0o700, "ok", 0)],
)
def test_a_directory_open_to_others_is_told(
    mode: int, severity: str, code: int, cli: Cli, data_dir: Path
) -> None:
    data_dir.mkdir()
    data_dir.chmod(mode)

    ran = cli("doctor", "--json")

    assert ran.code == code
    assert found(ran, "data_dir", f"({mode:o})")[0]["severity"] == severity


def test_a_file_in_the_place_of_the_directory_is_told(cli: Cli, data_dir: Path) -> None:
    data_dir.write_text("x")

    assert cli("doctor").code == 2


def test_a_damaged_log_is_told(cli: Cli, data_dir: Path) -> None:
    data_dir.mkdir(mode=0o700)
    (data_dir / "engine.log.db").write_bytes(b"this is no log" * 100)

    ran = cli("doctor", "--json")

    assert ran.code == 5
    assert found(ran, "log")[0]["severity"] == "error"


def test_a_running_engine_is_left_alone(cli: Cli, data_dir: Path) -> None:
    from sync_engine import SyncEngine

    with SyncEngine.open(data_dir) as engine:
        engine.submit("a", b"x")
        ran = cli("doctor", "--json")
        assert engine.get("a") is not None

    assert ran.code == 0
    assert found(ran, "log", "in use by process")


def test_the_file_system_is_the_one_of_the_longest_mount(tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
        f"30 22 0:40 / {tmp_path} rw,relatime shared:1 - nfs4 server:/x rw\n"
        f"31 22 0:41 / {tmp_path}/tmp\\040here rw - tmpfs tmpfs rw\n"
    )
    (tmp_path / "tmp here").mkdir()

    assert file_system_of(tmp_path / "data", mounts) == "nfs4"
    assert file_system_of(tmp_path / "tmp here" / "x", mounts) == "tmpfs"
    assert file_system_of(Path("/usr"), mounts) == "ext4"
    assert file_system_of(Path("/usr"), tmp_path / "absent") == ""


@pytest.mark.parametrize(
    ("maxmemory", "policy", "severity", "words"),
    [
        ("0", "noeviction", Severity.WARNING, "no memory left"),
        ("1048576", "noeviction", Severity.WARNING, "writes to L2 fail"),
        ("1048576", "volatile-lru", Severity.WARNING, "never evicted"),
        ("1048576", "allkeys-lru", Severity.OK, "1.0 MiB"),
        ("", "", Severity.NOTE, "does not tell"),
    ],
)
def test_the_policy_of_redis_is_judged(
    maxmemory: str, policy: str, severity: Severity, words: str
) -> None:
    finding = policy_finding({"maxmemory": maxmemory, "maxmemory_policy": policy})

    assert finding.severity is severity
    assert words in finding.what


@pytest.mark.external
def test_redis_is_looked_at(cli: Cli, redis_server: Any) -> None:
    redis_server.config(maxmemory="50mb", **{"maxmemory-policy": "noeviction"})

    ran = cli("doctor", "--redis-url", redis_server.url, "--json")

    assert ran.code == 0
    assert found(ran, "redis", "Redis ")[0]["severity"] == "ok"
    assert found(ran, "redis", "may read, write, run scripts")
    assert found(ran, "redis", "noeviction")[0]["severity"] == "warning"


@pytest.mark.external
def test_a_database_is_looked_at(cli: Cli, any_sql_url: str) -> None:
    assert cli("put", "a", "--text", "x", "--sql-url", any_sql_url).code == 0

    ran = cli("doctor", "--sql-url", any_sql_url, "--json")

    assert ran.code == 0, ran.err
    assert found(ran, "sql", "may read and write")
    assert len(cli("scan", "--json", "--sql-url", any_sql_url).lines) == 1
    if not any_sql_url.startswith("sqlite"):
        assert found(ran, "clock", "differ by")


@pytest.mark.external
def test_a_user_who_may_not_write_is_told(
    cli: Cli, postgres_url: str, postgres_server: Any
) -> None:
    """The rights are tried, not guessed."""
    cli("migrate", "--sql-url", postgres_url)
    name = postgres_url.rpartition("/")[2].partition("?")[0]

    readonly = f"{postgres_url}{'&' if '?' in postgres_url else '?'}"
    readonly += "options=-c%20default_transaction_read_only%3Don"
    ran = cli("doctor", "--sql-url", readonly, "--json")

    assert name
    assert ran.code in {1, 4}
    assert [f for f in found(ran, "sql") if f["severity"] == "error"]
