"""What databases do to an archive: refuse, kill, freeze, fill up, deadlock."""

from __future__ import annotations

import random
import sqlite3
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from support.servers import MariaDBServer, PostgresServer, SqlServer

from sync_engine.core.item import Change
from sync_engine.errors import ConfigError, StoreRejected, StoreUnavailable
from sync_engine.runtime import SystemClock
from sync_engine.stores.sql import SqlArchive, open_archive
from sync_engine.testing import ManualClock


def batch(version: int, count: int = 50, size: int = 100) -> list[Change]:
    """Return changes whose content is a function of id and version."""
    return [
        Change(id, version, f"{id}@{version}".encode().ljust(size, b"."))
        for id in (f"id-{number:04}" for number in range(count))
    ]


@pytest.fixture(
    params=[
        pytest.param("mariadb", marks=pytest.mark.external),
        pytest.param("postgres", marks=pytest.mark.external),
    ]
)
def server(request: pytest.FixtureRequest) -> SqlServer:
    server: SqlServer = request.getfixturevalue(f"{request.param}_server")
    return server


@pytest.fixture
def server_url(server: SqlServer, archive_url: Callable[[str], str]) -> str:
    return archive_url("mariadb" if isinstance(server, MariaDBServer) else "postgres")


# -- one row that can never be written ------------------------------------------------------------


@pytest.mark.parametrize(
    "poison",
    [
        Change("k", 1 << 63, b""),
        Change("k", 1, b"", 1 << 15),
        Change("k", 1, b"", 0, "s", 1 << 63),
        Change("\ud800", 1, b""),
    ],
    ids=["version", "content_type", "expiry", "surrogate"],
)
def test_a_row_that_does_not_fit_rejects_the_batch_and_writes_nothing_of_it(
    any_sql_url: str, clock: ManualClock, poison: Change
) -> None:
    archive = open_archive(any_sql_url, clock=clock)
    neighbour = Change("neighbour", 1, b"")

    with pytest.raises(StoreRejected):
        archive.apply([neighbour, poison])

    assert archive.scan() == []
    archive.apply([neighbour])
    assert archive.scan() == [neighbour]
    assert archive.stats()["rejected"] == 1
    archive.close()


@pytest.mark.external
@pytest.mark.parametrize(
    "poison", [Change("x" * 513, 1, b""), Change("k", 1, b"", 0, "s" * 65)], ids=["id", "state"]
)
def test_what_is_too_long_is_refused_and_never_cut(
    mariadb_url: str, clock: ManualClock, poison: Change
) -> None:
    """Outside of strict mode the server would shorten it without a word."""
    archive = open_archive(mariadb_url, clock=clock)

    with pytest.raises(StoreRejected, match="too long"):
        archive.apply([Change("neighbour", 1, b""), poison])

    assert archive.scan() == []
    archive.close()


def test_a_trigger_that_refuses_is_a_rejection(sqlite_url: str, clock: ManualClock) -> None:
    """A constraint of the operator's own."""
    archive = open_archive(sqlite_url, clock=clock)
    database = sqlite3.connect(sqlite_url.removeprefix("sqlite:///"))
    database.execute(
        "CREATE TRIGGER no BEFORE INSERT ON sync_items WHEN NEW.id = 'bad'"
        " BEGIN SELECT RAISE(ABORT, 'no'); END"
    )
    database.close()

    with pytest.raises(StoreRejected):
        archive.apply([Change("bad", 1, b""), Change("good", 1, b"")])

    assert archive.get_many(["bad", "good"]) == {}
    archive.close()


@pytest.mark.external
def test_batches_are_cut_below_the_packet_limit_and_stay_one_transaction(
    mariadb_server: MariaDBServer, mariadb_url: str, clock: ManualClock
) -> None:
    mariadb_server.execute("SET GLOBAL max_allowed_packet = 1048576")
    try:
        archive = open_archive(mariadb_url, clock=clock)
        changes = [Change(f"k{n:02}", 1, random.Random(n).randbytes(200_000)) for n in range(30)]
        nearly = Change("nearly", 1, random.Random(1).randbytes(950_000))  # not as hex
        archive.apply([*changes, nearly])
        assert archive.get_many([c.id for c in changes]) == {c.id: c for c in changes}
        assert archive.get_many(["nearly"]) == {"nearly": nearly}

        with pytest.raises(StoreRejected, match="max_allowed_packet"):
            archive.apply([Change("a", 1, b""), Change("big", 1, b"x" * (1 << 20))])

        assert archive.get_many(["a", "big"]) == {}
        archive.apply([Change("a", 1, b"")])
        archive.close()
    finally:
        mariadb_server.execute("SET GLOBAL max_allowed_packet = 16777216")


# -- the server goes away -------------------------------------------------------------------------


def test_killed_in_the_middle_of_batches_it_keeps_whole_batches_only(
    server: SqlServer, server_url: str
) -> None:
    """What was acknowledged is there after the restart; a batch is there as a whole or not."""
    archive = open_archive(server_url, clock=SystemClock(), timeout_s=5.0)
    acknowledged = 0
    attempted = 0
    failed = threading.Event()

    def write() -> None:
        nonlocal acknowledged, attempted
        try:
            for version in range(1, 100_000):
                attempted = version
                archive.apply(batch(version, 300, 500))
                acknowledged = version
        except StoreUnavailable:
            failed.set()

    thread = threading.Thread(target=write)
    thread.start()
    while acknowledged < 5:
        assert thread.is_alive()
        time.sleep(0.001)
    server.kill()
    thread.join(30)
    assert failed.is_set()
    with pytest.raises(StoreUnavailable):
        archive.get_many(["id-0000"])
    server.start()

    rows = archive.scan(limit=1000)

    versions = {change.version for change in rows}
    assert len(rows) == 300
    assert len(versions) == 1
    assert versions <= {acknowledged, attempted}
    archive.apply(batch(attempted + 1, 300, 500))
    archive.close()


def test_a_frozen_server_costs_its_timeout_and_no_more(server: SqlServer, server_url: str) -> None:
    archive = open_archive(server_url, clock=SystemClock(), timeout_s=1.0, connect_timeout_s=1.0)
    archive.apply(batch(1))
    server.pause()
    try:
        for call in (
            lambda: archive.apply(batch(2)),
            lambda: archive.get_many(["id-0001"]),
            archive.ping,
            lambda: archive.lease("me", 5.0),
        ):
            started = time.monotonic()
            with pytest.raises(StoreUnavailable):
                call()
            assert time.monotonic() - started < 4.5  # one connection attempt and one statement
    finally:
        server.resume()

    archive.apply(batch(3))
    assert archive.get_many(["id-0001"])["id-0001"].version == 3
    archive.close()


def test_a_server_that_is_not_there_is_an_outage_and_its_return_is_noticed(
    server: SqlServer, server_url: str, clock: ManualClock
) -> None:
    archive = SqlArchive(server_url, clock=clock, connect_timeout_s=1.0)
    server.stop()
    try:
        with pytest.raises(StoreUnavailable):
            archive.attach()
    finally:
        server.start()

    archive.attach()
    archive.apply(batch(1))
    archive.close()


def test_wrong_credentials_and_databases_are_settings_to_fix(
    server_url: str, clock: ManualClock
) -> None:
    from sqlalchemy import make_url

    url = make_url(server_url)
    for wrong in (
        url.set(database="absent_db"),
        url.set(username="nobody_here", password="c4nary"),
    ):
        shown = wrong.render_as_string(hide_password=False)
        with pytest.raises(ConfigError) as caught:
            open_archive(shown, clock=clock)
        assert "c4nary" not in str(caught.value)


def test_a_read_only_server_is_an_outage_that_ends(
    server: SqlServer, server_url: str, clock: ManualClock
) -> None:
    archive = open_archive(server_url, clock=clock)
    archive.apply(batch(1))
    if isinstance(server, MariaDBServer):
        _restrict(archive, "SET SESSION TRANSACTION READ ONLY")
    else:
        _restrict(archive, "SET default_transaction_read_only = on")

    with pytest.raises(StoreUnavailable, match="read-only"):
        archive.apply(batch(2))
    assert len(archive.scan()) == 50

    if isinstance(server, MariaDBServer):
        _restrict(archive, "SET SESSION TRANSACTION READ WRITE")
    else:
        _restrict(archive, "SET default_transaction_read_only = off")
    archive.apply(batch(3))
    archive.close()


def _restrict(archive: SqlArchive, statement: str) -> None:
    with archive._dialect.reading() as connection:
        archive._dialect.execute(connection, statement)


def test_batches_that_cross_each_other_never_lock_each_other_out(
    any_sql_url: str, clock: ManualClock
) -> None:
    """Ids are sorted in every batch: of hundreds that overlap, none deadlocks."""
    archives = [open_archive(any_sql_url, clock=clock) for _ in range(2)]
    errors: list[BaseException] = []

    def storm(archive: SqlArchive, seed: int) -> None:
        rng = random.Random(seed)
        try:
            for round_ in range(60):
                changes = batch(round_ * 2 + seed + 1, 100)
                rng.shuffle(changes)
                archive.apply(changes)
        except BaseException as exc:
            errors.append(exc)

    threads = [
        threading.Thread(target=storm, args=(archive, seed))
        for seed, archive in enumerate(archives)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert errors == []
    assert {change.version for change in archives[0].scan()} == {120}
    for archive in archives:
        archive.close()


def test_a_row_that_someone_holds_is_waited_for_no_longer_than_allowed(
    server: SqlServer, server_url: str
) -> None:
    first = open_archive(server_url, clock=SystemClock(), timeout_s=1.0)
    second = open_archive(server_url, clock=SystemClock(), timeout_s=1.0)
    first.apply(batch(1))
    second.apply(batch(2))

    with first._dialect.writing() as (connection, _):
        first._dialect.execute(connection, "UPDATE {t} SET routes = routes + 1 WHERE version = 2")
        started = time.monotonic()
        with pytest.raises(StoreUnavailable, match=r"lock|longer"):
            second.apply(batch(3))
        assert time.monotonic() - started < 3

    second.apply(batch(4))
    assert {change.version for change in second.scan()} == {4}
    first.close()
    second.close()


def test_sqlite_waits_for_a_foreign_lock_no_longer_than_allowed(sqlite_url: str) -> None:
    archive = open_archive(sqlite_url, clock=SystemClock(), timeout_s=0.3)
    other = sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    started = time.monotonic()
    with pytest.raises(StoreUnavailable, match="lock"):
        archive.apply(batch(1))
    assert time.monotonic() - started < 2
    assert archive.scan() == []  # readers are not held up

    other.execute("ROLLBACK")
    other.close()
    archive.apply(batch(1))
    archive.close()


def test_weak_settings_of_the_server_are_told(
    server: SqlServer, server_url: str, clock: ManualClock
) -> None:
    archive = open_archive(server_url, clock=clock)
    if isinstance(server, PostgresServer):
        server.execute("ALTER ROLE sync SET synchronous_commit = off")
        undo = ["ALTER ROLE sync RESET synchronous_commit"]
        name = "synchronous_commit"
    else:
        server.execute("SET GLOBAL innodb_flush_log_at_trx_commit = 2")
        undo = ["SET GLOBAL innodb_flush_log_at_trx_commit = 1"]
        name = "innodb_flush_log_at_trx_commit"
    try:
        archive.close()  # settings reach a new connection for certain
        warnings = archive.attach().warnings
        assert any(warning.startswith(name) for warning in warnings)
    finally:
        for statement in undo:
            server.execute(statement)
        archive.close()


def test_a_reply_that_was_lost_leaves_the_batch_repeatable(
    server: SqlServer, server_url: str, clock: ManualClock
) -> None:
    """Every session is cut from outside: the first call fails, the next one works."""
    archive = open_archive(server_url, clock=clock)
    archive.apply(batch(1))
    if isinstance(server, PostgresServer):
        server.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE pid <> pg_backend_pid() AND datname IS NOT NULL"
        )
    else:
        rows: list[Any] = server.execute(
            "SELECT id FROM information_schema.processlist WHERE id <> connection_id()"
            " AND db IS NOT NULL"
        )
        for (connection_id,) in rows:
            server.execute(f"KILL {connection_id}")

    with pytest.raises(StoreUnavailable):
        archive.apply(batch(2))
    archive.apply(batch(2))

    assert {change.version for change in archive.scan()} == {2}
    archive.close()


def test_a_page_makes_up_for_rows_that_fail_their_checksum_and_counts_them(
    sqlite_url: str, clock: ManualClock
) -> None:
    """A page shorter than its limit says that there is no more: a damaged row must not say so."""
    archive = open_archive(sqlite_url, clock=clock)
    archive.apply([Change(id, 1, b"v") for id in ("a", "b", "c", "d")])
    with archive._dialect.writing() as (connection, _):
        forge = "UPDATE {t} SET content = ? WHERE id = ?k"
        archive._dialect.execute(connection, forge, (b"forged", b"b"))

    assert [change.id for change in archive.scan(limit=3)] == ["a", "c", "d"]
    assert archive.stats()["corrupt"] == 1
    archive.close()
