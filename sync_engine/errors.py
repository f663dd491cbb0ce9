"""What can go wrong, split by what the caller should do about it."""

from __future__ import annotations

__all__ = [
    "Backpressure",
    "CircuitOpen",
    "ConfigError",
    "Conflict",
    "CorruptData",
    "DeadLettered",
    "EngineClosed",
    "EngineFailed",
    "FeedGap",
    "InvalidItem",
    "StorageError",
    "StoreBusy",
    "StoreRejected",
    "StoreUnavailable",
    "SyncEngineError",
]


class SyncEngineError(Exception):
    """Root of every error the engine raises on purpose."""


class ConfigError(SyncEngineError):
    """Fix the setting that the message names."""


class InvalidItem(SyncEngineError, ValueError):
    """Fix the call: an id, payload, state or option is outside its limits. Nothing was accepted."""


class Backpressure(SyncEngineError):
    """Slow down: too much is waiting for the archive. Nothing was accepted.

    Attributes:
        retry_after_s: Seconds after which a retry has a chance.
    """

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Conflict(SyncEngineError):
    """Someone was faster: the stored version is not the expected one. Nothing was accepted.

    Attributes:
        id: The item's id.
        expected: The version that the caller named; 0 means "absent".
        actual: The version found; 0 means "absent".
    """

    def __init__(self, id: str, expected: int, actual: int) -> None:
        super().__init__(
            f"{id!r} is at version {actual}, not {expected}: read it again and decide anew"
        )
        self.id = id
        self.expected = expected
        self.actual = actual


class EngineClosed(SyncEngineError):
    """The engine is not open (never started, closed, or inherited over a fork)."""


class EngineFailed(SyncEngineError):
    """The log could not be synced to disk: stop, mend the disk, and start again."""


class CorruptData(SyncEngineError):
    """Stored bytes fail their checksum or are not ours.

    Attributes:
        where: The file, table or key.
        hint: What an operator can do.
    """

    def __init__(self, where: str, hint: str) -> None:
        super().__init__(f"{where}: {hint}")
        self.where = where
        self.hint = hint


class FeedGap(SyncEngineError):
    """The change feed no longer reaches back to the asked position: start from a scan."""


class StorageError(SyncEngineError):
    """A store could not do what it was asked.

    Attributes:
        store: The store's name, such as ``redis`` or ``sql``.
        operation: What was tried.
        hint: What an operator can do; empty where nothing is known.
    """

    def __init__(self, store: str, operation: str, hint: str = "") -> None:
        super().__init__(f"{store}: {operation} failed" + (f": {hint}" if hint else ""))
        self.store = store
        self.operation = operation
        self.hint = hint


class StoreUnavailable(StorageError):
    """The store cannot be asked now; the same call may succeed later."""


class CircuitOpen(StoreUnavailable):
    """The store failed lately and is left alone for a while.

    Attributes:
        retry_after_s: Seconds until the next attempt is allowed.
    """

    def __init__(self, store: str, operation: str, retry_after_s: float) -> None:
        super().__init__(store, operation, f"circuit open, next attempt in {retry_after_s:.1f} s")
        self.retry_after_s = retry_after_s


class StoreBusy(StoreUnavailable):
    """The store answered, and asks to wait: it is well, the time is not right.

    Attributes:
        retry_after_s: Seconds after which a retry has a chance.
    """

    def __init__(self, store: str, operation: str, hint: str, retry_after_s: float) -> None:
        super().__init__(store, operation, hint)
        self.retry_after_s = retry_after_s


class StoreRejected(StorageError):
    """The store can never take this: the batch, or one row in it, has to change."""


class DeadLettered(StoreRejected):
    """The change was put aside with its error; see ``engine.dead_letters``."""
