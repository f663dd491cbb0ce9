"""``restore``: brings a database back from its replica."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sync_engine.cli.command import Command, ExitCode, UsageError
from sync_engine.cli.context import Context
from sync_engine.cli.listing import time_text
from sync_engine.cli.output import count, duration, size
from sync_engine.cli.replicate import add_target_options, endpoint_of, with_own_codes
from sync_engine.runtime import SystemRuntime

if TYPE_CHECKING:
    from sync_engine.sinks.snapshot import Objects, Plan

__all__ = ["RESTORE", "plan_fields"]


def _time_ms(text: str) -> int:
    """Return wall-clock milliseconds of a time; an argparse type."""
    if text.isascii() and text.isdigit():
        return int(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no time: write 2026-11-21T10:00:00Z or milliseconds since 1970"
        ) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return int(moment.timestamp() * 1000)


def _arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("target", metavar="TARGET", help="s3://bucket/prefix or a directory")
    add("database", metavar="DB", type=Path, help="file to make")
    add_target_options(parser)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--txid", type=int, metavar="N", help="exactly this transaction")
    which.add_argument(
        "--timestamp", type=_time_ms, metavar="TIME", help="the last point at or before; UTC"
    )
    add("--dry-run", action="store_true", help="tell what would be fetched, and change nothing")
    add(
        "--check",
        choices=("none", "quick", "full"),
        default="quick",
        help="what SQLite checks (default: quick)",
    )
    add("--force", action="store_true", help="replace DB where it exists, closed and not newer")
    add("--discard-newer", action="store_true", help="with --force: replace it even if it is newer")
    add("--if-missing", action="store_true", help="do nothing where DB exists")
    add("--layout", choices=("v1", "simple"), default="v1", help="of the target (default: v1)")


@with_own_codes
def _restore(context: Context) -> int:
    from sync_engine.sinks.snapshot.inventory import read_inventory
    from sync_engine.sinks.snapshot.objects import open_objects
    from sync_engine.sinks.snapshot.plan import make_plan

    args = context.args
    if args.layout == "simple" and (args.txid is not None or args.timestamp is not None):
        raise UsageError("--layout simple knows no points: only the newest state can be restored")
    if args.if_missing and args.database.exists():
        if context.output.json:
            context.output.document({"database": str(args.database), "restored": False})
        else:
            context.output.report(f"{args.database} is there")
        return ExitCode.OK
    runtime = SystemRuntime("restore")
    try:
        objects = open_objects(args.target, runtime, endpoint_url=endpoint_of(args))
        if args.layout == "simple":
            return _restore_simple(context, objects)
        if args.dry_run:
            plan = make_plan(
                objects, read_inventory(objects), txid=args.txid, time_ms=args.timestamp
            )
            _show_plan(context, plan)
            return ExitCode.OK
        return _restore_point(context, objects, runtime)
    finally:
        runtime.close(1.0)


def _restore_point(context: Context, objects: Objects, runtime: SystemRuntime) -> int:
    from sync_engine.sinks.snapshot.replicator import default_state_dir
    from sync_engine.sinks.snapshot.restore import restore

    args, output = context.args, context.output
    began = runtime.clock.monotonic()
    with output.progress("fetching") as advance:
        done = restore(
            objects,
            args.database,
            runtime,
            txid=args.txid,
            time_ms=args.timestamp,
            check=args.check,
            force=args.force,
            discard_newer=args.discard_newer,
            state_dir=default_state_dir(args.database.absolute()),
            progress=lambda fetched: advance(1, fetched),
        )
    taken_s = runtime.clock.monotonic() - began
    fields = plan_fields(done.plan) | {
        "database": str(done.path),
        "bytes": done.size,
        "checksum": f"{done.checksum:016x}",
        "checked": args.check,
        "seconds": round(taken_s, 3),
    }
    if output.json:
        output.document(fields)
    else:
        output.report(
            f"restored {done.path}: transaction {done.txid} of {time_text(done.time_ms)}, "
            f"{size(done.size)} in {duration(taken_s)}",
            "green",
        )
    return ExitCode.OK


def _restore_simple(context: Context, objects: Objects) -> int:
    from sync_engine.sinks.snapshot.simple_layout import restore_simple

    args, output = context.args, context.output
    if args.dry_run:
        raise UsageError("--layout simple has no --dry-run: what is usable shows when it is read")
    done = restore_simple(
        objects,
        args.database,
        check=args.check,
        force=args.force,
        discard_newer=args.discard_newer,
    )
    if output.json:
        output.document(done)
        return ExitCode.OK
    logs = count(len(done.logs), "log")
    output.report(f"restored {done.path} from {done.snapshot} and {logs}", "green")
    for line in done.ignored:
        output.warn(f"not used: {line}")
    return ExitCode.OK


def plan_fields(plan: Plan) -> dict[str, Any]:
    """Return a plan as a JSON document."""
    return {
        "txid": plan.txid,
        "time_ms": plan.time_ms,
        "snapshot_txid": plan.snapshot.txid,
        "chunks": len(plan.snapshot.chunks),
        "segments": [str(key) for group in plan.groups for key in group.keys],
        "fetch_bytes": plan.size,
    }


def _show_plan(context: Context, plan: Plan) -> None:
    output = context.output
    fields = plan_fields(plan)
    if output.json:
        output.document(fields)
        return
    shown = {
        "transaction": f"{plan.txid}",
        "time": time_text(plan.time_ms),
        "snapshot": f"{plan.snapshot.txid}, {count(len(plan.snapshot.chunks), 'chunk')}",
        "segments": f"{len(plan.groups)}",
        "to fetch": size(plan.size),
    }
    output.fields("would restore", shown)


RESTORE = Command(
    name="restore",
    summary="bring a database back: newest state, one transaction, or a time",
    details="""\
The file is made beside its place, verified, and renamed: until then nothing changes, after it all
is there. A file that is newer, or open, is never replaced unless you say so. --layout simple reads
targets written as snapshots/{time}.sqlite.zst, wal/{sequence}.wal.zst and metadata.json.

Exit code 1 if there is nothing to restore, 2 if the bucket is missing, 5 if it is damaged, 6 if the
credentials are refused.""",
    example="sync-engine restore s3://backups/archive ./data/archive.db\n"
    "sync-engine restore /mnt/replica app.db --timestamp 2026-11-21T10:00:00Z --dry-run",
    arguments=_arguments,
    run=_restore,
)
