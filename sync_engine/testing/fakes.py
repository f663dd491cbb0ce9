"""L2 and L3 in memory: honest to the letter of `ports`, and fast."""

from __future__ import annotations

import copy
import math
import threading
import uuid
from bisect import bisect_left, bisect_right, insort
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Self

from sync_engine.core.item import Change, Route
from sync_engine.core.version import free_number
from sync_engine.ports import ArchiveInfo, Clock, Standing
from sync_engine.testing.fake_lease import LeaseTable, Writer

__all__ = ["MemoryArchive", "MemoryCacheStore"]


def _mark(change: Change) -> Change:
    """Return what is left of a change whose value is not kept: its version."""
    return Change(change.id, change.version, None, routes=change.routes)


class MemoryCacheStore:
    """L2 in memory; implements `ports.CacheStore`.

    It may be shared by several engines. `forget`, `clear` and `replace_server` do what a Redis does
    to its users: evict, empty, fail over to a copy of the past.

    Args:
        clock: Tells what has expired.
        name: As errors name it.
        mark_ttl_s: Seconds that version marks are kept.

    Thread-safety: every method.
    """

    def __init__(self, clock: Clock, *, name: str = "l2", mark_ttl_s: float = 600.0) -> None:
        self.name = name
        self._clock = clock
        self._mark_ttl_s = mark_ttl_s
        self._lock = threading.Lock()
        self._entries: dict[str, tuple[Change, float]] = {}
        self._replaced = False
        self._counts: Counter[str] = Counter()

    def attach(self) -> None:
        """Do nothing: memory is always there."""

    def _known(self, change_id: str) -> Change | None:
        entry = self._entries.get(change_id)
        if entry is None:
            return None
        change, until_ms = entry
        if until_ms <= self._clock.now_ms():
            del self._entries[change_id]
            return None
        return change

    def _put(self, change: Change) -> None:
        if change.content is None or not change.routes & Route.L2:
            until_ms = self._clock.now_ms() + self._mark_ttl_s * 1000
            self._entries[change.id] = (_mark(change), until_ms)
        else:
            self._entries[change.id] = (change, change.expires_at_ms or math.inf)

    def apply(self, changes: Sequence[Change]) -> None:
        """Keep the newest of every id."""
        with self._lock:
            for change in changes:
                known = self._known(change.id)
                if known is None or known.version < change.version:
                    self._put(change)

    def get_many(self, ids: Sequence[str]) -> dict[str, Change]:
        """Return what is cached, marks included."""
        with self._lock:
            self._counts["round_trips"] += 1
            found = ((change_id, self._known(change_id)) for change_id in ids)
            return {change_id: change for change_id, change in found if change is not None}

    def fill(self, changes: Sequence[Change]) -> None:
        """Keep answers of a colder tier where nothing as new is there."""
        self.apply(changes)

    def new_epoch(self) -> None:
        """Abandon everything."""
        with self._lock:
            self._entries.clear()
            self._counts["epochs"] += 1

    def identity_changed(self) -> bool:
        """Tell, once, that `replace_server` was called."""
        with self._lock:
            replaced, self._replaced = self._replaced, False
            if replaced:
                self._entries.clear()
                self._counts["epochs"] += 1
            return replaced

    def ping(self) -> float:
        """Return 0: no way to go."""
        return 0.0

    def stats(self) -> Mapping[str, float]:
        """Return counters."""
        return {"corrupt": 0, "foreign": 0, "epochs": 0} | dict(self._counts)

    def close(self) -> None:
        """Do nothing; the entries stay, as those of a server would."""

    # -- what happens to servers ------------------------------------------------------------------

    def forget(self, change_id: str) -> None:
        """Evict one entry."""
        with self._lock:
            self._entries.pop(change_id, None)

    def clear(self) -> None:
        """Lose everything, as by FLUSHALL."""
        with self._lock:
            self._entries.clear()

    def snapshot(self) -> dict[str, Change]:
        """Return everything that is cached now."""
        with self._lock:
            return {change_id: change for change_id, (change, _) in self._entries.items()}

    def replace_server(self, snapshot: Mapping[str, Change] | None = None) -> None:
        """Become another server, with the data of an earlier `snapshot` (or none)."""
        with self._lock:
            self._entries.clear()
            for change in (snapshot or {}).values():
                self._put(change)
            self._replaced = True


class _Rows:
    """The database: what all clients of one archive share."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.by_id: dict[str, Change] = {}
        self.keys: list[bytes] = []
        self.uuid = str(uuid.uuid4())
        self.generation = 0
        self.epoch = 0
        self.leases = LeaseTable()
        self.numbers: dict[str, int] = {}  # by log, the one seen last the longest ago first


class MemoryArchive:
    """L3 in memory; implements `ports.ArchiveStore`.

    One object is one client. `client` gives another client of the same database; give each engine
    its own, so that the lease can tell who writes.

    Args:
        clock: Tells what has expired and how long a lease runs.
        name: As errors name it.

    Thread-safety: every method.
    """

    def __init__(self, clock: Clock, *, name: str = "l3") -> None:
        self.name = name
        self._clock = clock
        self._rows = _Rows()
        self._batches = 0
        self._writer = Writer(self._rows.leases, clock, name)

    def client(self) -> Self:
        """Return another client of the same database, a copy of this one in all else."""
        other = copy.copy(self)
        writer = Writer(self._rows.leases, self._clock, self.name)
        vars(other).update(_batches=0, _writer=writer)
        return other

    def attach(self) -> ArchiveInfo:
        """Return the identity: memory is always there."""
        return self.info()

    def info(self) -> ArchiveInfo:
        """Return identity and generation."""
        rows = self._rows
        with rows.lock:
            return ArchiveInfo(
                uuid=rows.uuid,
                generation=rows.generation,
                others=rows.generation - self._batches,
                untold=self._writer.others_at(Standing.UNTOLD),
                uncached=self._writer.others_at(Standing.UNCACHED),
                lost=self._writer.lost,
                schema_version=1,
                server="memory",
            )

    def apply(self, changes: Sequence[Change]) -> None:
        """Keep the newest of every id, all or none.

        Raises:
            StoreBusy: Another client's engine may still say *absent* for up to its lease.
        """
        if not changes:
            return
        rows = self._rows
        with rows.lock:
            self._writer.enter("apply")
            rows.generation += 1
            self._batches += 1
            for change in changes:
                self._write(change)

    def _write(self, change: Change) -> None:
        rows = self._rows
        known = rows.by_id.get(change.id)
        if known is None and not change.routes & Route.L3:
            return
        if known is not None and known.version >= change.version:
            return
        if known is None:
            insort(rows.keys, change.id.encode())
        keeps = change.content is not None and change.routes & Route.L3
        rows.by_id[change.id] = change if keeps else self._tombstone(change)

    def put_if(self, change: Change, expected: int) -> Change | None:
        """Write a change if the row has the expected version; return what is there if not."""
        rows = self._rows
        with rows.lock:
            self._writer.enter("put_if")
            rows.generation += 1
            self._batches += 1
            known = rows.by_id.get(change.id)
            actual = 0 if known is None else known.version
            if actual == change.version:
                return None
            if actual != expected or actual > change.version:
                return known or Change(change.id, 0, None)
            self._write(change)
        return None

    @staticmethod
    def _tombstone(change: Change) -> Change:
        return Change(
            change.id,
            change.version,
            None,
            change.content_type,
            change.state,
            routes=change.routes,
            trace_parent=change.trace_parent,
        )

    def get_many(self, ids: Sequence[str]) -> dict[str, Change]:
        """Return rows, tombstones included."""
        by_id = self._rows.by_id
        with self._rows.lock:
            return {change_id: by_id[change_id] for change_id in ids if change_id in by_id}

    def _range(self, after: str | None, prefix: str) -> list[Change]:
        rows = self._rows
        start = prefix.encode()
        low = bisect_left(rows.keys, start)
        if after is not None:
            low = max(low, bisect_right(rows.keys, after.encode()))
        found = []
        for key in rows.keys[low:]:
            if not key.startswith(start):
                break
            found.append(rows.by_id[key.decode()])
        return found

    def scan(
        self,
        *,
        after: str | None = None,
        prefix: str = "",
        state: str | None = None,
        limit: int = 1000,
        keys_only: bool = False,
        tombstones: bool = False,
    ) -> list[Change]:
        """Return a page in bytewise id order."""
        with self._rows.lock:
            found = [
                change
                for change in self._range(after, prefix)
                if (tombstones or change.content is not None)
                and (state is None or change.state == state)
            ][:limit]
        if not keys_only:
            return found
        return [
            Change(
                change.id,
                change.version,
                None if change.content is None else b"",
                change.content_type,
                change.state,
                change.expires_at_ms,
                change.routes,
            )
            for change in found
        ]

    def count(self, *, prefix: str = "", state: str | None = None) -> int:
        """Count rows that are neither deleted nor expired."""
        now_ms = self._clock.now_ms()
        with self._rows.lock:
            return sum(
                change.content is not None
                and not change.expired(now_ms)
                and (state is None or change.state == state)
                for change in self._range(None, prefix)
            )

    def purge_tombstones(self, *, below_version: int, limit: int) -> int:
        """Drop old tombstones."""
        rows = self._rows
        with rows.lock:
            self._writer.enter("purge_tombstones")
            old = [
                change.id
                for change in rows.by_id.values()
                if change.content is None and change.version < below_version
            ][:limit]
            for change_id in old:
                del rows.by_id[change_id]
                del rows.keys[bisect_left(rows.keys, change_id.encode())]
        return len(old)

    # -- the sole-writer lease --------------------------------------------------------------------

    def lease(self, owner: str, ttl_s: float, *, steal: bool = False) -> int:
        """Acquire or renew the lease; return its epoch, or 0 where it is not held."""
        with self._rows.lock:
            return self._writer.lease(owner, ttl_s, steal=steal)

    def release_lease(self, owner: str) -> None:
        """Give the lease up, if held; stay a writer."""
        with self._rows.lock:
            self._writer.release()

    def claim_number(self, log_uuid: str, wanted: int) -> int:
        """Return the engine number that is a log's alone."""
        numbers = self._rows.numbers
        with self._rows.lock:
            number = numbers.pop(log_uuid, None)
            if number is None:
                number = free_number(wanted, list(numbers.values()))
                for log in [log for log, held in numbers.items() if held == number]:
                    del numbers[log]
            numbers[log_uuid] = number
            return number

    def announce(self, standing: Standing) -> None:
        """Say whether others see what was archived."""
        with self._rows.lock:
            self._writer.announce(standing)

    def ping(self) -> float:
        """Return 0: no way to go."""
        return 0.0

    def stats(self) -> Mapping[str, float]:
        """Return counters."""
        return {
            "corrupt": 0,
            "rows": len(self._rows.by_id),
            "batches": self._batches,
        }

    def close(self) -> None:
        """Leave the writers; the rows stay, as those of a server would."""
        with self._rows.lock:
            self._writer.leave()
