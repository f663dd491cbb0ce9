"""Every command, in the order of the help. A new one is one line here."""

from __future__ import annotations

from sync_engine.cli import (
    doctor,
    ingest,
    items,
    letters,
    listing,
    observe,
    quickstart,
    schema,
    settings,
)
from sync_engine.cli.command import Command

__all__ = ["COMMANDS"]

COMMANDS: tuple[Command, ...] = (
    quickstart.QUICKSTART,
    ingest.INGEST,
    items.PUT,
    items.GET,
    items.DELETE,
    listing.SCAN,
    listing.STATUS,
    observe.STATS,
    observe.HEALTH,
    observe.FLUSH,
    letters.DLQ,
    schema.MIGRATE,
    settings.CONFIG,
    doctor.DOCTOR,
)
