"""How a database is replicated: plain values, checked as a whole."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from sync_engine.errors import ConfigError

__all__ = ["ReplicationSettings"]

_MIB = 1 << 20
_HOUR = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicationSettings:
    """When to capture, compact, snapshot, verify and delete.

    Attributes:
        interval_s: Seconds between two segments while the database changes: what a lost host may
            take along.
        poll_s: Seconds between two looks at the write-ahead log; longer than `interval_s`, it takes
            the place of it.
        snapshot_interval_s: Seconds between two snapshots.
        compact_s: Width of the levels L1, L2, L3 in seconds, ascending.
        retain_s: Points younger than this stay restorable.
        fine_s: Segments of lower levels stay this long after they were merged, so that every single
            transaction of that time stays a point of its own.
        snapshots_min: Newest snapshots that stay, whatever their age (at least 1).
        grace_s: Seconds between finding an object superfluous and deleting it.
        drill_interval_s: Seconds between two trial restores; 0 for none.
        compression_level: Of zstd, 1 to 22. A segment is compressed at level 1 instead where the
            log outgrew `seal_pages` since the one before: it grows on while that takes. What is
            merged later has this level again.
        stage_bytes_max: Local disk space for what is not uploaded yet. It is kept to: capturing
            stops before it, throws nothing away, keeps its place in the database's log (which
            grows meanwhile) until somebody's checkpoint waits for it, and says so. One thing alone
            may go beyond: a single transaction, or what a comparison of pages found, that is larger
            than all of this; it is let in only while nothing else waits.
        chunk_bytes: Size of one piece of a snapshot before compression.
        part_bytes: Size of one piece of a segment before compression.
        checkpoint_pages: Pages in the write-ahead log that call for a checkpoint.
        seal_pages: Pages that justify holding writers up for one checkpoint.
        lease: Whether to hold a lease on the target.
        lease_ttl_s: Seconds after which a silent owner counts as dead.
        auto_restore: Restore the database when it is missing at the start.
        allow_fresh: Begin without a database when there is none to restore either.

    Raises:
        ConfigError: A value is out of range; the message names it.
    """

    interval_s: float = 1.0
    poll_s: float = 0.1
    snapshot_interval_s: float = 24 * _HOUR
    compact_s: tuple[float, ...] = (30.0, 300.0, _HOUR)
    retain_s: float = 72 * _HOUR
    fine_s: float = _HOUR
    snapshots_min: int = 2
    grace_s: float = _HOUR
    drill_interval_s: float = 0.0
    compression_level: int = 3
    stage_bytes_max: int = 4096 * _MIB
    chunk_bytes: int = 4 * _MIB
    part_bytes: int = 16 * _MIB
    checkpoint_pages: int = 1000
    seal_pages: int = 4000
    lease: bool = True
    lease_ttl_s: float = 30.0
    auto_restore: bool = True
    allow_fresh: bool = False

    def __post_init__(self) -> None:
        self._check_times()
        self._check_sizes()

    def _check_times(self) -> None:
        for name in ("interval_s", "poll_s", "snapshot_interval_s", "lease_ttl_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be above 0 seconds, got {getattr(self, name)!r}")
        for name in ("retain_s", "fine_s", "grace_s", "drill_interval_s"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} must not be negative, got {getattr(self, name)!r}")
        if list(self.compact_s) != sorted(self.compact_s) or len(self.compact_s) > 3:
            raise ConfigError(f"compact_s must be up to 3 ascending widths, got {self.compact_s!r}")

    def _check_sizes(self) -> None:
        for name in ("snapshots_min", "checkpoint_pages", "seal_pages"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)!r}")
        for name in ("stage_bytes_max", "chunk_bytes", "part_bytes"):
            if getattr(self, name) < 1 << 16:
                raise ConfigError(f"{name} must be at least 64 KiB, got {getattr(self, name)!r}")
        if not 1 <= self.compression_level <= 22:
            raise ConfigError(f"compression_level must be 1 to 22, got {self.compression_level!r}")

    @classmethod
    def from_mapping(cls, values: dict[str, object]) -> ReplicationSettings:
        """Make settings of names and values.

        Raises:
            ConfigError: A name is unknown (options are never ignored), or a value out of range.
        """
        known = {field.name for field in fields(cls)}
        for name in values:
            if name not in known:
                raise ConfigError(f"{name}: there is no such setting of the snapshot sink")
        if isinstance(values.get("compact_s"), list):
            values = values | {"compact_s": tuple(values["compact_s"])}  # type: ignore[arg-type]
        try:
            return cls(**values)  # type: ignore[arg-type]
        except TypeError as exc:
            raise ConfigError(f"snapshot sink: {exc}") from exc
