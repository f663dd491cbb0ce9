"""Continuous replication of a live SQLite database to S3 or a directory.

The replicator (`Replicator`) runs in a process of its own, because one process must hold one
SQLite library only; `SnapshotSupervisor` starts and watches it from within an engine. Restoring
needs no replicator. The layout of a target is described in the reference of the snapshot format.
"""

from __future__ import annotations

from sync_engine.sinks.snapshot.errors import ChainGap, Fenced, NewerLocal, NoAccess, NoBackup
from sync_engine.sinks.snapshot.objects import Objects, open_objects
from sync_engine.sinks.snapshot.plan import NoSuchPoint, Plan, make_plan
from sync_engine.sinks.snapshot.replicator import Replicator
from sync_engine.sinks.snapshot.restore import Restored, restore
from sync_engine.sinks.snapshot.settings import ReplicationSettings
from sync_engine.sinks.snapshot.simple_layout import restore_simple
from sync_engine.sinks.snapshot.supervisor import SnapshotSupervisor, from_settings
from sync_engine.sinks.snapshot.verify import Drill, Verification, drill, verify

__all__ = [
    "ChainGap",
    "Drill",
    "Fenced",
    "NewerLocal",
    "NoAccess",
    "NoBackup",
    "NoSuchPoint",
    "Objects",
    "Plan",
    "ReplicationSettings",
    "Replicator",
    "Restored",
    "SnapshotSupervisor",
    "Verification",
    "drill",
    "from_settings",
    "make_plan",
    "open_objects",
    "restore",
    "restore_simple",
    "verify",
]
