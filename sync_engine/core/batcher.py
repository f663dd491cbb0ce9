"""When buffered changes are worth one round trip, and which of them have to travel."""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sync_engine.core.item import Change
from sync_engine.errors import ConfigError

__all__ = ["BatchConfig", "FlushBatch", "FlushReason", "HybridBatcher", "newest_per_id"]


class FlushReason(enum.Enum):
    """Why a batch left."""

    COUNT = "count"
    BYTES = "bytes"
    AGE = "age"
    MANUAL = "manual"
    SHUTDOWN = "shutdown"


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchConfig:
    """Decides when waiting changes are delivered.

    Attributes:
        items_max: Deliver at this many changes (at least 1); also the largest batch.
        bytes_max: Deliver at this size in bytes (at least 1); a batch is cut before it exceeds
            this, but always holds one change.
        age_s_max: Deliver once the oldest change has waited this long, in seconds; 0 is at once.

    Raises:
        ConfigError: A bound is out of range.
    """

    items_max: int = 1000
    bytes_max: int = 4 << 20
    age_s_max: float = 0.010

    def __post_init__(self) -> None:
        for name in ("items_max", "bytes_max"):
            if not getattr(self, name) >= 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)!r}")
        if not 0 <= self.age_s_max < math.inf:
            raise ConfigError(f"age_s_max must be 0 or more seconds, got {self.age_s_max!r}")


@dataclass(frozen=True, slots=True)
class FlushBatch:
    """One delivery: the newest change of each id, and why it leaves now."""

    changes: Sequence[Change]
    reason: FlushReason


class HybridBatcher:
    """Turns "so much has waited for so long" into "now, because" or "not before".

    It buffers nothing itself: what waits stays in the log, and the batcher is told about it. One
    owner at a time.
    """

    def __init__(self, config: BatchConfig) -> None:
        self.config = config
        self._waiting_since: float | None = None
        self._forced: FlushReason | None = None

    def force(self, reason: FlushReason) -> None:
        """Make everything that waits due at once, until nothing is left."""
        self._forced = reason

    def due(self, *, items: int, size_bytes: int, now_s: float) -> FlushReason | float:
        """Return why a batch is due now, or the seconds to wait (infinity when nothing waits).

        Args:
            items: Changes waiting.
            size_bytes: Their size in bytes.
            now_s: Monotonic seconds.
        """
        if items == 0:
            self._waiting_since = None
            self._forced = None
            return math.inf
        if items >= self.config.items_max:
            return FlushReason.COUNT
        if size_bytes >= self.config.bytes_max:
            return FlushReason.BYTES
        if self._forced is not None:
            return self._forced
        if self._waiting_since is None:
            self._waiting_since = now_s
        left = self._waiting_since + self.config.age_s_max - now_s
        return FlushReason.AGE if left <= 0 else left

    def taken(self) -> None:
        """Start the age anew: a batch was delivered and what is left arrived after it began."""
        self._waiting_since = None


def newest_per_id(changes: Iterable[Change | None]) -> list[Change]:
    """Return, for every id, the change with the largest version; order of first appearance.

    None entries are skipped. Cost: one dict entry a change.
    """
    newest: dict[str, Change] = {}
    for change in changes:
        if change is not None:
            known = newest.setdefault(change.id, change)
            if known.version < change.version:
                newest[change.id] = change
    return list(newest.values())
