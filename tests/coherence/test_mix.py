"""Four processes on one Redis and one database, while the feed's connections are killed.

The short form runs for 8 s; MIX_SECONDS=60 runs the full one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.servers import RedisServer

from sync_engine.config import SyncEngineConfig
from sync_engine.runtime import SystemClock, SystemRuntime
from sync_engine.stores.sql import SqlArchive
from sync_engine.testing import check
from sync_engine.testing.history import Entry

pytestmark = pytest.mark.external

SECONDS = float(os.environ.get("MIX_SECONDS", "8"))
CHILD = Path(__file__).with_name("mix_child.py")
CLOCK = SystemClock()
BROKEN = {"stale", "resurrected", "lost", "lost-update", "phantom", "twice", "failed-visible"}


class Process:
    def __init__(self, *args: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(CHILD), *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def say(self, command: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()

    def hear(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "a process died"
        return json.loads(line)


def ask_all(processes: list[Process], command: str) -> list[Any]:
    for process in processes:
        process.say(command)
    return [process.hear() for process in processes]


def kill_feed_connections(server: RedisServer) -> int:
    """Cut everybody who is just listening to the feed."""
    client = server.client()
    listening = [c for c in client.client_list() if c["cmd"] in ("xread", "hgetall")]
    for connection in listening:
        client.client_kill_filter(_id=connection["id"])
    return len(listening)


@pytest.mark.parametrize(
    ("kind", "with_redis"),
    [("mariadb", True), ("postgres", True), ("mariadb", False)],
    ids=["mariadb-redis", "postgres-redis", "mariadb-alone"],
)
def test_four_engines_tell_the_truth(
    kind: str,
    with_redis: bool,
    tmp_path: Path,
    redis_server: RedisServer,
    archive_url: Callable[[str], str],
) -> None:
    sql_url = archive_url(kind)
    prepare(sql_url, tmp_path)
    processes = [
        Process(
            f"p{n}", str(tmp_path / f"p{n}"), sql_url, redis_server.url if with_redis else "",
            str(SECONDS), str(n),
        )
        for n in range(4)
    ]  # fmt: skip
    try:
        for process in processes:
            process.say("run")
        killed = 0
        until = CLOCK.monotonic() + SECONDS
        while CLOCK.monotonic() < until:
            CLOCK.sleep(min(5.0, SECONDS / 4))
            killed += kill_feed_connections(redis_server)
        assert killed or not with_redis
        for process in processes:
            process.hear()
        assert all(ask_all(processes, "flush"))
        CLOCK.sleep(2.0)  # the promise is: nothing stale two seconds after quiet

        quiet = ask_all(processes, "quiet")
        told = ask_all(processes, "told")
        roots = ask_all(processes, "root")
        assert all(ask_all(processes, "stop"))
    finally:
        for process in processes:
            process.process.kill()
            process.process.communicate()
    judge(quiet, told, roots, archived(sql_url, tmp_path))


def prepare(sql_url: str, tmp_path: Path) -> None:
    """Put there what the engines are going to take away."""
    from sync_engine import SyncEngine

    config = SyncEngineConfig(data_dir=tmp_path / "first", sql_url=sql_url)
    with SyncEngine(config) as engine:
        for n in range(200):
            engine.submit(f"take.{n}", b"there")


def archived(sql_url: str, tmp_path: Path) -> dict[str, int]:
    archive = SqlArchive(sql_url, clock=SystemRuntime().clock)
    archive.attach()
    rows = archive.scan(limit=100_000)
    archive.close()
    return {row.id: row.version for row in rows}


def judge(
    quiet: list[dict[str, int]], told: list[Any], roots: list[str], rows: dict[str, int]
) -> None:
    assert [line for each in told for line in each["errors"]] == []

    # Two seconds after quiet everybody sees what the archive has: nothing stale, nothing absent.
    assert all(seen == rows for seen in quiet)
    assert len(set(roots)) == 1

    entries = [msgspec.convert(entry, Entry) for each in told for entry in each["entries"]]
    final = {id: v for id, v in rows.items() if id.startswith(("blind.", "counter."))}
    found = check(entries, final, scope="site")
    assert [violation for violation in found if violation.kind in BROKEN] == []

    # Of all who wanted an id that nobody had, one got it; of all who took an item away, one did.
    claims = [id for each in told for id in each["claims"]]
    assert len(claims) == len(set(claims))
    assert {id: v for each in told for id, v in each["claims"].items()} == {
        id: version for id, version in rows.items() if id.startswith("claim.")
    }
    takes = [id for each in told for id in each["takes"]]
    assert len(takes) == len(set(takes))
    assert not set(takes) & set(rows)

    # Enough happened for all this to mean something.
    counted = sum(each["counted"] for each in told)
    assert counted > 20 * SECONDS
    for site in ("p0", "p1", "p2", "p3"):
        assert sum(entry.site == site for entry in entries) > 20 * SECONDS
    print(  # noqa: T201 - figures of the full form
        f"entries={len(entries)} counted={counted} claims={len(claims)} takes={len(takes)}"
        f" other={sorted({v.kind for v in found})} rows={len(rows)}"
    )
