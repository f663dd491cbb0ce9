"""The cold path: compares Merkle trees with a peer, and fetches what differs."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Mapping, Sequence

from sync_engine.core import failpoints
from sync_engine.core.item import Change
from sync_engine.core.merkle import Divergence, MerkleDiff, MerkleNode, MerklePage
from sync_engine.core.options import SubmitOptions
from sync_engine.engine import SyncEngine
from sync_engine.errors import ConfigError, Conflict, StoreUnavailable
from sync_engine.ports import AdapterContext, SourceBatch
from sync_engine.replication.link import PeerLink
from sync_engine.replication.pace import Pace
from sync_engine.replication.sieve import Sieve, held_back
from sync_engine.stores.sql import SqlArchive
from sync_engine.telemetry import get_logger

__all__ = ["PeerArchive"]

_log = get_logger("replication.cold")
_PAGE = 200
_DIVERGENT_MAX = 20_000
_AGAIN_S = 1.0


class PeerArchive:
    """Gives what a peer's archive has newer than ours; implements `ports.CandidSource`.

    The peer's database is only read, and nobody there notices. That something is absent on one side
    deletes nothing on the other: deletions are tombstones, and tombstones are entries of the tree.

    Nothing needs to be remembered between two comparisons: what a crash interrupts, the next one
    finds again.

    Owned by one job; `progress` from any thread. Cost: two questions where the trees are equal; see
    `core.merkle.diff` where they are not.

    Args:
        engine: Ours.
        link: The peer; it has an ``sql_url``.
        sieve: Decides what may come in.
        context: Of the source.

    Raises:
        ConfigError: A setting of the peer cannot be used.
    """

    name = "peer_archive"

    def __init__(
        self, engine: SyncEngine, link: PeerLink, sieve: Sieve, context: AdapterContext
    ) -> None:
        peer, config = link.peer, engine.config
        self._engine = engine
        self._link = link
        self._sieve = sieve
        self._runtime = context.runtime
        self._clock = context.runtime.clock
        self._pace = Pace(self._clock, items_per_s=peer.items_per_s, bytes_per_s=peer.bytes_per_s)
        self._archive = SqlArchive(
            peer.sql_url or "",
            clock=self._clock,
            create_schema=False,
            merkle_separator=config.merkle_separator,
            connect_timeout_s=config.l3_connect_timeout_s,
            timeout_s=config.l3_timeout_s,
            pool_size=1,
        )
        self._paths = _paths(peer.prefixes, config.merkle_separator)
        self._queue: deque[str] = deque()
        self._cycle: _Cycle | None = None
        self._next_at = -math.inf
        self._counts: Counter[str] = Counter()
        self._seen: Counter[str] = Counter()
        self._seconds = 0.0
        self._connected = False

    def attach(self) -> None:
        """Connect.

        Raises:
            StoreUnavailable: The peer's archive is not there, or has no tables yet.
        """
        try:
            self._archive.attach()
        except ConfigError as exc:  # it may be put right over there: that is no reason to give up
            raise StoreUnavailable("peer", "attach", str(exc)) from exc

    def close(self) -> None:
        """Close connections; what was not yet given is found again."""
        self._queue.clear()
        self._cycle = None
        self._next_at = -math.inf
        self._connected = False
        self._archive.close()

    def poll(self, items_max: int) -> SourceBatch:
        """Return a page of what differs, or how long there is nothing to do.

        Raises:
            StoreUnavailable: One of the archives cannot be asked, or its tree is not built.
        """
        now = self._clock.monotonic()
        if (wait_s := self._pace.wait_s()) > 0:
            return SourceBatch(changes=(), token=b"", wait_s=wait_s)
        if not self._queue and self._cycle is not None:
            self._end_cycle(self._cycle)
        if not self._queue:
            if now < self._next_at and not self._link.compare_wanted:
                return SourceBatch(changes=(), token=b"", wait_s=self._next_at - now)
            self._connected = False
            self._begin_cycle(now)
            self._connected = True
        if not self._queue:
            return SourceBatch(changes=(), token=b"", wait_s=0.0)
        count = min(items_max, _PAGE, len(self._queue))
        changes = self._fetched([self._queue[place] for place in range(count)])
        for _ in range(count):
            self._queue.popleft()
        self._pace.took(changes)
        return SourceBatch(changes=changes, token=b"")

    def ack(self, token: bytes) -> None:
        """Do nothing: the next comparison shows what is still missing."""
        del token
        if failpoints.armed:
            failpoints.hit("replication.fetched")

    # -- a comparison -----------------------------------------------------------------------------

    def _begin_cycle(self, now: float) -> None:
        link = self._link
        cycle = _Cycle(self._clock.now_ms(), link.gaps)
        link.compare_wanted = False
        try:
            found = [
                self._engine.diff(
                    _Other(self._archive), path=path, limit=_DIVERGENT_MAX, pause=self._breathe
                )
                for path in self._paths
            ]
        except BaseException:
            link.compare_wanted = True
            raise
        self._seconds = self._clock.monotonic() - now
        self._counts["comparisons"] += 1
        self._counts["questions"] += sum(one.calls for one in found)
        for one in found:
            self._sort(one, cycle)
        cycle.complete = not any(one.truncated for one in found)
        self._queue.extend(dict.fromkeys(cycle.wanted))
        self._seen = cycle.seen
        self._cycle = cycle
        if cycle.wanted or cycle.seen["held"]:
            _log.info("diverged", peer=link.peer.name, **cycle.seen)

    def _breathe(self) -> None:
        if self._engine.state.value != "running":
            raise StoreUnavailable("peer", "compare", "the engine is closing")

    def _end_cycle(self, cycle: _Cycle) -> None:
        if cycle.complete:  # what cannot be noted now is noted with the next poll
            self._link.compared(began_at_ms=cycle.began_at_ms, gaps_before=cycle.gaps_before)
            if failpoints.armed:
                failpoints.hit("replication.compared")
        self._cycle = None
        peer = self._link.peer
        jitter = 1 + peer.jitter * (self._runtime.random() - 0.5)
        pause_s = peer.interval_s * jitter if cycle.complete else min(_AGAIN_S, peer.interval_s)
        self._next_at = self._clock.monotonic() + pause_s

    def _sort(self, found: MerkleDiff, cycle: _Cycle) -> None:
        for one in found.divergent:
            if self._link.peer.wants(one.id):
                cycle.seen[self._verdict(one, cycle)] += 1

    def _verdict(self, one: Divergence, cycle: _Cycle) -> str:
        mine, theirs = one.mine, one.theirs
        if theirs is None:
            return "only_here"  # absence deletes nothing
        if mine is not None and mine.version > theirs.version:
            return "newer_here"
        if mine is not None and mine.version == theirs.version:
            return self._tied(one)
        if self._sieve.known_near(one.id, theirs.version):
            return "under_way"
        if mine is None and theirs.deleted and self._sieve.forgotten(theirs.version):
            return "forgotten"
        if mine is None and not theirs.deleted and self._sieve.held(theirs.version):
            _log.limited("held_back", peer=self._link.peer.name, id=one.id)
            return "held"
        cycle.wanted.append(one.id)
        return "wanted"

    def _tied(self, one: Divergence) -> str:
        """Settle two contents of one version: both sides know, alike, which of them goes on."""
        mine, theirs = one.mine, one.theirs
        if mine is None or theirs is None or mine.deleted:
            return "tied_there"
        if not theirs.deleted and mine.hash < theirs.hash:
            return "tied_there"
        item = self._engine.get(one.id)
        if item is None or item.version != mine.version:
            return "newer_here"
        try:  # as a new version: nobody replaces an equal one
            self._engine.submit(item, SubmitOptions(if_version=item.version))
        except Conflict:
            return "newer_here"
        self._counts["ties_settled"] += 1
        return "tied_here"

    def _fetched(self, ids: Sequence[str]) -> list[Change]:
        """Return the peer's changes of ids, those left out that cannot or must not come in."""
        rows = self._archive.get_many(ids) if len(ids) > 1 else self._one(ids[0])
        self._counts["fetched"] += len(rows)
        # What fails its checksum over there is left out; somebody else may have a good copy.
        self._counts["unreadable"] += len(ids) - len(rows)
        fit = [change for change in rows.values() if self._sieve.fits(change)]
        return self._sieve.news(fit)

    def _one(self, id: str) -> Mapping[str, Change]:
        # With a second id, a row that fails its checksum is left out instead of raised.
        return self._archive.get_many([id, "\x01"])

    def amiss(self) -> Sequence[str]:
        """Tell of what the last comparison found held back."""
        return held_back(self._seen["held"])

    def progress(self) -> Mapping[str, float]:
        """Return what the last comparison has shown, and counters."""
        standing = self._link.standing
        since_ms = self._clock.now_ms() - standing.compared_at_ms
        names = (
            "wanted",
            "held",
            "only_here",
            "newer_here",
            "under_way",
            "tied_here",
            "tied_there",
        )
        return {
            **{name: self._seen[name] for name in names},
            **{
                name: self._counts[name]
                for name in ("comparisons", "questions", "fetched", "unreadable", "ties_settled")
            },
            "connected": self._connected,
            "unfit": self._sieve.counts["unfit"],
            "ahead_s": self._sieve.ahead_ms / 1000,
            "left": len(self._queue),
            "compare_seconds": self._seconds,
            "compared_s_ago": since_ms / 1000 if standing.compared_at_ms else -1.0,
            "joined": standing.joined,
            "gap_open": bool(standing.gap),
        }


class _Cycle:
    """One comparison."""

    def __init__(self, began_at_ms: int, gaps_before: int) -> None:
        self.began_at_ms = began_at_ms
        self.gaps_before = gaps_before
        self.wanted: list[str] = []
        self.seen: Counter[str] = Counter()
        self.complete = False


class _Other:
    """The peer's tree."""

    def __init__(self, archive: SqlArchive) -> None:
        self._merkle = archive.merkle

    def merkle_root(self) -> MerkleNode:
        return self._merkle.merkle_root()

    def merkle_node(self, path: str) -> MerkleNode:
        return self._merkle.merkle_node(path)

    def merkle_children(
        self, path: str, after: str | None = None, limit: int = 1000, *, grouped: bool = False
    ) -> MerklePage:
        return self._merkle.merkle_children(path, after, limit, grouped=grouped)


def _paths(prefixes: Sequence[str], separator: str) -> list[str]:
    """Return the paths that have everything with these prefixes below them, none twice."""
    paths = sorted({prefix.rpartition(separator)[0] for prefix in prefixes})
    kept: list[str] = []
    for path in paths:
        if not any(above == "" or path.startswith(above + separator) for above in kept):
            kept.append(path)
    return kept
