"""Fixtures that every test may ask for.

Servers (tests that use them are marked ``external``; a server that is not installed skips the test,
or fails it where REQUIRE_SERVERS=1). Each is private to the test process, started at
its first use, and handed to each test running and (Redis) empty, whatever the test before did:

- ``redis_server``     `RedisServer`: ``url``, ``client()``, ``execute("GET", k)``,
  ``config(maxmemory="2mb")``, ``flush()``, ``kill()`` (-9), ``stop()``, ``start()``, ``restart()``,
  ``pause()`` (SIGSTOP), ``resume()``
- ``redis_url``        its URL
- ``redis_cluster``    `RedisCluster`: ``url`` (redis+cluster://), ``nodes`` (three `RedisServer`),
  ``flush()``
- ``mariadb_server``, ``postgres_server``  as above, with ``execute(sql)`` as administrator,
  ``create_database()``, ``database_url(name)``, ``drop_database(name)``
- ``sqlite_url``, ``mariadb_url``, ``postgres_url``  URL of a fresh, empty database
- ``archive_url``      function: "sqlite", "mariadb" or "postgres" to URL of a fresh, empty database
- ``any_sql_url``      parametrised over the three kinds
- ``rclone_s3``, ``moto_s3``  `S3Server`: ``endpoint_url``, ``settings()``, ``boto()``,
  ``new_bucket()``, ``kill()`` ...; ``any_s3`` one after the other; ``fake_s3`` `FakeS3`
- ``fault_proxy``      function: (host, port) to `sync_engine.testing.FaultProxy`, closed at the end
- ``clock``, ``runtime``  a `ManualClock`, and a `ManualRuntime` on it

Helper classes are importable in tests as ``from support.servers import RedisServer``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from support.s3_servers import (  # noqa: F401 - fixtures, found by name
    _moto_s3,
    _rclone_s3,
    any_s3,
    fake_s3,
    moto_s3,
    rclone_s3,
)
from support.servers import MariaDBServer, PostgresServer, RedisCluster, RedisServer, SqlServer
from support.serving import serve

if TYPE_CHECKING:
    from sync_engine.testing import FaultProxy, ManualClock, ManualRuntime


@pytest.fixture(scope="session")
def _redis() -> Iterator[RedisServer]:
    yield from serve(RedisServer)


@pytest.fixture(scope="session")
def _redis_cluster() -> Iterator[RedisCluster]:
    yield from serve(RedisCluster)


@pytest.fixture(scope="session")
def _mariadb() -> Iterator[MariaDBServer]:
    yield from serve(MariaDBServer)


@pytest.fixture(scope="session")
def _postgres() -> Iterator[PostgresServer]:
    yield from serve(PostgresServer)


@pytest.fixture
def redis_server(_redis: RedisServer) -> RedisServer:
    _redis.heal()
    _redis.flush()
    return _redis


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    return redis_server.url


@pytest.fixture
def redis_cluster(_redis_cluster: RedisCluster) -> RedisCluster:
    _redis_cluster.heal()
    _redis_cluster.flush()
    return _redis_cluster


@pytest.fixture
def mariadb_server(_mariadb: MariaDBServer) -> MariaDBServer:
    _mariadb.heal()
    return _mariadb


@pytest.fixture
def postgres_server(_postgres: PostgresServer) -> PostgresServer:
    _postgres.heal()
    return _postgres


@pytest.fixture
def archive_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[str], str]]:
    made: list[tuple[SqlServer, str]] = []

    def make(kind: str) -> str:
        if kind == "sqlite":
            return f"sqlite:///{tmp_path}/archive-{len(made)}-{os.urandom(4).hex()}.db"
        server: SqlServer = request.getfixturevalue(f"{kind}_server")
        database = server.create_database()
        made.append((server, database))
        return server.database_url(database)

    yield make
    for server, database in made:
        server.heal()
        server.drop_database(database)


@pytest.fixture
def sqlite_url(archive_url: Callable[[str], str]) -> str:
    return archive_url("sqlite")


@pytest.fixture
def mariadb_url(archive_url: Callable[[str], str]) -> str:
    return archive_url("mariadb")


@pytest.fixture
def postgres_url(archive_url: Callable[[str], str]) -> str:
    return archive_url("postgres")


@pytest.fixture(
    params=[
        "sqlite",
        pytest.param("mariadb", marks=pytest.mark.external),
        pytest.param("postgres", marks=pytest.mark.external),
    ]
)
def any_sql_url(request: pytest.FixtureRequest, archive_url: Callable[[str], str]) -> str:
    return archive_url(request.param)


@pytest.fixture
def fault_proxy() -> Iterator[Callable[[str, int], FaultProxy]]:
    from sync_engine.testing import FaultProxy

    proxies: list[FaultProxy] = []

    def make(host: str, port: int) -> FaultProxy:
        proxies.append(FaultProxy(host, port))
        return proxies[-1]

    yield make
    for proxy in proxies:
        proxy.close()


@pytest.fixture
def clock() -> ManualClock:
    from sync_engine.testing import ManualClock

    return ManualClock()


@pytest.fixture
def runtime(clock: ManualClock) -> Any:
    from sync_engine.testing import ManualRuntime

    runtime: ManualRuntime = ManualRuntime(clock)
    return runtime


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "long" not in config.getoption("-m"):
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="full length: pytest -m long"))
