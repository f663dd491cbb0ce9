"""URLs, settings and what is shown of them."""

from __future__ import annotations

import importlib.util
import traceback

import pytest

from sync_engine.errors import ConfigError
from sync_engine.stores.sql import SqlArchive, migration_sql
from sync_engine.stores.sql.url import parse_url
from sync_engine.testing import ManualClock

CANARY = "s3cr3t-canary"


@pytest.mark.parametrize(
    ("url", "driver"),
    [
        ("sqlite:////tmp/a.db", "sqlite+pysqlite"),
        ("mysql://u:p@h/d", "mysql+pymysql"),
        ("mariadb://u:p@h:3307/d", "mysql+pymysql"),
        ("postgresql://u:p@[::1]:5433/d", "postgresql+psycopg"),
        ("postgres://u@h/d", "postgresql+psycopg"),
        ("mysql://u@/d?unix_socket=/run/s", "mysql+pymysql"),
    ],
)
def test_each_scheme_gets_the_driver_that_serves_it_best(url: str, driver: str) -> None:
    parsed = parse_url(url)

    assert f"{parsed.get_backend_name()}+{parsed.get_driver_name()}" == driver


def test_percent_encoded_characters_reach_the_driver_decoded() -> None:
    assert parse_url("mysql://u:p%40ss%2Fw%23rd@h/d").password == "p@ss/w#rd"


@pytest.mark.parametrize(
    ("url", "hint"),
    [
        (f"mysql://u:{CANARY}@ss/w#rd@h/d", "percent-encoded"),
        (f"mysql://u:p/{CANARY}@h/d", "percent-encoded"),
        (f"mysql://u:{CANARY}:x@h/d", "percent-encoded"),
        (f"mysql://u:{CANARY}@h:99999/d", "out of range"),
        (f"mysql://u:{CANARY}@h:port/d", "cannot read"),
        (f"mysql://u:{CANARY}@h", "no database"),
        (f"mysql://u:{CANARY}@/d", "no host"),
        (f"oracle://u:{CANARY}@h/d", "not supported"),
        (f"mysql+asyncmy://u:{CANARY}@h/d", "not supported"),
        ("archive.db", "no URL"),
        ("sqlite://", "must be a file"),
        ("sqlite:///:memory:", "must be a file"),
        ("sqlite://archive.db", "three slashes"),
        ("sqlite:///a.db?mode=ro", "no options"),
    ],
)
def test_an_unusable_url_is_named_with_a_remedy_and_without_its_password(
    url: str, hint: str
) -> None:
    with pytest.raises(ConfigError, match=hint) as caught:
        parse_url(url)

    assert CANARY not in "".join(traceback.format_exception(caught.value))


def test_a_missing_driver_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "sync_engine.stores.sql.url.find_spec",
        lambda name: None if name == "pymysql" else find(name),
    )

    with pytest.raises(ConfigError, match=r"pip install 'sync-engine\[mysql\]'"):
        parse_url("mysql://u:p@h/d")


@pytest.mark.parametrize(
    "setting", [{"table": "T"}, {"table": "a b"}, {"table": "\uff54"}, {"timeout_s": 0},
                {"pool_size": -1}, {"connect_timeout_s": float("nan")}],
)  # fmt: skip
def test_settings_are_checked_before_anything_connects(
    setting: dict[str, object], clock: ManualClock
) -> None:
    with pytest.raises(ConfigError, match=next(iter(setting))):
        SqlArchive("sqlite:////nowhere/a.db", clock=clock, **setting)  # type: ignore[arg-type]


def test_no_password_in_the_repr(clock: ManualClock) -> None:
    shown = repr(SqlArchive(f"mysql://u:{CANARY}@h/d", clock=clock))

    assert CANARY not in shown
    assert "mysql://u:***@h/d" in shown


@pytest.mark.parametrize("kind", ["sqlite", "mysql", "postgresql"])
def test_migration_text_holds_every_table_and_no_more_after_the_last_version(kind: str) -> None:
    text = migration_sql(kind, table="things")

    for table in ("things", "things_meta", "things_writers"):
        assert f"CREATE TABLE IF NOT EXISTS {'`' if kind == 'mysql' else chr(34)}{table}" in text
    with pytest.raises(ConfigError):
        migration_sql(kind, from_version=99)
