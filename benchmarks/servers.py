"""Private servers on loopback, and a fresh database on them for each case.

The servers are those of the test suite, with room for data in memory. They do not wait for the disk
at a commit, which makes the floor as fast as it can be and the ratio as strict as it can be.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

_TESTS = Path(__file__).resolve().parent.parent / "tests"
if str(_TESTS) not in sys.path:
    sys.path.insert(0, str(_TESTS))

from support.processes import MissingServer  # noqa: E402 - found by the line above
from support.servers import MariaDBServer, PostgresServer, RedisServer  # noqa: E402

__all__ = ["KINDS", "Servers", "running"]

KINDS = ("redis", "mariadb", "postgres")


class _RoomyMariaDB(MariaDBServer):
    def command(self) -> list[str]:
        room = ["--innodb-buffer-pool-size=512M", "--innodb-log-file-size=256M"]
        return [*super().command(), *room]


class _RoomyPostgres(PostgresServer):
    def command(self) -> list[str]:
        return [*super().command(), "-c", "shared_buffers=256MB", "-c", "max_wal_size=4GB"]


_MAKE: dict[str, Any] = {"redis": RedisServer, "mariadb": _RoomyMariaDB, "postgres": _RoomyPostgres}


class Servers:
    """The servers that run, started at their first use."""

    def __init__(self, wanted: frozenset[str], stack: ExitStack) -> None:
        self._wanted = wanted
        self._stack = stack
        self._running: dict[str, Any] = {}

    def get(self, kind: str) -> Any:
        """Return a running server, or None where it is not installed or not wanted."""
        if kind not in self._running:
            self._running[kind] = self._start(kind) if kind in self._wanted else None
        return self._running[kind]

    def _start(self, kind: str) -> Any:
        try:
            server = _MAKE[kind]()
        except MissingServer as exc:
            print(f"left out: {exc}", file=sys.stderr)
            return None
        self._stack.callback(server.destroy)
        server.start()
        return server

    @contextmanager
    def database(self, kind: str) -> Iterator[str | None]:
        """Give the URL of an empty database; None where the server is not there.

        SQLite needs no server: whoever asks for it makes files of its own.
        """
        if kind == "sqlite":
            yield "sqlite://"
            return
        server = self.get(kind)
        if server is None:
            yield None
            return
        name = server.create_database()
        try:
            yield server.database_url(name)
        finally:
            server.heal()
            server.drop_database(name)


@contextmanager
def running(wanted: frozenset[str]) -> Iterator[Servers]:
    """Hold servers for a run; all are killed at its end."""
    with ExitStack() as stack:
        yield Servers(wanted, stack)
