"""An engine that reaches the archive and not Redis, on real servers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.servers import RedisServer

from sync_engine import SyncEngine
from sync_engine.config import SyncEngineConfig
from sync_engine.runtime import SystemClock
from sync_engine.testing import FaultProxy

pytestmark = pytest.mark.external

CLOCK = SystemClock()
SEEN_WITHIN_S = 2 * SyncEngineConfig().lease_ttl_s


def until(true: Callable[[], bool], seconds: float) -> float:
    """Wait for a condition; return how long that took."""
    begun = CLOCK.monotonic()
    while not true():
        waited = CLOCK.monotonic() - begun
        assert waited < seconds, f"not within {seconds} s"
        CLOCK.sleep(0.02)
    return CLOCK.monotonic() - begun


@pytest.fixture
def proxy(redis_server: RedisServer) -> Iterator[FaultProxy]:
    with FaultProxy("127.0.0.1", redis_server.port) as proxy:
        yield proxy


@pytest.mark.parametrize("kind", ["sqlite", "mariadb", "postgres"])
def test_what_a_writer_without_its_redis_archives_is_seen_by_the_others(
    kind: str,
    tmp_path: Path,
    archive_url: Callable[[str], str],
    redis_server: RedisServer,
    proxy: FaultProxy,
) -> None:
    sql_url = archive_url(kind)
    with ExitStack() as stack:

        def engine(name: str, redis_url: str) -> SyncEngine:
            config = SyncEngineConfig(
                data_dir=tmp_path / name, redis_url=redis_url, sql_url=sql_url
            )
            return stack.enter_context(SyncEngine(config))

        writer = engine("writer", f"redis://127.0.0.1:{proxy.port}/0")
        readers = [engine(name, redis_server.url) for name in ("one", "two")]

        def all_read(content: bytes) -> bool:
            items = [reader.get("x") for reader in readers]
            return all(item is not None and item.content == content for item in items)

        def sights() -> set[object]:
            return {reader.stats()["coherence"]["sight"] for reader in readers}

        def all_warm() -> bool:
            return all(reader.warm("x")[0] for reader in readers)

        writer.submit("x", b"1")
        assert writer.flush(10).complete
        until(lambda: all_read(b"1") and sights() == {"feed"} and all_warm(), 10)

        proxy.refuse = True
        proxy.drop_connections()
        writer.submit("x", b"2")
        until(lambda: all_read(b"2"), SEEN_WITHIN_S)

        writer.submit("x", b"3")  # by now they know that it cannot tell
        until(lambda: all_read(b"3"), SEEN_WITHIN_S)
        assert sights() == {"archive"}

        proxy.refuse = False
        until(lambda: sights() == {"feed"}, 60)
        assert all_read(b"3")
        writer.submit("x", b"4")
        until(lambda: all_read(b"4"), 10)
