"""The seams of the house: what each room needs from another, as narrow as its callers allow.

Every Protocol's docstring is a contract that ``sync_engine.testing`` proves on every adapter.
"""

from sync_engine.ports.blobs import BlobInfo, BlobStore
from sync_engine.ports.log import ChangeLog, LogSlice, Overtaken, WritableLog
from sync_engine.ports.mirror import MirroredTree, MirrorStore
from sync_engine.ports.runtime import Clock, Event, Runtime
from sync_engine.ports.sinks import ChangeFeed, FeedSink, PositionedSink, Sink
from sync_engine.ports.sources import AdapterContext, CandidSource, Source, SourceBatch
from sync_engine.ports.stores import (
    ArchiveInfo,
    ArchiveStore,
    CacheStore,
    MerkleStore,
    NearCache,
    Standing,
)

__all__ = [
    "AdapterContext",
    "ArchiveInfo",
    "ArchiveStore",
    "BlobInfo",
    "BlobStore",
    "CacheStore",
    "CandidSource",
    "ChangeFeed",
    "ChangeLog",
    "Clock",
    "Event",
    "FeedSink",
    "LogSlice",
    "MerkleStore",
    "MirrorStore",
    "MirroredTree",
    "NearCache",
    "Overtaken",
    "PositionedSink",
    "Runtime",
    "Sink",
    "Source",
    "SourceBatch",
    "Standing",
    "WritableLog",
]
