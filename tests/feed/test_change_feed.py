"""The feeds between engines keep their contract."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.servers import RedisServer

from sync_engine.runtime import SystemClock
from sync_engine.stores.redis import RedisFeed
from sync_engine.testing import MemoryFeed
from sync_engine.testing.contracts.feed import ChangeFeedContract


class TestMemoryFeed(ChangeFeedContract):
    @pytest.fixture(autouse=True)
    def _feed(self) -> None:
        self.feed = MemoryFeed()

    def make_feed(self) -> MemoryFeed:
        return self.feed.client()

    def trim(self) -> None:
        self.feed.trim()


@pytest.mark.external
class TestRedisFeed(ChangeFeedContract):
    @pytest.fixture(autouse=True)
    def _server(self, redis_server: RedisServer) -> Iterator[None]:
        self.server = redis_server
        self.made: list[RedisFeed] = []
        yield
        for feed in self.made:
            feed.close()

    def make_feed(self) -> RedisFeed:
        self.made.append(RedisFeed(self.server.url, prefix="se", clock=SystemClock()))
        return self.made[-1]

    def trim(self) -> None:
        self.server.client().xtrim("se:{feed}:ids", maxlen=0, approximate=False)
