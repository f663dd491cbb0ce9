"""Redis, Redis Cluster, MariaDB and PostgreSQL for tests: private, small, without fsync."""

from __future__ import annotations

import os
import signal
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from support.processes import Server, find_program, free_port, run

__all__ = ["MariaDBServer", "PostgresServer", "RedisCluster", "RedisServer"]

PASSWORD = "p@ss:w/rd"  # needs percent-encoding in an URL, so that nobody forgets to


class RedisServer(Server):
    """A Redis without persistence; `flush` empties it, `config` sets its options."""

    name = "redis"

    def __init__(self, *options: str) -> None:
        self._program = find_program(["redis-server"], "redis-server")
        super().__init__()
        self._options = options
        self.config_changed = False

    def command(self) -> list[str]:
        return [
            self._program, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.dir),
            "--save", "", "--appendonly", "no", "--protected-mode", "no", *self._options,
        ]  # fmt: skip

    def ready(self) -> bool:
        with self.client() as client:
            return bool(client.ping())

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def client(self) -> Any:
        """Return a redis-py client that never retries."""
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        return redis.Redis(
            port=self.port, socket_timeout=5, socket_connect_timeout=5, retry=Retry(NoBackoff(), 0)
        )

    def execute(self, *command: Any) -> Any:
        """Run one command."""
        with self.client() as client:
            return client.execute_command(*command)

    def config(self, **options: Any) -> None:
        """Set options such as ``maxmemory="2mb"`` until the next test; ``_`` stands for ``-``."""
        self.config_changed = True
        for name, value in options.items():
            self.execute("CONFIG", "SET", name.replace("_", "-"), value)

    def flush(self) -> None:
        """Empty it."""
        self.execute("FLUSHALL")

    def heal(self) -> None:
        if self.config_changed:
            self.kill()
            self.config_changed = False
        super().heal()


class RedisCluster:
    """Three masters that share the slots."""

    def __init__(self) -> None:
        self._cli = find_program(["redis-cli"], "redis-tools")
        self.nodes: list[RedisServer] = []
        for _ in range(3):
            self.nodes.append(
                RedisServer(
                    "--cluster-enabled",
                    "yes",
                    "--cluster-port",
                    str(free_port()),
                    "--cluster-node-timeout",
                    "2000",
                )
            )
        self._formed = False

    @property
    def url(self) -> str:
        return f"redis+cluster://127.0.0.1:{self.nodes[0].port}"

    def _addresses(self) -> list[str]:
        return [f"127.0.0.1:{node.port}" for node in self.nodes]

    def start(self) -> None:
        """Start the nodes, form the cluster, and wait until every node serves."""
        for node in self.nodes:
            node.start()
        if not self._formed:
            run([self._cli, "--cluster", "create", *self._addresses(), "--cluster-yes"])
            self._formed = True
        for node in self.nodes:
            node._wait_until(
                lambda node=node: node.execute("CLUSTER INFO")["cluster_state"] == "ok", "join"
            )

    def flush(self) -> None:
        """Empty every node."""
        for node in self.nodes:
            node.flush()

    def heal(self) -> None:
        """Bring every node back."""
        for node in self.nodes:
            node.heal()
        self.start()

    def destroy(self) -> None:
        """Kill the nodes and remove their directories."""
        for node in self.nodes:
            node.destroy()


class SqlServer(Server):
    """What the SQL servers have in common: databases made on demand."""

    durable = False

    def database_url(self, database: str) -> str:
        raise NotImplementedError

    @contextmanager
    def admin(self) -> Iterator[Any]:
        """Give a cursor of an administrator, in autocommit."""
        raise NotImplementedError
        yield

    def ready(self) -> bool:
        with self.admin() as cursor:
            cursor.execute("SELECT 1")
        return True

    def execute(self, statement: str) -> list[Any]:
        """Run one statement as administrator; return its rows."""
        with self.admin() as cursor:
            cursor.execute(statement)
            return list(cursor.fetchall()) if cursor.description else []

    def create_database(self) -> str:
        """Make an empty database; return its name."""
        name = f"t_{uuid.uuid4().hex[:16]}"
        self.execute(f"CREATE DATABASE {name}")
        return name

    def drop_database(self, name: str) -> None:
        """Drop a database, whoever uses it."""
        self.execute(f"DROP DATABASE IF EXISTS {name}")


class MariaDBServer(SqlServer):
    """A MariaDB with its default, case-insensitive collation."""

    name = "mariadb"

    def __init__(self) -> None:
        self._program = find_program(["mariadbd", "mysqld"], "mariadb-server")
        self._install = find_program(["mariadb-install-db", "mysql_install_db"], "mariadb-server")
        super().__init__()
        self._installed = False

    def _common(self) -> list[str]:
        common = ["--no-defaults", f"--datadir={self.dir}/data", "--skip-name-resolve"]
        return [*common, "--user=root"] if os.geteuid() == 0 else common

    def command(self) -> list[str]:
        flush = "1" if self.durable else "2"  # 2: written at commit, not synced
        return [
            self._program, *self._common(), f"--port={self.port}", "--bind-address=127.0.0.1",
            f"--tmpdir={self.dir}",
            f"--socket={self.dir}/sock", f"--pid-file={self.dir}/pid",
            f"--innodb-flush-log-at-trx-commit={flush}", "--innodb-buffer-pool-size=32M",
            "--innodb-log-file-size=16M", "--performance-schema=OFF", "--max-connections=200",
            "--key-buffer-size=1M", "--aria-pagecache-buffer-size=1M",
        ]  # fmt: skip

    def start(self) -> None:
        if not self._installed:
            run(
                [self._install, *self._common(), f"--tmpdir={self.dir}", "--skip-test-db",
                 "--auth-root-authentication-method=normal"]
            )  # fmt: skip
            self._installed = True
            super().start()
            self.execute(f"CREATE USER sync@'127.0.0.1' IDENTIFIED BY '{PASSWORD}'")
            self.execute("GRANT ALL ON *.* TO sync@'127.0.0.1'")
        super().start()

    def ready(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:  # pymysql leaks a socket that is refused
            probe.connect(f"{self.dir}/sock")
        return super().ready()

    @contextmanager
    def admin(self) -> Iterator[Any]:
        import pymysql

        connection = pymysql.connect(
            unix_socket=f"{self.dir}/sock", user="root", autocommit=True,
            connect_timeout=5, read_timeout=20, write_timeout=20,
        )  # fmt: skip
        with connection, connection.cursor() as cursor:
            yield cursor

    def database_url(self, database: str) -> str:
        return f"mysql+pymysql://sync:{quote(PASSWORD, safe='')}@127.0.0.1:{self.port}/{database}"


class PostgresServer(SqlServer):
    """A PostgreSQL whose default collation is linguistic, as many installations have it."""

    name = "postgres"
    stop_signal = signal.SIGINT  # "fast": does not wait for clients

    def __init__(self) -> None:
        dirs = sorted((str(p) for p in Path("/usr/lib/postgresql").glob("*/bin")), reverse=True)
        self._program = find_program(["postgres"], "postgresql", dirs)
        self._initdb = find_program(["initdb"], "postgresql", dirs)
        super().__init__()
        self._initialised = False
        if os.geteuid() == 0:  # the server refuses to run as root
            self.user = "postgres"

    def command(self) -> list[str]:
        durable = "on" if self.durable else "off"
        settings = {
            "port": self.port, "listen_addresses": "127.0.0.1",
            "unix_socket_directories": self.dir / "pg", "shared_buffers": "16MB",
            "max_connections": 100, "fsync": durable, "synchronous_commit": "on",
            "full_page_writes": durable, "autovacuum": "off",
        }  # fmt: skip
        flags = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return [self._program, "-D", str(self.dir / "pg" / "data"), *flags]

    def start(self) -> None:
        if not self._initialised:
            home = self.dir / "pg"
            home.mkdir()
            password = home / "password"
            password.write_text(PASSWORD)
            if self.user:
                for path in (home, password):
                    os.chown(path, *_ids(self.user))
            run(
                [self._initdb, "-D", str(home / "data"), "-U", "sync", "--no-sync", "-E", "UTF8",
                 "--locale=C.UTF-8", "--locale-provider=icu", "--icu-locale=en-US",
                 "--auth-local=trust", "--auth-host=scram-sha-256", "--pwfile", str(password)],
                user=self.user,
            )  # fmt: skip
            self._initialised = True
        super().start()

    @contextmanager
    def admin(self) -> Iterator[Any]:
        import psycopg

        with (
            psycopg.connect(
                host=str(self.dir / "pg"), port=self.port, user="sync", dbname="postgres",
                autocommit=True, connect_timeout=5,
            ) as connection,
            connection.cursor() as cursor,
        ):  # fmt: skip
            yield cursor

    def database_url(self, database: str) -> str:
        password = quote(PASSWORD, safe="")
        return f"postgresql+psycopg://sync:{password}@127.0.0.1:{self.port}/{database}"

    def drop_database(self, name: str) -> None:
        self.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


def _ids(user: str) -> tuple[int, int]:
    import pwd

    entry = pwd.getpwnam(user)
    return entry.pw_uid, entry.pw_gid
