"""Back-pressure: how full the way to the archive is, and what follows for writers."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from sync_engine.errors import ConfigError

__all__ = ["BackpressureLevel", "PressurePolicy"]


class BackpressureLevel(enum.IntEnum):
    """What a writer meets; reads and deletes are always taken."""

    NORMAL = 0
    WARN = 1
    THROTTLE = 2
    CRITICAL = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class PressurePolicy:
    """Bounds of what is acknowledged and not yet archived.

    Attributes:
        items_max: Changes (at least 1).
        bytes_max: Bytes of changes (at least 1).
        age_s_max: Seconds that the oldest has waited; 0 is no bound.
        warn_at: Fraction of the fullest bound from which the level is WARN.
        throttle_at: Fraction from which `submit` waits for room.

    Raises:
        ConfigError: A bound or fraction is out of range.
    """

    items_max: int = 5_000_000
    bytes_max: int = 8 << 30
    age_s_max: float = 0.0
    warn_at: float = 0.5
    throttle_at: float = 0.8

    def __post_init__(self) -> None:
        if self.items_max < 1 or self.bytes_max < 1 or self.age_s_max < 0:
            raise ConfigError("pending_items_max and pending_bytes_max must be at least 1")
        if not 0 < self.warn_at <= self.throttle_at <= 1:
            raise ConfigError("warn_at and throttle_at must be 0 < warn_at <= throttle_at <= 1")

    def fullness(self, *, items: int, size_bytes: int, age_s: float) -> float:
        """Return how full the fullest bound is: 0.0 is empty, 1.0 is full."""
        full = max(items / self.items_max, size_bytes / self.bytes_max)
        return max(full, age_s / self.age_s_max) if self.age_s_max else full

    def level(self, *, items: int, size_bytes: int, age_s: float) -> BackpressureLevel:
        """Return the level for what waits."""
        full = self.fullness(items=items, size_bytes=size_bytes, age_s=age_s)
        if full >= 1:
            return BackpressureLevel.CRITICAL
        if full >= self.throttle_at:
            return BackpressureLevel.THROTTLE
        return BackpressureLevel.WARN if full >= self.warn_at else BackpressureLevel.NORMAL
