"""Public test kit: manual clocks, deterministic schedules, fakes, fault injectors, a checker.

For tests of applications and of adapters of one's own; nothing in the engine imports it.
"""

from sync_engine.runtime import SystemClock, SystemRuntime
from sync_engine.testing.ends import ListSource, MemorySink, PositionedMemorySink
from sync_engine.testing.fakes import MemoryArchive, MemoryCacheStore
from sync_engine.testing.feed import MemoryFeed
from sync_engine.testing.flaky import FlakyStore
from sync_engine.testing.history import (
    Action,
    Entry,
    History,
    Outcome,
    Violation,
    check,
    make_payload,
    read_payload,
)
from sync_engine.testing.manual import ManualClock, ManualRuntime
from sync_engine.testing.proxy import FaultProxy
from sync_engine.testing.schedule import Deadlock, Scheduler
from sync_engine.testing.simulated import SimulatedRuntime
from sync_engine.testing.virtual_loop import VirtualTimeLoop, run_virtual

__all__ = [
    "Action",
    "Deadlock",
    "Entry",
    "FaultProxy",
    "FlakyStore",
    "History",
    "ListSource",
    "ManualClock",
    "ManualRuntime",
    "MemoryArchive",
    "MemoryCacheStore",
    "MemoryFeed",
    "MemorySink",
    "Outcome",
    "PositionedMemorySink",
    "Scheduler",
    "SimulatedRuntime",
    "SystemClock",
    "SystemRuntime",
    "Violation",
    "VirtualTimeLoop",
    "check",
    "make_payload",
    "read_payload",
    "run_virtual",
]
