"""Every command, in the order of the help. A new one is one line here."""

from __future__ import annotations

from sync_engine.cli.command import Command
from sync_engine.cli.doctor import DOCTOR
from sync_engine.cli.ingest import INGEST
from sync_engine.cli.items import DELETE, GET, PUT
from sync_engine.cli.letters import DLQ
from sync_engine.cli.listing import SCAN, STATUS
from sync_engine.cli.observe import FLUSH, HEALTH, STATS
from sync_engine.cli.quickstart import QUICKSTART
from sync_engine.cli.schema import MIGRATE
from sync_engine.cli.settings import CONFIG

__all__ = ["COMMANDS"]

COMMANDS: tuple[Command, ...] = (
    QUICKSTART,
    INGEST,
    PUT,
    GET,
    DELETE,
    SCAN,
    STATUS,
    STATS,
    HEALTH,
    FLUSH,
    DLQ,
    MIGRATE,
    CONFIG,
    DOCTOR,
)
