"""What calls return besides items: plain values."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "BatchResult",
    "EngineState",
    "FlushReport",
    "Health",
    "ItemStatus",
    "TierHealth",
]


class EngineState(enum.Enum):
    """Where an engine is in its life."""

    CREATED = "created"
    STARTING = "starting"
    RUNNING = "running"
    DRAINING = "draining"
    CLOSED = "closed"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchResult:
    """What became of each item of a batch.

    Attributes:
        total: Items given.
        versions: The version of each accepted item, by its place in the batch.
        errors: The error of each refused item, by its place in the batch.
        position: Log position of the last accepted one; 0 where none was.
    """

    total: int
    versions: Mapping[int, int]
    errors: Mapping[int, Exception]
    position: int

    @property
    def accepted(self) -> int:
        """How many were acknowledged."""
        return len(self.versions)

    @property
    def ok(self) -> bool:
        """Whether all were acknowledged."""
        return not self.errors

    def raise_for_errors(self) -> None:
        """Raise the first error, if there is one."""
        for error in self.errors.values():
            raise error


@dataclass(frozen=True, slots=True, kw_only=True)
class FlushReport:
    """What a barrier found.

    Attributes:
        left: Changes not yet delivered, by destination; empty when all were.
        dead_letters: Changes put aside since the log began, waiting for an operator.
        seconds: How long it took.
    """

    left: Mapping[str, int]
    dead_letters: int
    seconds: float

    @property
    def complete(self) -> bool:
        """Whether everything acknowledged before the call is where it belongs."""
        return not self.left


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemStatus:
    """Where an item is.

    Attributes:
        id: The item's id.
        version: Its newest version; 0 where it is absent.
        deleted: Whether the newest change is a delete.
        pending: Destinations that have yet to take the newest change.
        in_l1: Whether L1 holds it.
        in_l2: Whether L2 holds it; None if L2 is absent or cannot be asked.
        in_l3: Whether the archive holds it; None if it cannot be asked.
        dead_letter: The error with which the archive refused it, if it did.
    """

    id: str
    version: int
    deleted: bool
    pending: tuple[str, ...]
    in_l1: bool
    in_l2: bool | None
    in_l3: bool | None
    dead_letter: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TierHealth:
    """How one destination does.

    Attributes:
        attached: Whether it was reached and checked.
        circuit: State of its circuit breaker.
        latency_s: Seconds of a round trip made now; None if it does not answer.
        lag_items: Changes it has yet to take.
        paused: Whether delivery is paused on request.
        error: The last failure, if the last delivery failed.
    """

    attached: bool
    circuit: str
    latency_s: float | None
    lag_items: int
    paused: bool
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """Whether the engine works, and what is amiss.

    Attributes:
        state: Where the engine is in its life.
        live: It accepts calls.
        ready: It accepts writes, and the archive can be read.
        degraded: Sentences about what is amiss; empty when all is well.
        tiers: Each destination.
        pending_items: Changes that wait for the archive.
        pending_bytes: Their bytes.
        pending_age_s: Seconds that the oldest has waited.
        dead_letters: Changes put aside.
        backpressure: Level, by name.
        warnings: Settings of the servers that weaken the loss contract, as sentences.
    """

    state: EngineState
    live: bool
    ready: bool
    degraded: tuple[str, ...]
    tiers: Mapping[str, TierHealth]
    pending_items: int
    pending_bytes: int
    pending_age_s: float
    dead_letters: int
    backpressure: str
    warnings: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
