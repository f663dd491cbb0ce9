"""Nodes of a mesh in one process: each with an archive, a log and a feed of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sync_engine import SyncEngine, SyncEngineConfig
from sync_engine.errors import StoreUnavailable
from sync_engine.replication import Peer, Replicator
from sync_engine.sinks.redis_stream import RedisStreamSink
from sync_engine.testing import SystemClock

DEADLINE_S = 30.0


def until(condition: Callable[[], object], what: str = "it") -> None:
    """Wait for something that other threads bring about."""
    end = time.monotonic() + DEADLINE_S
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen in {DEADLINE_S} s"
        pause.wait(0.01)


class Node:
    """One engine. `feed_url` is where it publishes; None does not."""

    def __init__(
        self, root: Path, name: str, *, feed_url: str | None = None, **settings: Any
    ) -> None:
        self.name = name
        self.dir = root / name
        self.feed_url = feed_url
        self.stream = f"feed-{name}"
        settings.setdefault("delivery_delay_s_max", 0.2)
        settings.setdefault("l3_circuit_open_s", 0.2)
        self.settings = settings
        self.engine: SyncEngine = None  # type: ignore[assignment]
        self.replicator: Replicator = None  # type: ignore[assignment]

    @property
    def sql_url(self) -> str:
        return f"sqlite:///{self.dir / 'archive.db'}"

    def start(self, *peers: Peer) -> Node:
        config = SyncEngineConfig(data_dir=self.dir, **self.settings)
        self.engine = SyncEngine(config).start()
        if self.feed_url is not None:
            sink = RedisStreamSink(self.feed_url, clock=SystemClock(), stream=self.stream)
            self.engine.add_sink("feed", sink)
        self.replicator = Replicator(self.engine, peers)
        return self

    def peer(self, *, hot: bool = False, cold: bool = False, **more: Any) -> Peer:
        """Return this node, as a peer of others."""
        return Peer(
            name=self.name,
            redis_url=more.pop("redis_url", self.feed_url) if hot else None,
            sql_url=more.pop("sql_url", self.sql_url) if cold else None,
            stream=self.stream,
            **{"interval_s": 0.2, **more},
        )

    def stop(self) -> None:
        if self.engine is not None:
            self.engine.close(5.0)

    def content(self, id: str) -> bytes | None:
        item = self.engine.get(id)
        return None if item is None else item.content

    def root(self) -> str:
        return self.engine.merkle_root().hash

    def appended(self) -> int:
        """How many changes were ever written to its log."""
        return int(self.engine.stats()["log"]["written"])


def equal(nodes: Sequence[Node]) -> bool:
    """Tell whether everything written is archived, and alike everywhere."""
    if any(not node.engine.flush(5.0).complete for node in nodes):
        return False
    try:
        return len({node.root() for node in nodes}) == 1
    except StoreUnavailable:
        return False
