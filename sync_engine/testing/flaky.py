"""A store or sink with switches: down, slow, picky, or failing at the n-th call."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from sync_engine.core.item import Change
from sync_engine.errors import StoreRejected, StoreUnavailable
from sync_engine.ports import Clock, Standing

__all__ = ["FlakyStore"]


class _Fault:
    def __init__(
        self, operation: str | None, at: int, error: BaseException | None, *, lose_reply: bool
    ) -> None:
        self.operation = operation
        self.left = at
        self.error = error
        self.lose_reply = lose_reply


class FlakyStore:
    """Stands in front of any `Sink`, `CacheStore` or `ArchiveStore` and spoils its calls.

    `stats`, `identity_changed` and `close` always pass: they ask no server.

    Args:
        store: The real one.
        clock: Lets `latency_s` pass; needed for that alone.

    Attributes:
        store: The real one.
        down: While true, calls raise `StoreUnavailable` and do nothing.
        reject: Ids that `apply` refuses: a batch with one of them raises `StoreRejected`, whole.
        latency_s: Seconds that every call takes, by the clock.
        calls: How often each operation was called, by name, failed calls included.
        on_call: Called with the operation's name before each call; it may block or raise.

    Thread-safety: every method; the switches may be turned from any thread.
    """

    def __init__(self, store: Any, *, clock: Clock | None = None) -> None:
        self.store = store
        self.name: str = getattr(store, "name", "sink")
        self.down = False
        self.reject: Collection[str] = frozenset()
        self.latency_s = 0.0
        self.calls: Counter[str] = Counter()
        self.on_call: Callable[[str], object] | None = None
        self._clock = clock
        self._lock = threading.Lock()
        self._faults: list[_Fault] = []

    def fail(
        self,
        operation: str | None = None,
        *,
        at: int = 1,
        error: BaseException | None = None,
        lose_reply: bool = False,
    ) -> None:
        """Let one call to come fail.

        Args:
            operation: Its name, such as ``apply``; None is any.
            at: Which one: 1 is the next.
            error: What it raises; None is `StoreUnavailable`.
            lose_reply: Do it first, then raise: the caller cannot know that it was done.
        """
        with self._lock:
            self._faults.append(_Fault(operation, at, error, lose_reply=lose_reply))

    def _due(self, operation: str) -> _Fault | None:
        with self._lock:
            self.calls[operation] += 1
            due = None
            for fault in list(self._faults):
                if fault.operation in (None, operation):
                    fault.left -= 1
                    if fault.left == 0:
                        self._faults.remove(fault)
                        due = fault
            return due

    def _call(self, operation: str, *args: Any, **kwargs: Any) -> Any:
        fault = self._due(operation)
        if self.on_call is not None:
            self.on_call(operation)
        if self.latency_s:
            if self._clock is None:
                raise RuntimeError("latency_s needs a clock")
            self._clock.sleep(self.latency_s)
        if self.down:
            raise StoreUnavailable(self.name, operation, "switched off")
        result = None
        if fault is None or fault.lose_reply:
            result = getattr(self.store, operation)(*args, **kwargs)
        if fault is not None:
            raise fault.error or StoreUnavailable(self.name, operation, "this call fails")
        return result

    # -- Sink -------------------------------------------------------------------------------------

    def apply(self, changes: Sequence[Change]) -> None:
        """As `ports.Sink.apply`."""
        if not self.down and any(change.id in self.reject for change in changes):
            self.calls["apply"] += 1
            raise StoreRejected(self.name, "apply", "an id of the batch is refused")
        self._call("apply", changes)

    # -- both stores ------------------------------------------------------------------------------

    def attach(self) -> Any:
        """As the store's."""
        return self._call("attach")

    def get_many(self, ids: Sequence[str]) -> dict[str, Change]:
        """As the store's."""
        found: dict[str, Change] = self._call("get_many", ids)
        return found

    def ping(self) -> float:
        """As the store's."""
        return float(self._call("ping"))

    def stats(self) -> Mapping[str, float]:
        """As the store's."""
        counters: Mapping[str, float] = self.store.stats()
        return counters

    def close(self) -> None:
        """As the store's."""
        self.store.close()

    # -- CacheStore -------------------------------------------------------------------------------

    def put_if(self, change: Change, expected: int) -> Change | None:
        """Pass on, or fail."""
        found: Change | None = self._call("put_if", change, expected)
        return found

    def fill(self, changes: Sequence[Change]) -> None:
        """As `ports.CacheStore.fill`."""
        self._call("fill", changes)

    def new_epoch(self) -> None:
        """As `ports.CacheStore.new_epoch`."""
        self._call("new_epoch")

    def identity_changed(self) -> bool:
        """As `ports.CacheStore.identity_changed`."""
        return bool(self.store.identity_changed())

    # -- ArchiveStore -----------------------------------------------------------------------------

    def scan(self, **query: Any) -> list[Change]:
        """As `ports.ArchiveStore.scan`."""
        page: list[Change] = self._call("scan", **query)
        return page

    def count(self, *, prefix: str = "", state: str | None = None) -> int:
        """As `ports.ArchiveStore.count`."""
        return int(self._call("count", prefix=prefix, state=state))

    def purge_tombstones(self, *, below_version: int, limit: int) -> int:
        """As `ports.ArchiveStore.purge_tombstones`."""
        return int(self._call("purge_tombstones", below_version=below_version, limit=limit))

    def lease(self, owner: str, ttl_s: float, *, steal: bool = False) -> int:
        """As `ports.ArchiveStore.lease`."""
        return int(self._call("lease", owner, ttl_s, steal=steal))

    def release_lease(self, owner: str) -> None:
        """As `ports.ArchiveStore.release_lease`."""
        self._call("release_lease", owner)

    def claim_number(self, log_uuid: str, wanted: int) -> int:
        """As `ports.ArchiveStore.claim_number`."""
        return int(self._call("claim_number", log_uuid, wanted))

    def announce(self, standing: Standing) -> None:
        """As `ports.ArchiveStore.announce`."""
        self._call("announce", standing)

    def info(self) -> Any:
        """As `ports.ArchiveStore.info`."""
        return self._call("info")
