"""The server fixtures keep what they promise to other tests."""

from __future__ import annotations

import psycopg
import pymysql
import pytest
import redis
import sqlalchemy
from support.servers import MariaDBServer, PostgresServer, RedisCluster, RedisServer, SqlServer

pytestmark = pytest.mark.external


def test_redis_is_empty_for_every_test(redis_server: RedisServer) -> None:
    assert redis_server.execute("DBSIZE") == 0
    redis_server.execute("SET", "k", "v")


def test_redis_is_empty_for_the_next_one_too(redis_server: RedisServer) -> None:
    assert redis_server.execute("DBSIZE") == 0


def test_a_killed_redis_refuses_and_comes_back_empty(redis_server: RedisServer) -> None:
    redis_server.execute("SET", "k", "v")
    redis_server.kill()
    with pytest.raises(redis.ConnectionError):
        redis_server.execute("PING")

    redis_server.start()
    assert redis_server.execute("GET", "k") is None


def test_a_paused_redis_hangs_and_answers_once_resumed(redis_server: RedisServer) -> None:
    with redis.Redis(port=redis_server.port, socket_timeout=0.1, retry=None) as client:
        redis_server.pause()
        with pytest.raises(redis.TimeoutError):
            client.execute_command("PING")
    redis_server.resume()
    assert redis_server.execute("PING")


def test_options_last_until_the_end_of_the_test(redis_server: RedisServer) -> None:
    redis_server.config(maxmemory="1mb")
    redis_server.heal()
    assert redis_server.execute("CONFIG GET", "maxmemory")["maxmemory"] == "0"


def test_a_server_left_down_is_up_for_the_next_test(redis_server: RedisServer) -> None:
    redis_server.kill()


def test_it_is_up_indeed(redis_server: RedisServer) -> None:
    assert redis_server.execute("PING")


def test_the_cluster_spreads_keys_over_its_nodes(redis_cluster: RedisCluster) -> None:
    with redis.RedisCluster(host="127.0.0.1", port=redis_cluster.nodes[0].port) as client:
        for number in range(100):
            client.set(f"k{number}", b"v")
    sizes = [node.execute("DBSIZE") for node in redis_cluster.nodes]
    assert sum(sizes) == 100
    assert min(sizes) > 0


def test_every_archive_url_is_a_fresh_database(any_sql_url: str) -> None:
    engine = sqlalchemy.create_engine(any_sql_url)
    try:
        with engine.begin() as connection:
            connection.execute(sqlalchemy.text("CREATE TABLE t (a INTEGER PRIMARY KEY)"))
            connection.execute(sqlalchemy.text("INSERT INTO t VALUES (1)"))
            assert connection.execute(sqlalchemy.text("SELECT a FROM t")).scalar() == 1
    finally:
        engine.dispose()


@pytest.mark.parametrize("kind", ["mariadb", "postgres"])
def test_committed_rows_survive_a_kill(kind: str, request: pytest.FixtureRequest) -> None:
    server: SqlServer = request.getfixturevalue(f"{kind}_server")
    name = server.create_database()
    engine = sqlalchemy.create_engine(server.database_url(name), poolclass=sqlalchemy.NullPool)
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("CREATE TABLE t (a INTEGER PRIMARY KEY)"))
        connection.execute(sqlalchemy.text("INSERT INTO t VALUES (7)"))

    server.kill()
    with pytest.raises(sqlalchemy.exc.OperationalError):
        engine.connect()
    server.start()

    with engine.connect() as connection:
        assert connection.execute(sqlalchemy.text("SELECT a FROM t")).scalar() == 7
    server.drop_database(name)


def test_mariadb_compares_without_case_by_default(mariadb_server: MariaDBServer) -> None:
    assert mariadb_server.execute("SELECT 'a' = 'A'") == [(1,)]
    assert issubclass(pymysql.err.OperationalError, Exception)


def test_postgres_sorts_linguistically_by_default(postgres_server: PostgresServer) -> None:
    rows = postgres_server.execute("SELECT x FROM (VALUES ('B'), ('a')) AS v(x) ORDER BY x")
    assert rows == [("a",), ("B",)]
    with pytest.raises(psycopg.errors.UndefinedTable):
        postgres_server.execute("SELECT * FROM nowhere")
