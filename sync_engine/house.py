"""The wiring: which parts there are, which jobs run them, in which order they start and stop."""

from __future__ import annotations

import contextlib
import hashlib
import math
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sync_engine.config import SyncEngineConfig
from sync_engine.core.batcher import FlushBatch, FlushReason
from sync_engine.core.filters import FilterManager
from sync_engine.core.item import Change, Route
from sync_engine.errors import StorageError, StoreRejected, StoreUnavailable
from sync_engine.flow.arbiter import Arbiter
from sync_engine.flow.arrivals import Arrivals
from sync_engine.flow.atomic import AtomicWrites
from sync_engine.flow.circuits import BackendCircuits
from sync_engine.flow.coherence import Coherence, Publisher
from sync_engine.flow.doors import Doors
from sync_engine.flow.feed import Feeds
from sync_engine.flow.follower import Follower
from sync_engine.flow.guard import Guard
from sync_engine.flow.heard import Gate, Heard
from sync_engine.flow.keeper import Keeper
from sync_engine.flow.queries import Queries
from sync_engine.flow.reader import Reader
from sync_engine.flow.stale import StaleCopies
from sync_engine.flow.sweeper import Sweeper
from sync_engine.flow.tier import Tier
from sync_engine.flow.trees import Trees
from sync_engine.flow.writer import Writer
from sync_engine.ports import ArchiveInfo, ArchiveStore, CacheStore, ChangeFeed, Runtime
from sync_engine.stores.memory import MemoryCache
from sync_engine.telemetry import Metrics, get_logger
from sync_engine.wal.log import WriteAheadLog
from sync_engine.wal.owner import LOG_SUFFIX, OwnerLock, orphans
from sync_engine.wal.records import LogListener

__all__ = ["House", "Stores"]

_log = get_logger("house")
L2, L3 = "l2", "l3"
_L3 = int(Route.L3)  # a plain number: flags are slow on hot paths
_DISK_RETRY_S = 0.5
_LAST_WORD_S = 1.0
_FILTER_SNAPSHOT = "filter"
_L2_CUT = "l2_cut"


@dataclass(frozen=True, slots=True)
class Stores:
    """The stores behind the tiers; tests pass their own."""

    l2: CacheStore | None
    l3: ArchiveStore
    feed: ChangeFeed | None = None

    @classmethod
    def from_config(cls, config: SyncEngineConfig, runtime: Runtime) -> Stores:
        """Build what the configuration names; connects to nothing yet.

        Raises:
            ConfigError: A URL is wrong, or the driver's extra is not installed.
        """
        from sync_engine.stores.sql import SqlArchive

        l2: CacheStore | None = None
        feed: ChangeFeed | None = None
        if config.redis_url is not None:
            from sync_engine.stores.redis import RedisFeed, RedisStore

            l2 = RedisStore(
                config.redis_url,
                prefix=config.redis_prefix,
                clock=runtime.clock,
                connect_timeout_s=config.l2_connect_timeout_s,
                timeout_s=config.l2_timeout_s,
                tombstone_ttl_s=config.l2_tombstone_ttl_s,
                fill_ttl_s=config.l2_fill_ttl_s,
            )
            if config.coherence != "off" and not config.passive:
                feed = RedisFeed(
                    config.redis_url,
                    prefix=config.redis_prefix,
                    clock=runtime.clock,
                    connect_timeout_s=config.l2_connect_timeout_s,
                    timeout_s=config.l2_timeout_s,
                )
        l3 = SqlArchive(
            config.sql_url or f"sqlite:///{config.data_dir.absolute() / 'archive.db'}",
            clock=runtime.clock,
            create_schema=config.create_schema,
            connect_timeout_s=config.l3_connect_timeout_s,
            timeout_s=config.l3_timeout_s,
            merkle=config.merkle,
            merkle_separator=config.merkle_separator,
        )
        return cls(l2, l3, feed)


class _Listener(LogListener):
    """Tells reader, L1 and followers that the log moved."""

    def __init__(self, house: House) -> None:
        self._house = house

    def visible(self, changes: Sequence[Change]) -> None:
        self._house.reader.overtake(changes)
        self._house.stale.forget(changes)

    def released(self, changes: Sequence[Change], *, in_memory: bool) -> None:
        l1 = self._house.gate
        if in_memory:
            l1.put_many(changes)
        else:
            l1.discard_many([change.id for change in changes])
        self._house.stale.forget(changes)

    def wake(self, names: Sequence[str]) -> None:
        for name in names:
            self._house.runtime.wake(name)


class House:
    """All parts of one engine.

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
        self._sync_at = 0.0
        self._tidy_at = 0.0

        self.path = Path(config.data_dir) / f"{config.engine_name}{LOG_SUFFIX}"
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.owner = OwnerLock(self.path)
        try:
            self._open_log()
        except BaseException:
            self.owner.release()
            raise

    def _open_log(self) -> None:
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
        self.keeper = Keeper(
            self.l3,
            self.filters,
            runtime,
            owner=self._owner_name(),
            lease_ttl_s=config.lease_ttl_s,
            retention_s=config.tombstone_retention_s,
            pending_ids=self.log.overlay.ids,
            oldest_pending_ms=self._oldest_pending_ms,
            restore=self._restore_filter,
            enabled=config.filter != "off",
            settled=lambda: self.atomic.settled(),
        )
        self.followers = {L3: self._follower(L3, self.l3, config.l3_batch)}
        if self.l2 is not None:
            self.followers[L2] = self._follower(L2, self.l2, config.l2_batch)
            self.log.follow(L2, overlay=True)
            if self.log.get_snapshot(_L2_CUT):
                self.l2.renew = self._renew_l2
        elif L2 in self.log.followers and not config.passive:  # its keys grow old unseen
            self._abandon_l2_keys()
            self.log.unfollow(L2)
        self.log.follow(L3, overlay=True)
        self.l3.prepare = self._prepare_archive
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
        self.queries = Queries(
            self.log.overlay.ids, self.log.pending, self.reader, self.l3, self.clock.now_ms
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
            alone=self.keeper.covered,
            timeout_s=config.read_timeout_s,
            arbiter=None if config.passive else self.arbiter,
        )
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
        self._follow_others()
        self._flush_seconds = {
            name: self.metrics.histogram("flush_seconds", tier=name) for name in self.followers
        }

    def _follow_others(self) -> None:
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
                alone=self.keeper.covered,
                metrics=self.metrics,
                runtime=self.runtime,
                retry=config.delivery_retry,
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

    def _is_own_origin(self, origin: str) -> bool:
        return self.publisher is not None and origin == self.publisher.origin

    def _owner_name(self) -> str:
        """Return a name that at most one live process bears: log, host and path."""
        place = f"{self.log.uuid} {platform.node()} {self.path.resolve()}"
        return hashlib.blake2b(place.encode(), digest_size=16).hexdigest()

    def _guard(self, name: str) -> Guard:
        config = self.config
        guard = Guard(
            name,
            self.runtime,
            circuit=config.l2_circuit if name == L2 else config.l3_circuit,
            retry=config.read_retry,
            timeout_s=config.read_timeout_s,
            metrics=self.metrics,
        )
        self.circuits.add(guard.breaker)
        return guard

    def _follower(self, name: str, tier: Any, batch: Any) -> Follower:
        return Follower(
            name,
            self.log,
            tier,
            self.runtime,
            batch=batch,
            retry=self.config.delivery_retry,
            reached=self.arrivals.reached,
            flushed=lambda done, seconds: self._flushed(name, done, seconds),
            refused=self._refused_by_l2 if name == L2 else lambda _: False,
        )

    # -- delivery ---------------------------------------------------------------------------------

    def _prepare_archive(self, changes: Sequence[Change]) -> Sequence[Change]:
        """Tell the filter, and leave out cache-only changes that the archive has no row of."""
        stored = [change.id for change in changes if change.routes & _L3]
        self.filters.add_many(stored)
        if len(stored) == len(changes):
            return changes
        absent = self.filters.never_added
        return [c for c in changes if c.routes & _L3 or not absent(c.id)]

    def _flushed(self, name: str, batch: FlushBatch, seconds: float) -> None:
        self._flush_seconds[name].observe(seconds)
        self.metrics.counter("flushes", tier=name, reason=batch.reason.value).inc()
        self.metrics.counter("delivered_items", tier=name).add(len(batch.changes))
        if name == L3:
            deleted = sum(change.content is None for change in batch.changes)
            if deleted:
                self.filters.note_deleted(deleted)

    def step_l2(self) -> float:
        """Deliver to L2; cut it off under a new epoch when it fell too far behind."""
        follower = self.followers[L2]
        if self.log.lag(L2) > self.config.l2_lag_items_max and not follower.paused:
            self._cut_l2()
        delay = follower.step()
        if self.stores.l2 is not None and self.stores.l2.identity_changed():
            self.metrics.counter("l2_replaced").inc()
        try:
            self.reader.deliver_fills()
        except StorageError as exc:
            _log.limited("fill_failed", error=exc)
        return delay

    def _cut_l2(self) -> None:
        """Let L2 go: its keys are abandoned before anything is read from it again."""
        if self.l2 is None or self.stores.l2 is None:
            return
        self._abandon_l2_keys()
        head = self.log.head()
        position = self.log.cursor(L2)
        while position < head:
            part = self.log.read(position, 1000, 1 << 62)
            now_ms = self.clock.now_ms()
            kept = [
                change
                for change in part.changes
                if change is not None
                and change.content is not None
                and not change.routes & Route.L3
                and not change.expired(now_ms)
                and self.log.pending(change.id) == change
            ]
            if kept:  # only L2 will ever hold these: they go to the end of the line
                last, _ = self.log.append(kept, soft=False)
                self.log.commit(last, len(kept))
            position = part.last
        self.log.advance(L2, head)
        self.arrivals.reached(L2)
        self.metrics.counter("l2_cuts").inc()
        _log.warning("l2_cut_off", skipped_to=head)

    def _refused_by_l2(self, change: Change) -> bool:
        """Mark an id whose value L2 refuses, so that no older value of it is read again.

        Returns:
            Whether that is all: the archive has the value. Else it goes to the dead letters.

        Raises:
            StoreUnavailable: L2 refuses the mark too: the fault is not the item's. It lags, and
                reads see the overlay, until it takes it or is cut off.
        """
        if self.l2 is None:
            return False
        mark = Change(change.id, change.version, None, routes=_L3)
        try:
            self.l2.apply([mark])
        except StoreRejected as exc:
            raise StoreUnavailable(L2, "apply", str(exc)) from exc
        return bool(change.routes & _L3)

    def _abandon_l2_keys(self) -> None:
        """Make sure, over crashes too, that L2 moves to a new epoch before it is read again."""
        self.log.put_snapshot(_L2_CUT, b"1")
        if self.l2 is not None:
            self.l2.renew = self._renew_l2

    def _renew_l2(self) -> None:
        if self.stores.l2 is not None:
            self.stores.l2.new_epoch()
            self.log.put_snapshot(_L2_CUT, b"")

    # -- the log's job ----------------------------------------------------------------------------

    def step_log(self) -> float:
        """Write what is only in memory, sync, tidy, and measure the pressure."""
        log, config, now = self.log, self.config, self.clock.monotonic()
        if log.failed is not None:
            return math.inf
        try:
            log.write()
        except StoreUnavailable as exc:  # full disk: no more acknowledgements that rely on it
            _log.limited("log_not_written", error=exc)
            self.writer.measured(disk_fullness=1.0, oldest_age_s=self.writer.oldest_age_s)
            self._tidy_at = now + _DISK_RETRY_S
            return _DISK_RETRY_S
        log.spill()
        if log.synced < log.written and now >= self._sync_at:
            log.sync(log.written)
            self._sync_at = now + config.fsync_interval_s
        if now >= self._tidy_at:
            self.feeds.tidy()
            more = log.tidy()
            self._tidy_at = now if more else now + max(0.1, config.fsync_interval_s)
            self._measure()
        head = log.head()  # before the look: what comes in between wakes this job
        if log.idle():
            log.want("log", head + 1)
            return 1.0
        return config.log_interval_s

    def _measure(self) -> None:
        self.writer.measured(
            disk_fullness=self.log.used_bytes() / self.config.log_bytes_max,
            oldest_age_s=max(0.0, (self.clock.now_ms() - self._oldest_pending_ms()) / 1000),
        )
        self.doors.relieve(self.writer.disk_fullness)

    def _oldest_pending_ms(self) -> int:
        """Return when the oldest unarchived change was taken, in wall-clock milliseconds."""
        part = self.log.read(self.log.cursor(L3), 1, 1)
        for change in part.changes:
            if change is not None:
                return change.version >> 20
        return self.clock.now_ms()

    # -- lifecycle --------------------------------------------------------------------------------

    def start(self) -> None:
        """Adopt what dead processes left, attach what is there, start the jobs.

        Raises:
            ConfigError: The archive can never serve us as configured.
        """
        jobs: dict[str, Callable[[], float]] = {"log": self.step_log}
        if self.config.passive:
            jobs["attach"] = self._step_attach
        else:
            self._adopt_orphans()
            self.arbiter.open()
            self.feeds.begin()
            jobs[Arbiter.JOB] = self.arbiter.step
            jobs["keeper"] = self.keeper.step
            if self.trees.kept:
                jobs["merkle"] = self.trees.step
            jobs[L3] = self.followers[L3].step
            if self.l2 is not None:
                jobs[L2] = self.step_l2
                if self.config.l2_sweep_keys_per_s and hasattr(self.l2.store, "sweep"):
                    jobs["sweep"] = self._sweeper(self.l2).step
        jobs.update((part.JOB, part.step) for part in (self.coherence, self.publisher) if part)
        self._step_attach()
        for tier in (self.l3, self.l2):
            if tier is not None and tier.config_error is not None:
                raise tier.config_error
        if not self.config.passive:
            with contextlib.suppress(StorageError):
                self.keeper.step()
        for name, step in jobs.items():
            self.runtime.add_job(name, step)
            self.job_names.append(name)

    def _sweeper(self, l2: Tier[Any]) -> Sweeper:
        return Sweeper(l2, self.clock, keys_per_s=self.config.l2_sweep_keys_per_s)

    def _step_attach(self) -> float:
        """Attach what is there; a job of its own only where no follower does it."""
        for tier in (self.l3, self.l2):
            # To begin a new epoch is a change: a passive engine does without L2 then.
            if tier is not None and not (self.config.passive and tier.renew is not None):
                with contextlib.suppress(StorageError):
                    tier.ready()
        return 1.0

    def _adopt_orphans(self) -> None:
        for path, lock in orphans(self.path):
            try:
                orphan = WriteAheadLog(path, self.runtime, LogListener(), archive=L3)
                count = 0
                followers = orphan.followers
                position = min(followers.values(), default=0)
                while position < orphan.head():
                    part = orphan.read(position, 1000, 8 << 20)
                    changes = [change for change in part.changes if change is not None]
                    if changes:
                        self.log.adopt(changes)
                        count += len(changes)
                    position = part.last
                for letter in orphan.dead.list():
                    self.log.adopt([letter.change])
                self.log.sync(self.log.written)
                orphan.close(remove=True)
                _log.warning("orphan_adopted", path=path, changes=count)
            finally:
                lock.release()

    def _restore_filter(self) -> bool:
        """Take the filter of the last clean shutdown, if the archive has not changed since."""
        data = self.log.get_snapshot(_FILTER_SNAPSHOT)
        if not data:
            return False
        info: ArchiveInfo = self.l3.call("info", self.l3.store.info)
        restored = self.filters.restore(
            data,
            archive_uuid=info.uuid,
            generation=info.generation,
            ids_after=self.log.overlay.ids(),
        )
        _log.info("filter_restored", restored=restored, reason=self.filters.reason)
        return restored

    def _save_filter(self) -> None:
        if self.l3.attached and self.filters.trusted and self.keeper.covered():
            with contextlib.suppress(StorageError):
                info: ArchiveInfo = self.l3.call("info", self.l3.store.info)
                data = self.filters.snapshot(info.uuid, info.generation, self.log.head())
                self.log.put_snapshot(_FILTER_SNAPSHOT, data)

    def flush(
        self, timeout_s: float, reason: FlushReason = FlushReason.MANUAL, *, sinks: bool = False
    ) -> dict[str, int]:
        """Deliver all that was acknowledged before the call; return what is left by follower."""
        target = self.log.appended
        deadline = self.clock.monotonic() + timeout_s
        for follower in self.followers.values():
            follower.hurry(reason)
        left = {}
        for name in self.followers:
            wait_s = max(0.0, deadline - self.clock.monotonic())
            if not self.arrivals.wait(name, target, wait_s):
                left[name] = target - self.log.cursor(name)
        if reason is FlushReason.SHUTDOWN and self.publisher and self.publisher.healthy:
            # Nobody tells the others once we are gone.
            wait_s = min(_LAST_WORD_S, max(0.0, deadline - self.clock.monotonic()))
            self.arrivals.wait(Publisher.JOB, self.log.cursor(L3), wait_s)
        return left | self.doors.left(target, deadline) if sinks else left

    def stop(self, timeout_s: float) -> list[str]:
        """Stop the jobs and close everything; return the jobs that did not stop in time."""
        stuck = self.runtime.close(timeout_s)
        self.job_names.clear()
        self.doors.close(stuck)
        if L3 not in stuck:
            self._save_filter()
            self.keeper.close()
        self.arbiter.close()
        try:
            self.log.close()
        finally:
            for tier in (self.l2, self.l3):
                if tier is not None and tier.name not in stuck:
                    tier.detach()
            if self.stores.feed is not None:
                self.stores.feed.close()
            self.owner.release()
        return stuck
