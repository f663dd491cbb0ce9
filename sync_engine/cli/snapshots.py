"""``snapshots``: what a replica holds, whether it is sound, and how its replicator does."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from sync_engine.cli.command import Command, ExitCode, seconds
from sync_engine.cli.context import Context
from sync_engine.cli.listing import time_text
from sync_engine.cli.output import count, duration, plain, size
from sync_engine.cli.replicate import add_target_options, endpoint_of, with_own_codes
from sync_engine.runtime import SystemRuntime

__all__ = ["SNAPSHOTS"]


def _target_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="TARGET", help="s3://bucket/prefix or a directory")
    add_target_options(parser)


def _list_arguments(parser: argparse.ArgumentParser) -> None:
    _target_arguments(parser)
    parser.add_argument("--points", action="store_true", help="every transaction that is kept")


@with_own_codes
def _list(context: Context) -> int:
    from sync_engine.sinks.snapshot.inventory import read_inventory
    from sync_engine.sinks.snapshot.objects import open_objects
    from sync_engine.sinks.snapshot.plan import Manifest, points

    args, output = context.args, context.output
    runtime = SystemRuntime("snapshots")
    try:
        objects = open_objects(args.target, runtime, endpoint_url=endpoint_of(args))
        inventory = read_inventory(objects)
        if args.points:
            found = [point.txid for point in points(inventory)]
            if output.json:
                output.document(found)
            else:
                for txid in found:
                    output.text(str(txid))
            return ExitCode.OK
        snapshots = [
            Manifest.read(objects, key)
            for branch in reversed(inventory.lineage)
            for _, key in inventory.snapshots(branch)
        ]
        documents = [
            {
                "txid": manifest.txid,
                "epoch": manifest.epoch,
                "time_ms": manifest.time_ms,
                "database_bytes": manifest.pages * manifest.page_size,
                "chunks": len(manifest.chunks),
                "bytes": manifest.size,
            }
            for manifest in snapshots
        ]
        if output.json:
            output.document(documents)
            return ExitCode.OK
        rows = [
            (
                str(manifest.txid),
                str(manifest.epoch),
                time_text(manifest.time_ms),
                size(manifest.pages * manifest.page_size),
                str(len(manifest.chunks)),
                size(manifest.size),
            )
            for manifest in snapshots
        ]
        columns = ("transaction", "epoch", "time", "database", "chunks", "size")
        output.table(count(len(rows), "snapshot"), columns, rows, right=(0, 1, 3, 4, 5))
        output.report(f"newest transaction: {inventory.chain_end()}")
    finally:
        runtime.close(1.0)
    return ExitCode.OK


def _verify_arguments(parser: argparse.ArgumentParser) -> None:
    _target_arguments(parser)
    parser.add_argument("--full", action="store_true", help="read every object, byte for byte")


@with_own_codes
def _verify(context: Context) -> int:
    from sync_engine.sinks.snapshot.objects import open_objects
    from sync_engine.sinks.snapshot.verify import verify

    args, output = context.args, context.output
    runtime = SystemRuntime("snapshots")
    try:
        objects = open_objects(args.target, runtime, endpoint_url=endpoint_of(args))
        found = verify(objects, full=args.full)
        conditional = objects.conditional()
    finally:
        runtime.close(1.0)
    if output.json:
        output.document(plain(found) | {"conditional_writes": conditional})
    else:
        for problem in found.problems:
            output.error(problem)
        if not conditional:
            output.warn(
                "the server ignores conditional writes: two replicators are told apart only by "
                "reading back, which is weaker"
            )
        if found.ignored:
            output.note(f"{count(len(found.ignored), 'object')} of a former owner are ignored")
        told = (
            f"{count(found.snapshots, 'snapshot')}, {count(found.segments, 'segment')}, "
            f"transactions {found.points[0]} to {found.points[1]}, {size(found.read_bytes)} read"
        )
        output.report(told, "" if found.problems else "green")
    return ExitCode.OK if found.healthy else ExitCode.CORRUPT


def _drill_arguments(parser: argparse.ArgumentParser) -> None:
    _target_arguments(parser)
    parser.add_argument("--in", dest="place", type=Path, metavar="DIR", help="where there is room")


@with_own_codes
def _drill(context: Context) -> int:
    from sync_engine.sinks.snapshot.objects import open_objects
    from sync_engine.sinks.snapshot.verify import drill

    args, output = context.args, context.output
    runtime = SystemRuntime("snapshots")
    try:
        objects = open_objects(args.target, runtime, endpoint_url=endpoint_of(args))
        with tempfile.TemporaryDirectory(dir=args.place) as directory:
            done = drill(objects, Path(directory) / "drill", runtime)
    finally:
        runtime.close(1.0)
    if output.json:
        output.document(done)
    else:
        taken = duration(done.seconds)
        output.report(f"transaction {done.txid} restored and checked in {taken}", "green")
    return ExitCode.OK


def _local_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("database", metavar="DB", type=Path, help="the replicated database")
    parser.add_argument("--state-dir", metavar="DIR", type=Path, help="of its replicator")


def _state_dir(context: Context) -> Path:
    from sync_engine.sinks.snapshot.replicator import default_state_dir

    args = context.args
    return Path(args.state_dir or default_state_dir(args.database.absolute()))


def _wait_arguments(parser: argparse.ArgumentParser) -> None:
    _local_arguments(parser)
    parser.add_argument("--txid", type=int, metavar="N", help="default: all committed by now")
    parser.add_argument("--timeout", type=seconds, default=60.0, metavar="TIME", help="60s")


def _wait(context: Context) -> int:
    from sync_engine.sinks.snapshot.status import wait_for

    args, output = context.args, context.output
    durable = wait_for(_state_dir(context), context.clock, txid=args.txid, timeout_s=args.timeout)
    if output.json:
        output.document({"durable_txid": durable})
    else:
        output.report(f"in the target up to transaction {durable}")
    return ExitCode.OK


def _status_arguments(parser: argparse.ArgumentParser) -> None:
    _local_arguments(parser)
    parser.add_argument("--metrics", action="store_true", help="as Prometheus reads it")


def _status(context: Context) -> int:
    from sync_engine.sinks.snapshot.status import metrics_of, read_status

    output = context.output
    status = read_status(_state_dir(context), context.clock)
    if context.args.metrics:
        for name, value in metrics_of(status).items():
            output.text(f"# TYPE sync_engine_{name} gauge")
            output.text(f"sync_engine_{name} {value:g}")
    elif output.json:
        output.document(status)
    else:
        shown = metrics_of(status)
        told = {name: value for name, value in status.items() if isinstance(value, str)}
        numbers = {name.removeprefix("snapshot_"): f"{value:,g}" for name, value in shown.items()}
        output.fields("replicator", told | numbers)
    if status["phase"] == "fenced" or not status["alive"]:
        return ExitCode.UNAVAILABLE
    return ExitCode.FAILED if status.get("stage_full") else ExitCode.OK


SNAPSHOTS = Command(
    name="snapshots",
    summary="look into a replica, verify it, try a restore; status of its replicator",
    example="sync-engine snapshots list s3://backups/archive",
    children=(
        Command(
            name="list",
            summary="print the snapshots of a replica, or every point that can be restored",
            example="sync-engine snapshots list s3://backups/archive --points",
            arguments=_list_arguments,
            run=_list,
        ),
        Command(
            name="verify",
            summary="check a replica: names, chain, and with --full every byte",
            details="Exit code 5 if something is missing or damaged; it is named.",
            example="sync-engine snapshots verify s3://backups/archive --full",
            arguments=_verify_arguments,
            run=_verify,
        ),
        Command(
            name="drill",
            summary="restore the newest point to a temporary place, check it, remove it",
            example="sync-engine snapshots drill s3://backups/archive",
            arguments=_drill_arguments,
            run=_drill,
        ),
        Command(
            name="status",
            summary="tell what the replicator of a database does",
            details="Exit code 4 if it does not run, 1 if its staging area is full.",
            example="sync-engine snapshots status ./data/archive.db --json",
            arguments=_status_arguments,
            run=_status,
        ),
        Command(
            name="wait",
            summary="wait until what was committed is in the target",
            details="Causes no request of its own. Exit code 4 if it is not in time.",
            example="sync-engine snapshots wait ./data/archive.db --timeout 30s",
            arguments=_wait_arguments,
            run=_wait,
        ),
    ),
)
