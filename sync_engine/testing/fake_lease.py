"""The sole-writer lease of the in-memory archive: the protocol of `stores/sql/lease.py`, in a dict.

The caller holds the archive's lock around every method.
"""

from __future__ import annotations

import itertools

from sync_engine.errors import StoreBusy
from sync_engine.ports import Clock, Standing

__all__ = ["LeaseTable", "Writer"]

_names = itertools.count(1)


class _Registration:
    def __init__(self) -> None:
        self.owner = ""
        self.admitted = False
        self.beat = 0
        self.ttl_s = 0.0
        self.standing = Standing.SEEN


class LeaseTable:
    """What all writers of one archive see."""

    def __init__(self) -> None:
        self.writers: dict[str, _Registration] = {}
        self.holder = ""
        self.epoch = 0
        self.beat = 0
        self.ttl_s = 0.0
        self.lost = 0

    def free(self) -> None:
        """End the lease; the next one has another epoch."""
        self.holder = ""
        self.epoch += 1


class Writer:
    """One client's part in the protocol.

    Args:
        table: The archive's.
        clock: Counts the waits.
        store: As errors name the archive.
    """

    def __init__(self, table: LeaseTable, clock: Clock, store: str) -> None:
        self._table = table
        self._clock = clock
        self._store = store
        self._owner = ""
        self._ttl_s = 10.0
        self._seen: dict[str, tuple[object, float]] = {}
        self._told = False
        self._held = False
        self._wait_s = 0.0
        self._standing = Standing.SEEN
        self._name = ""
        self._rename()

    def _rename(self) -> None:
        self._name = f"writer-{next(_names)}"

    def enter(self, operation: str) -> None:
        """Return if this client may write now, and count the write as a sign of life.

        Raises:
            StoreBusy: Another engine may still rely on being the only writer.
        """
        me = self._table.writers.get(self._name)
        if (me is None or not me.admitted) and not self._visit(steal=False):
            raise StoreBusy(
                self._store, operation, "another engine holds the sole-writer lease", self._wait_s
            )
        self._table.writers[self._name].beat += 1

    def lease(self, owner: str, ttl_s: float, *, steal: bool) -> int:
        """Acquire or renew; return the epoch, or 0."""
        self._owner, self._ttl_s = owner, ttl_s
        table = self._table
        dead = self._dead(steal=steal)
        if not self._visit(steal=steal):
            self._held = False
            return 0
        for name in dead:
            table.lost += table.writers.pop(name).owner != owner
        if len(table.writers) > 1:
            if table.holder == self._name and self._told:
                table.free()
            self._told = table.holder == self._name
            self._held = False
            return 0
        self._told = False
        self._held = True
        if table.holder != self._name:
            table.epoch += 1
        table.holder, table.ttl_s = self._name, ttl_s
        table.beat += 1
        return table.epoch

    def release(self) -> None:
        """Give the lease up, if held; stay a writer."""
        self._told = self._held = False
        if self._table.holder == self._name:
            self._table.free()

    def leave(self) -> None:
        """Give the registration up, unless the lease was not released before."""
        if not self._held and not self._told:
            registered = self._table.writers.pop(self._name, None) is not None
            self._table.lost += registered and self._standing is Standing.UNTOLD
            self._rename()

    def announce(self, standing: Standing) -> None:
        """Say whether others see what was archived."""
        self._standing = standing
        me = self._table.writers.setdefault(self._name, _Registration())
        me.standing = standing
        me.beat += 1

    def others_at(self, standing: Standing) -> int:
        """How many others stand there, or worse."""
        writers = self._table.writers.items()
        return sum(w.standing >= standing for name, w in writers if name != self._name)

    @property
    def lost(self) -> int:
        """How many died or left with something untold."""
        return self._table.lost

    def _visit(self, *, steal: bool) -> bool:
        """Register or give a sign of life; return whether this client may write."""
        table = self._table
        if table.holder not in ("", self._name):
            seen_s = self._unchanged_s("lease", (table.holder, table.epoch, table.beat))
            holder = table.writers.get(table.holder)
            stolen = steal and holder is not None and holder.owner == self._owner
            self._wait_s = 0.0 if stolen else table.ttl_s - seen_s
            if self._wait_s <= 0:
                table.free()
        me = table.writers.setdefault(self._name, _Registration())
        me.owner, me.ttl_s = self._owner, self._ttl_s
        me.admitted = table.holder in ("", self._name)
        me.standing = self._standing
        me.beat += 1
        return me.admitted

    def _dead(self, *, steal: bool) -> list[str]:
        """Return writers that gave no sign of life for their duration, and our own past."""
        return [
            name
            for name, writer in self._table.writers.items()
            if name != self._name
            and (
                (steal and writer.owner == self._owner)
                or self._unchanged_s(name, writer.beat) >= max(writer.ttl_s, self._ttl_s)
            )
        ]

    def _unchanged_s(self, name: str, value: object) -> float:
        now = self._clock.monotonic()
        known = self._seen.get(name)
        if known is None or known[0] != value:
            known = self._seen[name] = (value, now)
        return now - known[1]
