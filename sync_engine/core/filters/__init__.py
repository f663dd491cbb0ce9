"""Existence filters: say *absent* without asking the archive, and never wrongly."""

from sync_engine.core.filters.base import ExistenceFilter, FilterFormatError
from sync_engine.core.filters.bloom import BloomFilter
from sync_engine.core.filters.cuckoo import CuckooFilter
from sync_engine.core.filters.manager import FilterManager, FilterTrust
from sync_engine.core.filters.snapshot import FilterSnapshot
from sync_engine.core.filters.warmup import Warmup

__all__ = [
    "BloomFilter",
    "CuckooFilter",
    "ExistenceFilter",
    "FilterFormatError",
    "FilterManager",
    "FilterSnapshot",
    "FilterTrust",
    "Warmup",
]
