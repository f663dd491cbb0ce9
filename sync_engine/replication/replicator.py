"""`Replicator`: the peers of one engine, two sources for each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

from sync_engine.engine import SyncEngine
from sync_engine.errors import ConfigError
from sync_engine.ports import Source
from sync_engine.replication.cold import PeerArchive
from sync_engine.replication.hot import PeerFeed
from sync_engine.replication.link import PeerLink
from sync_engine.replication.peer import Peer
from sync_engine.replication.sieve import Sieve

__all__ = ["PeerStatus", "Replicator"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerStatus:
    """How it goes with one peer.

    Attributes:
        connected: Whether every configured path works.
        lag_s: Seconds that the feed's last change was behind, while more waits; 0: at its end.
        compared_s_ago: Seconds since the last complete comparison began; -1.0: there was none.
        held: Items that are not taken because their deletion may have been forgotten here.
        gap: Why the feed told too little, until a comparison has made that good; else empty.
        errors: What fails, one sentence a path.
    """

    connected: bool
    lag_s: float
    compared_s_ago: float
    held: int
    gap: str
    errors: tuple[str, ...]


class Replicator:
    """Pulls from peers into an engine.

    For each peer there are two sources of the engine, ``peer-NAME-feed`` and ``peer-NAME-archive``:
    they are seen in `SyncEngine.stats` and `SyncEngine.health`, and can be paused by those names.

    Thread-safety: `add`, `remove` and `close` belong to one thread; `status` to any.

    Args:
        engine: A started engine that is not passive. Its other peers may be other replicators'.
        peers: Added at once.

    Raises:
        ConfigError: A peer cannot be used; none was added.
        CorruptData: The file of a peer's standing is damaged.
    """

    def __init__(self, engine: SyncEngine, peers: Iterable[Peer] = ()) -> None:
        self._engine = engine
        self._links: dict[str, PeerLink] = {}
        self._sources: dict[str, list[Source]] = {}
        try:
            for peer in peers:
                self.add(peer)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def peers(self) -> tuple[Peer, ...]:
        """The peers, in the order they were added."""
        return tuple(link.peer for link in self._links.values())

    @staticmethod
    def source_names(peer: Peer) -> list[str]:
        """Return the names of a peer's sources."""
        paths = (("feed", peer.redis_url), ("archive", peer.sql_url))
        return [f"peer-{peer.name}-{path}" for path, url in paths if url is not None]

    def add(self, peer: Peer) -> None:
        """Begin to pull from a peer; it need not be there.

        Raises:
            ConfigError: The name is taken, or a setting cannot be used.
            CorruptData: The file of its standing is damaged.

        Blocking: reads a small file.
        """
        if peer.name in self._links:
            raise ConfigError(f"peer {peer.name}: there are two of this name")
        engine = self._engine
        if peer.sql_url is not None and peer.sql_url == engine.config.sql_url:
            raise ConfigError(f"peer {peer.name}: sql_url is the engine's own archive")
        runtime = engine.adapter_context("source", self.source_names(peer)[0]).runtime
        data_dir = Path(engine.config.data_dir)
        link = PeerLink(peer, runtime, data_dir / f"peer-{peer.name}.standing")
        named: list[tuple[str, Source]] = []
        for name in self.source_names(peer):
            context = engine.adapter_context("source", name)
            sieve = Sieve(engine, link, runtime.clock)
            if name.endswith("-feed"):
                named.append((name, PeerFeed(link, sieve, context)))
            else:
                link.wake_comparison = context.wake
                named.append((name, PeerArchive(engine, link, sieve, context)))
        added = []
        try:
            for name, source in named:
                engine.add_source(name, source)
                added.append(name)
        except BaseException:
            for name in added:
                engine.remove_source(name)
            raise
        self._sources[peer.name] = [source for _, source in named]
        self._links[peer.name] = link
        progress = partial(self._progress, peer.name)
        gauge = engine.metrics.gauge_callback
        gauge("peer_lag_seconds", lambda: progress("lag_s"), peer=peer.name)
        gauge("peer_connected", lambda: progress("connected"), peer=peer.name)
        gauge("peer_held_items", lambda: float(_held(self._sources[peer.name])), peer=peer.name)
        gauge("peer_gap_open", lambda: progress("gap_open"), peer=peer.name)

    def _progress(self, name: str, field: str) -> float:
        found = [dict(source.progress()) for source in self._sources[name]]
        if field == "connected":
            return float(all(one[field] for one in found))
        return float(max(one.get(field, 0.0) for one in found))

    def remove(self, name: str) -> bool:
        """Stop pulling from a peer; return whether there was one. What is known of it stays.

        Raises:
            StoreUnavailable: It did not end what it was doing within 30 s; call again then.
        """
        link = self._links.get(name)
        if link is None:
            return False
        for source in self.source_names(link.peer):
            self._engine.remove_source(source)
        del self._links[name]
        del self._sources[name]  # and with that its gauges
        return True

    def compare(self, name: str) -> None:
        """Compare with a peer now, not only when the interval is over.

        Raises:
            KeyError: There is no such peer.
        """
        link = self._links[name]
        link.compare_wanted = True
        link.wake_comparison()

    def status(self) -> dict[str, PeerStatus]:
        """Return how it goes with every peer; never blocks on a server."""
        sources = self._engine.stats()["sources"]
        return {name: self._status(link, sources) for name, link in list(self._links.items())}

    def _status(self, link: PeerLink, sources: dict[str, Any]) -> PeerStatus:
        parts = [sources[name] for name in self.source_names(link.peer) if name in sources]
        progress: Sequence[dict[str, float]] = [part["progress"] for part in parts]
        standing = link.standing
        return PeerStatus(
            connected=all(part["attached"] and not part["error"] for part in parts),
            lag_s=max((one.get("lag_s", 0.0) for one in progress), default=0.0),
            compared_s_ago=max((one.get("compared_s_ago", -1.0) for one in progress), default=-1.0),
            held=_held(self._sources.get(link.peer.name, ())),
            gap=standing.gap,
            errors=tuple(part["error"] for part in parts if part["error"]),
        )

    def close(self) -> None:
        """Stop pulling; what is known of the peers stays. Safe twice."""
        for name in list(self._links):
            self.remove(name)


def _held(sources: Sequence[Source]) -> int:
    """Return what is held back: a comparison, where there is one, knows best; a feed only adds."""
    return int(sources[-1].progress().get("held", 0.0)) if sources else 0
