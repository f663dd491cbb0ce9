"""Public test kit: manual clocks, deterministic schedules, fakes, fault injectors, a checker.

For tests of applications and of adapters of one's own; nothing in the engine imports it.
"""

from sync_engine.runtime import SystemClock, SystemRuntime
from sync_engine.testing.fakes import MemoryArchive, MemoryCacheStore
from sync_engine.testing.flaky import FlakyStore
from sync_engine.testing.manual import ManualClock, ManualRuntime

__all__ = [
    "FlakyStore",
    "ManualClock",
    "ManualRuntime",
    "MemoryArchive",
    "MemoryCacheStore",
    "SystemClock",
    "SystemRuntime",
]
