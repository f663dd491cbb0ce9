"""Every command, in the order of the help. A new one is one line here."""

from __future__ import annotations

from sync_engine.cli.changes import CHANGES
from sync_engine.cli.command import Command
from sync_engine.cli.doctor import DOCTOR
from sync_engine.cli.ingest import INGEST
from sync_engine.cli.items import DELETE, GET, PUT
from sync_engine.cli.letters import DLQ
from sync_engine.cli.listing import SCAN, STATUS
from sync_engine.cli.merkle import MERKLE
from sync_engine.cli.observe import FLUSH, HEALTH, STATS
from sync_engine.cli.quickstart import QUICKSTART
from sync_engine.cli.replicate import REPLICATE
from sync_engine.cli.replicate_engine import REPLICATE_ENGINE
from sync_engine.cli.restore import RESTORE
from sync_engine.cli.run import RUN
from sync_engine.cli.s3_changes import S3_CHANGES
from sync_engine.cli.schema import MIGRATE
from sync_engine.cli.settings import CONFIG
from sync_engine.cli.snapshots import SNAPSHOTS
from sync_engine.cli.tables import TABLES
from sync_engine.cli.verify import REPAIR, VERIFY
from sync_engine.cli.watch import WATCH

__all__ = ["COMMANDS"]

COMMANDS: tuple[Command, ...] = (
    QUICKSTART,
    INGEST,
    WATCH,
    RUN,
    PUT,
    GET,
    DELETE,
    SCAN,
    STATUS,
    CHANGES,
    STATS,
    HEALTH,
    FLUSH,
    DLQ,
    S3_CHANGES,
    REPLICATE,
    REPLICATE_ENGINE,
    RESTORE,
    SNAPSHOTS,
    TABLES,
    MERKLE,
    VERIFY,
    REPAIR,
    MIGRATE,
    CONFIG,
    DOCTOR,
)
