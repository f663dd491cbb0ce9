"""A source and two sinks in memory: honest to the letter of `ports`, and fast."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence

from sync_engine.core.item import Change
from sync_engine.errors import StoreRejected
from sync_engine.ports import SourceBatch

__all__ = ["ListSource", "MemorySink", "PositionedMemorySink"]


class MemorySink:
    """A sink in memory; implements `ports.Sink`.

    Args:
        name: As errors name it.
        reject: Ids that it refuses: a batch with one of them is refused whole.

    Attributes:
        rows: What is kept, tombstones included, by id.
        batches: Every batch that was taken, in order.
        on_apply: Called before each batch; it may raise.

    Thread-safety: every method.
    """

    def __init__(self, name: str = "memory", *, reject: Iterable[str] = ()) -> None:
        self.name = name
        self.reject = set(reject)
        self.rows: dict[str, Change] = {}
        self.batches: list[list[Change]] = []
        self.on_apply: Callable[[Sequence[Change]], object] | None = None
        self.attached = 0
        self._lock = threading.Lock()

    def attach(self) -> None:
        """Count; memory is always there."""
        self.attached += 1

    def apply(self, changes: Sequence[Change]) -> None:
        """Keep the newest of every id, all or none."""
        self._admit(changes)
        with self._lock:
            self._keep(changes)

    def _admit(self, changes: Sequence[Change]) -> None:
        if self.on_apply is not None:
            self.on_apply(changes)
        refused = [change.id for change in changes if change.id in self.reject]
        if refused:
            raise StoreRejected(self.name, "apply", f"{refused[0]!r} is refused")

    def _keep(self, changes: Sequence[Change]) -> None:
        self.batches.append(list(changes))
        for change in changes:
            known = self.rows.get(change.id)
            if known is None or known.version < change.version:
                self.rows[change.id] = change

    def contents(self) -> dict[str, bytes]:
        """Return what is not deleted, by id."""
        with self._lock:
            return {id: row.content for id, row in self.rows.items() if row.content is not None}

    def ping(self) -> float:
        """Return 0: no way to go."""
        return 0.0

    def close(self) -> None:
        """Do nothing; the rows stay, as those of a server would."""


class PositionedMemorySink(MemorySink):
    """A sink in memory that keeps positions; implements `ports.PositionedSink`.

    Attributes:
        positions: What is kept, by the identity of the log.
    """

    def __init__(self, name: str = "memory", *, reject: Iterable[str] = ()) -> None:
        super().__init__(name, reject=reject)
        self.positions: dict[str, int] = {}

    def position(self, log_uuid: str) -> int | None:
        """Return the position stored for a log."""
        return self.positions.get(log_uuid)

    def apply_at(self, changes: Sequence[Change], log_uuid: str, position: int) -> None:
        """Keep the newest of every id and the position, all or none."""
        self._admit(changes)
        with self._lock:
            if position > self.positions.get(log_uuid, -1):
                self._keep(changes)
                self.positions[log_uuid] = position


class ListSource:
    """A source that gives a list of changes, which may grow; implements `ports.Source`.

    Args:
        changes: To begin with.
        name: As errors name it.
        wake: Called when the list grows; see `ports.AdapterContext`.

    Attributes:
        acknowledged: How many of the list were acknowledged: what it would remember on a disk.
        on_poll: Called before each poll; it may raise.

    Thread-safety: `add` any thread, all else as the port says.
    """

    def __init__(
        self,
        changes: Iterable[Change] = (),
        *,
        name: str = "list",
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = name
        self.acknowledged = 0
        self.polls = 0
        self.on_poll: Callable[[], object] | None = None
        self._changes = list(changes)
        self._wake = wake
        self._next = 0
        self.attached = 0

    def add(self, *changes: Change) -> None:
        """Let changes happen."""
        self._changes.extend(changes)
        self._wake()

    def attach(self) -> None:
        """Begin behind what was acknowledged."""
        self.attached += 1
        self._next = self.acknowledged

    def poll(self, items_max: int) -> SourceBatch:
        """Return the next changes of the list."""
        self.polls += 1
        if self.on_poll is not None:
            self.on_poll()
        batch = self._changes[self._next : self._next + items_max]
        self._next += len(batch)
        return SourceBatch(
            changes=batch,
            token=str(self._next).encode(),
            wait_s=0.0 if batch else math.inf,
        )

    def ack(self, token: bytes) -> None:
        """Remember how far it was taken."""
        self.acknowledged = max(self.acknowledged, int(token))

    def progress(self) -> Mapping[str, float]:
        """Return how far it is."""
        return {"given": self._next, "acknowledged": self.acknowledged, "all": len(self._changes)}

    def close(self) -> None:
        """Forget what was given and not acknowledged."""
        self._next = self.acknowledged
