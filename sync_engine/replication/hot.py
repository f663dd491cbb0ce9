"""The hot path: follows a peer's feed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sync_engine.core import failpoints
from sync_engine.core.version import ms_of_version
from sync_engine.ports import AdapterContext, SourceBatch
from sync_engine.replication.link import PeerLink
from sync_engine.replication.pace import Pace
from sync_engine.replication.sieve import Sieve, held_back
from sync_engine.sources.change_stream import ChangeStream

__all__ = ["PeerFeed"]


class PeerFeed:
    """Gives what a peer's feed tells and is news here; implements `ports.CandidSource`.

    The cursor lies in a file here, and moves once the log has the changes safely. Where the feed
    has a gap, that is noted durably, a comparison is asked for at once, and the feed is read on.

    Owned by one job; `progress` from any thread.

    Args:
        link: The peer; it has a ``redis_url``.
        sieve: Decides what is news.
        context: Of the source.

    Raises:
        ConfigError: A setting of the peer cannot be used.
    """

    name = "peer_feed"

    def __init__(self, link: PeerLink, sieve: Sieve, context: AdapterContext) -> None:
        peer = link.peer
        self._link = link
        self._sieve = sieve
        self._clock = context.runtime.clock
        self._pace = Pace(self._clock, items_per_s=peer.items_per_s, bytes_per_s=peer.bytes_per_s)
        self._stream = ChangeStream(
            peer.redis_url or "",
            clock=self._clock,
            cursor_path=context.data_dir / f"{context.name}.cursor",
            prefix=peer.redis_prefix,
            stream=peer.stream,
            on_gap="continue",
        )
        self._batch: SourceBatch | None = None
        self._gaps = 0
        self._heard_ms = 0
        self._lag_ms = 0
        self._connected = False

    def attach(self) -> None:
        """Connect; raises as `ports.Source.attach`."""
        self._batch = None
        self._stream.attach()

    def poll(self, items_max: int) -> SourceBatch:
        """Return what is news; raises as `ports.Source.poll`."""
        wait_s = self._pace.wait_s()
        if wait_s > 0:
            return SourceBatch(changes=(), token=b"", wait_s=wait_s)
        batch = self._batch
        if batch is None:
            self._connected = False
            # Held until it is decided on: the stream does not give it twice.
            batch = self._batch = self._stream.poll(items_max)
            self._connected = True
        if self._stream.gaps > self._gaps:
            # Before the cursor passes it: a crash must not forget that something is missing.
            self._link.missed("the feed told of a gap")
            self._gaps = self._stream.gaps
            if failpoints.armed:
                failpoints.hit("replication.gap")
        news = self._sieve.news(batch.changes)
        self._pace.took(batch.changes)
        now_ms = self._clock.now_ms()
        more = batch.wait_s == 0
        if batch.changes:
            self._heard_ms = max(ms_of_version(change.version) for change in batch.changes)
        self._lag_ms = max(0, now_ms - self._heard_ms) if more and batch.changes else 0
        if not more and self._link.peer.sql_url is None:
            self._link.told_all()
        self._batch = None
        return SourceBatch(changes=news, token=batch.token, wait_s=batch.wait_s)

    def ack(self, token: bytes) -> None:
        """Move the cursor; raises as `ports.Source.ack`."""
        if failpoints.armed:
            failpoints.hit("replication.ack")
        self._stream.ack(token)

    def progress(self) -> Mapping[str, float]:
        """Return counters: what was heard, known, held, and how far behind it is."""
        counts = self._sieve.counts
        return {
            **self._stream.progress(),
            **{name: counts[name] for name in ("known", "held", "unwanted", "cache_only")},
            "connected": self._connected,
            "lag_s": self._lag_ms / 1000,
            "ahead_s": self._sieve.ahead_ms / 1000,
            "gap_open": bool(self._link.standing.gap),
        }

    def amiss(self) -> Sequence[str]:
        """Tell of an open gap, and, where nobody compares, of what is held back."""
        told = [gap] if (gap := self._link.standing.gap) else []
        held = self._sieve.counts["held"]
        return [*told, *held_back(held)] if self._link.peer.sql_url is None else told

    def close(self) -> None:
        """Close connections."""
        self._batch = None
        self._connected = False
        self._stream.close()
