"""L1: a cache in this process, bounded in bytes, whose hits take no lock."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from threading import Lock
from typing import Any

from sync_engine.core.eviction import DEFAULT_POLICY, Entry, EvictionPolicy, eviction_policy
from sync_engine.core.item import DEFAULT_STATE, Change
from sync_engine.errors import ConfigError

__all__ = ["ENTRY_OVERHEAD_BYTES", "CacheStats", "EvictionCause", "MemoryCache", "entry_cost"]

#: What an entry takes beside `Change.size_bytes` and its id: the share of the index, the entry
#: itself, its place in the policy's queues, a remembered id, and what 128 B leave uncounted.
ENTRY_OVERHEAD_BYTES = 400
_STRING_BYTES = 56
_SWEEP = 4

# Stands in an entry that was let go, so that its bytes are free at once although a queue still
# knows it. The deadline sends a reader that holds such an entry to where it is told apart.
_NOTHING = Change("", 0, None, expires_at_ms=1)


class EvictionCause(enum.StrEnum):
    """Why an entry left."""

    ROOM = "room"
    EXPIRED = "expired"
    OVERSIZED = "oversized"
    DISCARDED = "discarded"


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheStats:
    """What a cache holds and how it fared; counts of concurrent readers may miss a few.

    Attributes:
        items: Entries, expired ones not yet met included.
        bytes: What they are counted for.
        bytes_max: The bound.
        hits: Calls of `get` that returned a change.
        misses: Those that returned None.
        evictions: Entries that left, by cause.
        policy: Name of the eviction policy.
    """

    items: int
    bytes: int
    bytes_max: int
    hits: int
    misses: int
    evictions: Mapping[EvictionCause, int]
    policy: str

    @property
    def hit_ratio(self) -> float:
        """Hits by calls, 0 to 1; 0 before the first call."""
        return self.hits / max(1, self.hits + self.misses)


def entry_cost(change: Change) -> int:
    """Return the bytes that a cached change counts for."""
    id = change.id
    cost = change.size_bytes + ENTRY_OVERHEAD_BYTES
    cost += len(id) if id.isascii() else 4 * len(id)
    if change.trace_parent:
        cost += _STRING_BYTES + len(change.trace_parent)
    if change.state is not DEFAULT_STATE:
        cost += _STRING_BYTES + 4 * len(change.state)
    return cost


class MemoryCache:
    """A bounded map of id to the newest change known, tombstones included.

    Anything may be gone at any time: for room, for age, because it was discarded. An entry is never
    replaced by an older version.

    Args:
        bytes_max: Bound in bytes, kept at all times (0 or more; 0 keeps nothing). A change that
            counts for more than an eighth of it passes by.
        policy: Which entries go for room: a policy made for this cache alone, or the name of one.
        now_ms: Wall-clock milliseconds.
        lock: Makes the one lock, which writers hold for some microseconds.
        expired: Told of every entry that leaves because its deadline has passed; must not block.

    Raises:
        ConfigError: The bound is negative, or there is no policy of that name.

    Thread-safety: all methods may be called from any thread. `get` takes no lock (but to drop an
    expired entry). Blocking: never on I/O. Cost: amortised O(1) an entry.
    """

    def __init__(
        self,
        bytes_max: int,
        *,
        policy: EvictionPolicy | str = DEFAULT_POLICY,
        now_ms: Callable[[], int],
        lock: Callable[[], AbstractContextManager[Any]] = Lock,
        expired: Callable[[Change], None] = lambda _: None,
    ) -> None:
        if bytes_max < 0:
            raise ConfigError(f"l1_bytes_max must be 0 or more, got {bytes_max!r}")
        if isinstance(policy, str):
            policy = eviction_policy(policy, bytes_max)
        self.bytes_max = bytes_max
        self._policy = policy
        self._mark_max = policy.mark_max
        self._touch = policy.touch
        self._soft_bytes = int(bytes_max * policy.soft_from)
        self._cost_max = bytes_max // 8
        self._now_ms = now_ms
        self._lock = lock()
        self._expired = expired
        self._entries: dict[str, Entry] = {}
        self._mortal: deque[Entry] = deque()
        self._bytes = 0
        self._hits = 0
        self._misses = 0
        self._left = dict.fromkeys(EvictionCause, 0)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def bytes(self) -> int:
        """What the entries count for, in bytes; never above `bytes_max`."""
        return self._bytes

    def get(self, change_id: str, now_ms: int | None = None) -> Change | None:
        """Return the change of an id, which may be a tombstone, or None where none is cached.

        Args:
            change_id: Its id.
            now_ms: Wall-clock milliseconds, where the caller knows them already.
        """
        try:
            entry = self._entries[change_id]
        except KeyError:
            self._misses += 1
            return None
        change = entry.change
        if change.expires_at_ms and (
            change is _NOTHING or change.expired(self._now_ms() if now_ms is None else now_ms)
        ):
            self._misses += 1
            self._drop_expired(change_id, change)
            return None
        if entry.mark < self._mark_max:
            entry.mark += 1
        if self._touch is not None:
            self._touch(entry)
        self._hits += 1
        return change

    def put(self, change: Change) -> None:
        """Take a change if it is newer than the one known of its id."""
        with self._lock:
            self._put(change)

    def put_many(self, changes: Sequence[Change]) -> None:
        """Take several, in order, under one lock."""
        with self._lock:
            for change in changes:
                self._put(change)

    def discard(self, change_id: str) -> None:
        """Forget an id, if it is known."""
        with self._lock:
            self._remove(change_id, EvictionCause.DISCARDED)

    def discard_many(self, ids: Iterable[str]) -> None:
        """Forget ids, under one lock."""
        with self._lock:
            for change_id in ids:
                self._remove(change_id, EvictionCause.DISCARDED)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            for entry in self._entries.values():
                entry.queue = 0
                entry.change = _NOTHING
            self._left[EvictionCause.DISCARDED] += len(self._entries)
            self._entries.clear()
            self._mortal.clear()
            self._policy.clear()
            self._bytes = 0

    def sweep(self, limit: int = 1000) -> int:
        """Look at up to `limit` entries that have a deadline; return how many were past it.

        Every put looks at four by itself; a cache that is only read from may be swept now and then.
        """
        with self._lock:
            return self._sweep(limit)

    def stats(self) -> CacheStats:
        """Return what is held and how it fared. Cost: O(1)."""
        with self._lock:
            return CacheStats(
                items=len(self._entries),
                bytes=self._bytes,
                bytes_max=self.bytes_max,
                hits=self._hits,
                misses=self._misses,
                evictions=dict(self._left),
                policy=self._policy.name,
            )

    # -- under the lock ---------------------------------------------------------------------------

    def _put(self, change: Change) -> None:
        id = change.id
        known = self._entries.get(id)
        if known is not None and known.change.version >= change.version:
            return
        policy = self._policy
        if policy.timed:
            policy.now_ms = self._now_ms()
        cost = entry_cost(change)
        if cost > self._cost_max:
            self._remove(id, EvictionCause.OVERSIZED)
        elif change.expires_at_ms and change.expired(self._now_ms()):
            self._remove(id, EvictionCause.EXPIRED)
            self._expired(change)
        else:
            if self._mortal:
                self._sweep(_SWEEP)
            if self._bytes + cost > self._soft_bytes:
                self._make_room(id, cost)
            self._store(change, cost)

    def _store(self, change: Change, cost: int) -> None:
        policy, entry = self._policy, self._entries.get(change.id)
        if entry is None:
            entry = Entry(change, cost)
            policy.admit(entry)
            self._bytes += cost
            self._entries[change.id] = entry
            if change.expires_at_ms:
                self._mortal.append(entry)
            return
        if change.expires_at_ms and not entry.change.expires_at_ms:
            self._mortal.append(entry)
        delta = cost - entry.cost
        entry.cost = cost
        entry.change = change
        policy.resized(entry, delta)
        self._bytes += delta
        if entry.mark < policy.mark_max:  # a write is a use, too
            entry.mark += 1
        if policy.touch is not None:
            policy.touch(entry)

    def _make_room(self, id: str, cost: int) -> None:
        # Before the change goes in, so that the bound holds at all times. The entry that is about
        # to be replaced may itself be the victim.
        asked = False
        while True:
            known = self._entries.get(id)
            need = self._bytes + cost - (0 if known is None else known.cost)
            if need <= self._soft_bytes or (asked and need <= self.bytes_max):
                return
            asked = True
            if not self._entries:
                return
            victim = self._policy.evict(need / self.bytes_max if need <= self.bytes_max else 1.0)
            if victim is not None:
                self._let_go(victim, EvictionCause.ROOM)

    def _remove(self, id: str, cause: EvictionCause) -> None:
        entry = self._entries.get(id)
        if entry is not None:
            self._policy.forget(entry)
            if cause is EvictionCause.EXPIRED:
                self._expired(entry.change)
            self._let_go(entry, cause)

    def _let_go(self, entry: Entry, cause: EvictionCause) -> None:
        del self._entries[entry.change.id]
        self._bytes -= entry.cost
        self._left[cause] += 1
        entry.change = _NOTHING

    def _drop_expired(self, id: str, change: Change) -> None:
        with self._lock:
            entry = self._entries.get(id)
            if entry is not None and entry.change is change:
                self._remove(id, EvictionCause.EXPIRED)

    def _sweep(self, limit: int) -> int:
        mortal = self._mortal
        now_ms = self._now_ms()
        dropped = 0
        for _ in range(min(limit, len(mortal))):
            entry = mortal.popleft()
            if not entry.queue or not entry.change.expires_at_ms:
                continue
            if entry.change.expired(now_ms):
                self._remove(entry.change.id, EvictionCause.EXPIRED)
                dropped += 1
            else:
                mortal.append(entry)
        return dropped
