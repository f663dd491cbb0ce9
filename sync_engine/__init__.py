"""sync_engine: memory, Redis and SQL behind one durable log.

What it acknowledges is never lost, never reordered, never hidden.
"""

from __future__ import annotations

from sync_engine.aio import AsyncReceipt, AsyncSyncEngine
from sync_engine.config import SyncEngineConfig
from sync_engine.core.batcher import BatchConfig, FlushBatch, FlushReason, HybridBatcher
from sync_engine.core.filters import FilterManager, FilterTrust
from sync_engine.core.item import Change, ContentType, SyncItem
from sync_engine.core.merkle import (
    MerkleBatch,
    MerkleDiff,
    MerkleNode,
    MerklePage,
    PathMerkle,
)
from sync_engine.core.options import CacheTtl, Durability, OptionsKey, SubmitOptions
from sync_engine.core.policies import CircuitConfig, RetryConfig
from sync_engine.core.pressure import BackpressureLevel, PressurePolicy
from sync_engine.core.results import (
    BatchResult,
    EngineState,
    FlushReport,
    Health,
    ItemStatus,
    TierHealth,
)
from sync_engine.engine import SyncEngine
from sync_engine.errors import (
    Backpressure,
    CircuitOpen,
    ConfigError,
    Conflict,
    CorruptData,
    DeadLettered,
    EngineClosed,
    EngineFailed,
    FeedGap,
    InvalidItem,
    StorageError,
    StoreBusy,
    StoreRejected,
    StoreUnavailable,
    SyncEngineError,
)
from sync_engine.flow.circuits import BackendCircuits, CircuitBreaker
from sync_engine.flow.feed import ArchivedChange
from sync_engine.flow.repair import RepairReport
from sync_engine.flow.verify import VerifyReport
from sync_engine.flow.writer import Receipt
from sync_engine.ports import (
    AdapterContext,
    ArchiveStore,
    BlobStore,
    CacheStore,
    Clock,
    PositionedSink,
    Runtime,
    Sink,
    Source,
    SourceBatch,
)
from sync_engine.telemetry import LatencyTimer, time_operation
from sync_engine.wal.log import WriteAheadLog
from sync_engine.wal.records import DeadLetter, WalStats

__version__ = "0.1.0"

__all__ = [
    "AdapterContext",
    "ArchiveStore",
    "ArchivedChange",
    "AsyncReceipt",
    "AsyncSyncEngine",
    "BackendCircuits",
    "Backpressure",
    "BackpressureLevel",
    "BatchConfig",
    "BatchResult",
    "BlobStore",
    "CacheStore",
    "CacheTtl",
    "Change",
    "CircuitBreaker",
    "CircuitConfig",
    "CircuitOpen",
    "Clock",
    "ConfigError",
    "Conflict",
    "ContentType",
    "CorruptData",
    "DeadLetter",
    "DeadLettered",
    "Durability",
    "EngineClosed",
    "EngineFailed",
    "EngineState",
    "FeedGap",
    "FilterManager",
    "FilterTrust",
    "FlushBatch",
    "FlushReason",
    "FlushReport",
    "Health",
    "HybridBatcher",
    "InvalidItem",
    "ItemStatus",
    "LatencyTimer",
    "MerkleBatch",
    "MerkleDiff",
    "MerkleNode",
    "MerklePage",
    "OptionsKey",
    "PathMerkle",
    "PositionedSink",
    "PressurePolicy",
    "Receipt",
    "RepairReport",
    "RetryConfig",
    "Runtime",
    "Sink",
    "Source",
    "SourceBatch",
    "StorageError",
    "StoreBusy",
    "StoreRejected",
    "StoreUnavailable",
    "SubmitOptions",
    "SyncEngine",
    "SyncEngineConfig",
    "SyncEngineError",
    "SyncItem",
    "TierHealth",
    "VerifyReport",
    "WalStats",
    "WriteAheadLog",
    "__version__",
    "time_operation",
]
