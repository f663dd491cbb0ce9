"""``migrate``: the archive's tables."""

from __future__ import annotations

import argparse
from pathlib import Path

from sync_engine.cli.command import Command, ExitCode
from sync_engine.cli.context import Context
from sync_engine.cli.probe import archive_url, schema_version

__all__ = ["MIGRATE"]


def _arguments(parser: argparse.ArgumentParser) -> None:
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--sql", action="store_true", help="print the statements, connect to nothing")
    mode.add_argument("--dry-run", action="store_true", help="tell what would be done")


def _migrate(context: Context) -> int:
    from sync_engine.stores.sql import SCHEMA_VERSION, migrate, migration_sql

    args, output, config = context.args, context.output, context.config
    url = archive_url(config)
    if args.sql:
        text = migration_sql(url)
        if output.json:
            output.document({"sql": text})
        else:
            output.bytes(text.encode())
        return ExitCode.OK
    if args.dry_run:
        before = schema_version(url, context.clock, config.l3_connect_timeout_s)
    else:
        if config.sql_url is None:
            Path(config.data_dir).mkdir(mode=0o700, parents=True, exist_ok=True)
        before, _ = migrate(url)
    if output.json:
        answer = {"before": before, "after": SCHEMA_VERSION, "dry_run": args.dry_run}
        output.document(answer)
        return ExitCode.OK
    if before == SCHEMA_VERSION:
        output.report(f"the schema has version {before}: nothing to do")
    elif before > SCHEMA_VERSION:
        output.report(f"the schema has version {before}, newer than {SCHEMA_VERSION}: upgrade this")
    else:
        there = f"version {before}" if before else "no tables"
        would = "would be brought" if args.dry_run else "brought"
        output.report(f"the schema was {would} from {there} to version {SCHEMA_VERSION}")
    return ExitCode.OK


MIGRATE = Command(
    name="migrate",
    summary="create the archive's tables, or bring them to this version",
    details="Stop engines of an older version first. Safe to repeat.",
    example="""\
sync-engine migrate --dry-run --sql-url postgresql://app@localhost/items
sync-engine migrate --sql --sql-url mysql://app@localhost/items > tables.sql""",
    arguments=_arguments,
    run=_migrate,
)
