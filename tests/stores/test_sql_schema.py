"""Tables: created once, versioned, checked, and never somebody else's."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from sync_engine.core.item import Change
from sync_engine.errors import ConfigError, StoreUnavailable
from sync_engine.stores.sql import SqlArchive, migrate, migration_sql, open_archive
from sync_engine.stores.sql.url import parse_url
from sync_engine.testing import ManualClock

Sql = Callable[..., list[Any]]


@pytest.fixture
def sql(any_sql_url: str) -> Any:
    """Run a statement on a connection of its own, going round the archive."""
    engine = create_engine(parse_url(any_sql_url))

    def run(statement: str, **values: Any) -> list[Any]:
        with engine.begin() as connection:
            result = connection.execute(text(statement), values)
            return list(result.fetchall()) if result.returns_rows else []

    yield run
    engine.dispose()


def test_missing_tables_are_not_created_where_that_is_off(
    any_sql_url: str, clock: ManualClock
) -> None:
    archive = SqlArchive(any_sql_url, clock=clock, create_schema=False)

    with pytest.raises(ConfigError, match="sync-engine migrate"):
        archive.attach()

    assert migrate(any_sql_url) == (0, 2)
    assert migrate(any_sql_url) == (2, 2)
    archive.attach()
    archive.close()


def test_tables_made_by_hand_from_the_printed_text_are_accepted(
    any_sql_url: str, clock: ManualClock, sql: Sql
) -> None:
    for statement in migration_sql(any_sql_url).split(";\n"):
        if statement:
            sql(statement.replace("::bytea", "\\:\\:bytea"))

    archive = open_archive(any_sql_url, clock=clock, create_schema=False)

    assert archive.info().schema_version == 2
    archive.close()


def test_another_version_is_refused_with_the_way_out(
    any_sql_url: str, clock: ManualClock, sql: Sql
) -> None:
    open_archive(any_sql_url, clock=clock).close()
    sql("UPDATE sync_items_meta SET schema_version = 3")

    with pytest.raises(ConfigError, match="version 3"):
        open_archive(any_sql_url, clock=clock)
    with pytest.raises(ConfigError, match="newer"):
        migrate(any_sql_url)


def test_somebody_elses_table_is_left_alone(any_sql_url: str, clock: ManualClock, sql: Sql) -> None:
    sql("CREATE TABLE sync_items (id INTEGER PRIMARY KEY, title VARCHAR(20))")

    with pytest.raises(ConfigError, match="not an archive"):
        open_archive(any_sql_url, clock=clock)
    with pytest.raises(ConfigError, match="not an archive"):
        migrate(any_sql_url)

    other = open_archive(any_sql_url, clock=clock, table="others")
    other.close()
    assert sql("SELECT * FROM sync_items") == []


def test_a_column_that_is_gone_is_named(any_sql_url: str, clock: ManualClock, sql: Sql) -> None:
    open_archive(any_sql_url, clock=clock).close()
    sql("ALTER TABLE sync_items RENAME COLUMN routes TO ways")

    with pytest.raises(ConfigError, match=r"sync_items.* lacks routes"):
        open_archive(any_sql_url, clock=clock)


def test_a_column_lost_while_attached_is_an_outage_and_not_a_rejection(
    any_sql_url: str, clock: ManualClock, sql: Sql
) -> None:
    """Dead letters for every item would be worse than waiting for the operator."""
    archive = open_archive(any_sql_url, clock=clock)
    sql("ALTER TABLE sync_items RENAME COLUMN routes TO ways")

    with pytest.raises(StoreUnavailable, match="sync-engine migrate"):
        archive.apply([Change("k", 1, b"v")])

    sql("ALTER TABLE sync_items RENAME COLUMN ways TO routes")
    archive.apply([Change("k", 1, b"v")])
    archive.close()


@pytest.mark.external
def test_an_id_column_that_merges_ids_is_refused(mariadb_url: str, clock: ManualClock) -> None:
    """Under MariaDB's default collation 'Key' is 'key'."""
    open_archive(mariadb_url, clock=clock).close()
    engine = create_engine(parse_url(mariadb_url))
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE sync_items MODIFY id VARCHAR(255) NOT NULL"))
    engine.dispose()

    with pytest.raises(ConfigError, match="byte by byte"):
        open_archive(mariadb_url, clock=clock)


def test_engines_that_start_together_agree_on_one_archive(
    any_sql_url: str, clock: ManualClock
) -> None:
    archives = [SqlArchive(any_sql_url, clock=clock) for _ in range(4)]
    barrier = threading.Barrier(len(archives))
    uuids: list[str] = []
    errors: list[BaseException] = []

    def start(archive: SqlArchive) -> None:
        barrier.wait()
        try:
            uuids.append(archive.attach().uuid)
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=start, args=(archive,)) for archive in archives]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for archive in archives:
        archive.close()

    assert errors == []
    assert len(uuids) == 4
    assert len(set(uuids)) == 1


def test_a_flipped_bit_in_any_column_is_noticed(
    any_sql_url: str, clock: ManualClock, sql: Sql
) -> None:
    """Neighbours are answered; the row itself is reported, counted, and made up for in a page."""
    from sync_engine.errors import CorruptData

    archive = open_archive(any_sql_url, clock=clock)
    damage = {
        "version": "version = version + 1",
        "tombstone": "tombstone = 1",
        "kind": "content_type = 1",
        "routes": "routes = 2",
        "state": "state = :bytes",
        "expiry": "expires_at_ms = 1",
        "checksum": "checksum = checksum + 1",
        "trace": "trace_parent = :bytes",
        "content": "content = :bytes",
    }
    archive.apply([Change(f"{name}-id", 7, b"content") for name in (*damage, "whole")])
    for name, change in damage.items():
        values = {"bytes": b"Content"} if ":bytes" in change else {}
        assert len(sql(f"SELECT 1 FROM sync_items WHERE id = {_id(any_sql_url, name)}")) == 1
        sql(f"UPDATE sync_items SET {change} WHERE id = {_id(any_sql_url, name)}", **values)

    found = archive.get_many([f"{name}-id" for name in (*damage, "whole")])
    page = archive.scan(limit=1, tombstones=True)

    assert set(found) == {"whole-id"}
    assert [change.id for change in page] == ["whole-id"]
    assert archive.stats()["corrupt"] == 2 * len(damage)
    for name in damage:
        with pytest.raises(CorruptData, match=name):
            archive.get_many([f"{name}-id"])
    archive.close()


def _id(url: str, name: str) -> str:
    return f"'{name}-id'\\:\\:bytea" if url.startswith("postgres") else f"'{name}-id'"


# -- the file of SQLite ---------------------------------------------------------------------------


def test_the_file_and_its_companions_are_for_the_owner_only(
    sqlite_url: str, clock: ManualClock
) -> None:
    before = os.umask(0)
    try:
        archive = open_archive(sqlite_url, clock=clock)
        archive.apply([Change("k", 1, b"v")])
    finally:
        os.umask(before)

    path = Path(sqlite_url.removeprefix("sqlite:///"))
    for file in (path, Path(f"{path}-wal"), Path(f"{path}-shm")):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    archive.close()
    assert not Path(f"{path}-wal").exists()


def test_commits_are_safe_from_power_loss(sqlite_url: str, clock: ManualClock) -> None:
    """At NORMAL, SQLite does not sync at commit."""
    archive = open_archive(sqlite_url, clock=clock)

    with archive._dialect.writing() as (connection, _):
        (level,) = connection.execute("PRAGMA synchronous").fetchone()
        (mode,) = connection.execute("PRAGMA journal_mode").fetchone()

    assert (level, mode) == (2, b"wal")
    archive.close()


def test_a_file_that_is_no_database_is_refused_untouched(
    tmp_path: Path, clock: ManualClock
) -> None:
    path = tmp_path / "a.db"
    path.write_bytes(b"precious" * 1000)

    with pytest.raises(ConfigError, match="no SQLite database"):
        open_archive(f"sqlite:///{path}", clock=clock)

    assert path.read_bytes() == b"precious" * 1000


def test_a_link_or_a_missing_directory_is_refused(tmp_path: Path, clock: ManualClock) -> None:
    (tmp_path / "link.db").symlink_to(tmp_path / "elsewhere.db")

    with pytest.raises(ConfigError, match="plain file"):
        open_archive(f"sqlite:///{tmp_path}/link.db", clock=clock)
    with pytest.raises(ConfigError, match="does not exist"):
        open_archive(f"sqlite:///{tmp_path}/no/a.db", clock=clock)


def test_writers_that_are_no_engine_are_noticed(sqlite_url: str, clock: ManualClock) -> None:
    """Engines count in the archive what they commit; who does not is foreign."""
    import sqlite3

    ours, peer = (open_archive(sqlite_url, clock=clock) for _ in range(2))
    for version in range(1, 4):
        ours.apply([Change("a", version, b"")])
        peer.apply([Change("b", version, b"")])
        peer.purge_tombstones(below_version=1, limit=1)
        peer.lease("peer", 5.0)
        ours.lease("ours", 5.0)
    assert ours.stats()["foreign_writes"] == 0
    peer.close()
    epoch = ours.lease("ours", 5.0)
    assert epoch
    assert ours.lease("ours", 5.0) == epoch

    stranger = sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), isolation_level=None)
    stranger.execute("DELETE FROM sync_items WHERE id = 'a'")
    stranger.close()
    ours.apply([Change("c", 1, b"")])

    assert ours.stats()["foreign_writes"] == 1
    assert ours.lease("ours", 5.0) > epoch  # a filter that was bound to the epoch starts anew
    ours.close()
