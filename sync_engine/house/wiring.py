"""The wiring: which parts an engine has, and which of them knows which."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sync_engine.config import SyncEngineConfig
from sync_engine.core.batcher import BatchConfig, FlushBatch
from sync_engine.core.filters import FilterManager
from sync_engine.core.item import Change
from sync_engine.flow.arbiter import Arbiter
from sync_engine.flow.arrivals import Arrivals
from sync_engine.flow.atomic import AtomicWrites
from sync_engine.flow.circuits import BackendCircuits
from sync_engine.flow.coherence import Coherence, Publisher
from sync_engine.flow.doors import Doors
from sync_engine.flow.feed import Feeds
from sync_engine.flow.filter_snapshot import FilterSnapshot
from sync_engine.flow.follower import Follower
from sync_engine.flow.guard import Guard
from sync_engine.flow.heard import Gate, Heard
from sync_engine.flow.keeper import Keeper
from sync_engine.flow.l2_delivery import L2Delivery, abandon_keys
from sync_engine.flow.l3_delivery import L3Delivery
from sync_engine.flow.log_upkeep import LogUpkeep, oldest_pending_ms
from sync_engine.flow.mirror import Mirror
from sync_engine.flow.queries import Queries
from sync_engine.flow.reader import Reader
from sync_engine.flow.stale import StaleCopies
from sync_engine.flow.standing import OwnStanding
from sync_engine.flow.tier import Tier
from sync_engine.flow.trees import Trees
from sync_engine.flow.writer import Writer
from sync_engine.house.stores import Stores
from sync_engine.ports import ArchiveStore, CacheStore, Runtime
from sync_engine.stores.memory import MemoryCache
from sync_engine.telemetry import Metrics
from sync_engine.wal.log import WriteAheadLog
from sync_engine.wal.owner import LOG_SUFFIX, OwnerLock
from sync_engine.wal.records import LogListener

__all__ = ["L2", "L3", "Parts"]

L2, L3, MIRROR = "l2", "l3", Mirror.JOB


class _Listener(LogListener):
    """Tells reader, L1 and followers that the log moved."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def visible(self, changes: Sequence[Change]) -> None:
        self._parts.reader.overtake(changes)
        self._parts.stale.forget(changes)

    def released(self, changes: Sequence[Change], *, in_memory: bool) -> None:
        l1 = self._parts.gate
        if in_memory:
            l1.put_many(changes)
        else:
            l1.discard_many([change.id for change in changes])
        self._parts.stale.forget(changes)

    def wake(self, names: Sequence[str]) -> None:
        for name in names:
            self._parts.runtime.wake(name)


class Parts:
    """All parts of one engine, made and connected; nothing runs yet.

    Raises:
        ConfigError: A setting cannot be used, or another process owns the log.
        CorruptData: The log file is damaged or foreign.
    """

    def __init__(
        self, config: SyncEngineConfig, runtime: Runtime, stores: Stores | None = None
    ) -> None:
        self.config = config
        self.runtime = runtime
        self.clock = runtime.clock
        self.metrics = Metrics()
        self.stores = stores or Stores.from_config(config, runtime)
        self.circuits = BackendCircuits()
        self.job_names: list[str] = []

        self.path = Path(config.data_dir) / f"{config.engine_name}{LOG_SUFFIX}"
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.owner = OwnerLock(self.path)
        try:
            self._wire_reading()
            self._wire_delivery()
            self._wire_writing()
            self._wire_coherence()
            self._wire_upkeep()
            self._wire_doors()
        except BaseException:
            self.owner.release()
            raise

    def _wire_reading(self) -> None:
        """Open the log; make the tiers and the ways to what they hold."""
        config, runtime = self.config, self.runtime
        self.stale = StaleCopies(config.stale_bytes_max, runtime.lock)
        self.l1 = MemoryCache(
            config.l1_bytes_max,
            policy=config.l1_policy,
            now_ms=self.clock.now_ms,
            lock=runtime.lock,
            expired=self.stale.keep,
        )
        self.heard = Heard()
        self.gate = Gate(self.l1, self.heard, runtime.lock())
        self.l3: Tier[ArchiveStore] = Tier(L3, self.stores.l3, self._guard(L3))
        self.l2: Tier[CacheStore] | None = None
        if self.stores.l2 is not None:
            self.l2 = Tier(L2, self.stores.l2, self._guard(L2))
        self.log = WriteAheadLog(
            self.path,
            runtime,
            _Listener(self),
            memory_bytes_max=config.overlay_bytes_max,
            archive=L3,
            overlay=() if self.l2 is None else (L2,),
        )
        self.filters = FilterManager(
            config.filter,
            capacity=config.filter_capacity,
            audit_every=config.filter_audit_every,
            covered=lambda: self.keeper.covered(),
            lock=runtime.lock,
        )
        self.arrivals = Arrivals(self.log, runtime)
        self.reader = Reader(
            self.log.pending,
            self.gate,
            self.l2,
            self.l3,
            self.filters,
            runtime,
            self.metrics,
            stale=self.stale,
            observe_version=self.log.observe,
            timeout_s=config.read_timeout_s,
            wake_l2=lambda: runtime.wake(L2),
            heard=self.heard,
        )
        self.queries = Queries(
            self.log.overlay.ids, self.log.pending, self.reader, self.l3, self.clock.now_ms
        )

    def _wire_delivery(self) -> None:
        """Make the followers that bring the log's changes to the tiers."""
        config = self.config
        self.l3_delivery = L3Delivery(self.filters)
        self.l3.prepare = self.l3_delivery.prepare
        self.followers = {L3: self._follower(L3, self.l3, config.l3_batch)}
        self.l2_delivery: L2Delivery | None = None
        if self.l2 is not None:
            self.l2_delivery = L2Delivery(
                self.l2,
                self.log,
                self.arrivals,
                self.metrics,
                now_ms=self.clock.now_ms,
                lag_items_max=config.l2_lag_items_max,
                deliver_fills=self.reader.deliver_fills,
            )
            self.followers[L2] = self._follower(
                L2, self.l2, config.l2_batch, refused=self.l2_delivery.refused
            )
        elif L2 in self.log.followers and not config.passive:  # its keys grow old unseen
            abandon_keys(self.log)
            self.log.unfollow(L2)
        self.log.follow(L3)
        self._flush_seconds = {
            name: self.metrics.histogram("flush_seconds", tier=name) for name in self.followers
        }

    def _wire_writing(self) -> None:
        """Make the ways in: plain writes, and those that depend on what is there."""
        config, runtime = self.config, self.runtime
        self.writer = Writer(
            self.log,
            self.filters,
            self.arrivals,
            runtime,
            payload_bytes_max=config.max_payload_bytes,
            pressure=config.pressure,
            timeout_s=config.submit_timeout_s,
            hurry_archive=self.followers[L3].hurry,
        )
        self.arbiter = Arbiter(
            self.log,
            l2=self.l2,
            l3=self.l3,
            l1=self.gate,
            filters=self.filters,
            writer=self.writer,
            runtime=runtime,
            timeout_s=config.read_timeout_s,
        )
        self.atomic = AtomicWrites(
            self.log,
            self.reader,
            self.writer,
            runtime,
            alone=lambda: self.keeper.covered(),
            timeout_s=config.read_timeout_s,
            arbiter=None if config.passive else self.arbiter,
        )

    def _wire_coherence(self) -> None:
        """Make the parts by which engines on one archive learn of each other's changes."""
        config, feed = self.config, self.stores.feed
        self.coherence: Coherence | None = None
        self.publisher: Publisher | None = None
        if config.coherence != "off":
            self.coherence = Coherence(
                feed,
                is_own=self._is_own_origin,
                gate=self.gate,
                heard=self.heard,
                reader=self.reader,
                stale=self.stale,
                filters=self.filters,
                archive=self.l3,
                observe_version=self.log.observe,
                alone=lambda: self.keeper.covered(),
                metrics=self.metrics,
                runtime=self.runtime,
                retry=config.delivery_retry,
                settle_s=config.lease_ttl_s,
            )
        if config.passive:
            return
        if feed is not None and self.coherence is not None:
            self.log.follow(Publisher.JOB)
            self.publisher = Publisher(
                self.log,
                feed,
                self.arrivals,
                self.runtime,
                retry=config.delivery_retry,
                lag_items_max=config.l2_lag_items_max,
            )
        elif Publisher.JOB in self.log.followers:
            self.log.unfollow(Publisher.JOB)

    def _wire_upkeep(self) -> None:
        """Make what keeps the log, the filter, the archive and its tree in order."""
        config, runtime = self.config, self.runtime
        self.filter_snapshot = FilterSnapshot(self.l3, self.filters, self.log)
        self.keeper = Keeper(
            self.l3,
            self.filters,
            runtime,
            owner=self._owner_name(),
            lease_ttl_s=config.lease_ttl_s,
            retention_s=config.tombstone_retention_s,
            pending_ids=self.log.overlay.ids,
            oldest_pending_ms=partial(oldest_pending_ms, self.log, self.clock),
            restore=self.filter_snapshot.restore,
            enabled=config.filter != "off",
            settled=lambda: self.atomic.settled(),
            claim_number=self.log.claim_number,
            standing=None if config.passive else self._standing(),
        )
        self.trees = Trees(
            self.l3,
            self.l2,
            self.filters,
            self.reader,
            self.writer,
            self.log,
            runtime,
            observe_version=self.log.observe,
            enabled=config.merkle,
        )
        mirror: Any = self.stores.mirror
        self.mirror = Mirror(
            self.l3,
            None if mirror is None else Tier(MIRROR, mirror, self._guard(MIRROR)),
            runtime,
            retry=config.delivery_retry,
            enabled=config.merkle,
        )
        self.log_upkeep = LogUpkeep(
            self.log,
            self.writer,
            self.clock,
            write_s=config.log_interval_s,
            fsync_s=config.fsync_interval_s,
            log_bytes_max=config.log_bytes_max,
            tidied=lambda: self.feeds.tidy(),
            filled=lambda fullness: self.doors.relieve(fullness),
        )

    def _wire_doors(self) -> None:
        """Make the ways out: feeds, sources and sinks."""
        config, runtime = self.config, self.runtime
        self.feeds = Feeds(self.log, self.arrivals, runtime, config.feed_items_kept)
        self.doors = Doors(
            log=self.log,
            writer=self.writer,
            l1=self.l1,
            filters=self.filters,
            archive=self.l3,
            arrivals=self.arrivals,
            runtime=runtime,
            circuits=self.circuits,
            metrics=self.metrics,
            retry=config.delivery_retry,
            data_dir=Path(config.data_dir),
            hurry_archive=self.followers[L3].hurry,
            keeps_cache=self.l2 is not None,
        )

    def _is_own_origin(self, origin: str) -> bool:
        return self.publisher is not None and origin == self.publisher.origin

    def _standing(self) -> OwnStanding:
        """Make the watch over what the others may not see, before anything is archived."""
        cursor, publisher, l2 = self.log.cursor, self.publisher, self.l2
        if publisher is None:
            return OwnStanding(partial(cursor, L3))

        def cached() -> int:
            """Return what L2 has; nothing, before it has let go of what it was cut off with."""
            if l2 is None:
                return cursor(Publisher.JOB)
            return cursor(L2) if l2.renew is None else -1

        return OwnStanding(
            partial(cursor, L3), partial(cursor, Publisher.JOB), lambda: publisher.healthy, cached
        )

    def _owner_name(self) -> str:
        """Return a name that at most one live process bears: log, host and path."""
        place = f"{self.log.uuid} {platform.node()} {self.path.resolve()}"
        return hashlib.blake2b(place.encode(), digest_size=16).hexdigest()

    def _guard(self, name: str) -> Guard:
        config = self.config
        guard = Guard(
            name,
            self.runtime,
            circuit=config.l3_circuit if name == L3 else config.l2_circuit,
            retry=config.read_retry,
            timeout_s=config.read_timeout_s,
            metrics=self.metrics,
        )
        self.circuits.add(guard.breaker)
        return guard

    def _follower(
        self,
        name: str,
        tier: Tier[Any],
        batch: BatchConfig,
        refused: Callable[[Change], bool] = lambda _: False,
    ) -> Follower:
        return Follower(
            name,
            self.log,
            tier,
            self.runtime,
            batch=batch,
            retry=self.config.delivery_retry,
            reached=self.arrivals.reached,
            flushed=lambda done, seconds: self._flushed(name, done, seconds),
            refused=refused,
        )

    # -- delivery ---------------------------------------------------------------------------------

    def _flushed(self, name: str, batch: FlushBatch, seconds: float) -> None:
        self._flush_seconds[name].observe(seconds)
        self.metrics.counter("flushes", tier=name, reason=batch.reason.value).inc()
        self.metrics.counter("delivered_items", tier=name).add(len(batch.changes))
        if name == L3:
            self.l3_delivery.flushed(batch.changes)
