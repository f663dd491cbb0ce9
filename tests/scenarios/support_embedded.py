"""Engines on tiers in memory, with switches."""

from __future__ import annotations

from collections.abc import Callable

from sync_engine.engine import SyncEngine
from sync_engine.house import Stores
from sync_engine.testing import FlakyStore, MemoryArchive, MemoryCacheStore, SystemRuntime

__all__ = ["FAST", "Servers", "Start"]

Start = Callable[..., SyncEngine]
FAST = {
    "l3_circuit_open_s": 0.05,
    "l2_circuit_open_s": 0.05,
    "delivery_delay_s_max": 0.1,
    "read_timeout_s": 0.3,
    "read_delay_s_min": 0.01,
    "read_delay_s_max": 0.02,
}


class Servers:
    """In-memory tiers with switches."""

    def __init__(self) -> None:
        clock = SystemRuntime().clock
        self.archive, self.cache = MemoryArchive(clock=clock), MemoryCacheStore(clock=clock)
        self.l3, self.l2 = FlakyStore(self.archive), FlakyStore(self.cache)
        self.stores = Stores(self.l2, self.l3)
