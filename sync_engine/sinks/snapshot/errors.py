"""What can go wrong with a replica, beyond what can go wrong with any store."""

from __future__ import annotations

from sync_engine.errors import ConfigError, CorruptData, StoreRejected, SyncEngineError

__all__ = [
    "ChainGap",
    "Changed",
    "Fenced",
    "NewerLocal",
    "NoAccess",
    "NoBackup",
    "PositionLost",
]

STORE = "snapshot"


class Fenced(StoreRejected):
    """Another replicator writes to this target: this one must stop for good."""

    exit_code = 7

    def __init__(self, why: str) -> None:
        super().__init__(STORE, "replicate", f"{why}; this replicator stops")


class NoAccess(ConfigError):
    """The target refuses our credentials: correct them, or their policy."""

    exit_code = 6


class NoBackup(SyncEngineError):
    """The target can be read, and holds nothing that could be restored."""


class NewerLocal(SyncEngineError):
    """The file in the way is newer than what would replace it, or in use. It was not touched."""


class ChainGap(CorruptData):
    """Transactions between a snapshot and the wanted point are missing.

    Attributes:
        first: First missing transaction.
        last: Last missing transaction.
    """

    def __init__(self, where: str, first: int, last: int) -> None:
        super().__init__(
            where,
            f"transactions {first} to {last} are missing; restore a point before "
            f"{first}, or after the next snapshot",
        )
        self.first = first
        self.last = last


class Changed(Exception):
    """A conditional write found another object (or none) than it expected.

    Attributes:
        key: Of the object.
    """

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


class PositionLost(Exception):
    """The place in the write-ahead log where reading stopped is gone; compare pages instead."""
