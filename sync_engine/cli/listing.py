"""``scan`` and ``status``: what there is, and where."""

from __future__ import annotations

import argparse
import datetime as dt
from collections.abc import Iterator

from sync_engine.cli.command import Command, ExitCode, words
from sync_engine.cli.context import Context
from sync_engine.cli.output import item_fields, shown
from sync_engine.core.item import SyncItem
from sync_engine.core.version import ms_of_version
from sync_engine.engine import SyncEngine

__all__ = ["SCAN", "STATUS", "time_text"]

_PREVIEW = 60


def _scan_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "prefix", metavar="PREFIX", nargs="?", default="", type=words, help="taken literally"
    )
    parser.add_argument("--state", metavar="LABEL", help="only items with this label")
    parser.add_argument("--limit", type=int, metavar="N", help="at most so many")
    parser.add_argument("--after", type=words, metavar="ID", help="begin after this id")
    parser.add_argument("--values", action="store_true", help="contents too")


def _scan(context: Context) -> int:
    args, output = context.args, context.output
    with context.reading() as engine:
        for item in _items(engine, args):
            if output.json:
                output.line(item_fields(item, content=args.values))
            else:
                _print(context, item)
    return ExitCode.OK


def _items(engine: SyncEngine, args: argparse.Namespace) -> Iterator[SyncItem]:
    if args.limit is not None and args.limit <= 0:
        return
    if args.state is None:
        yield from engine.scan_prefix(args.prefix, after=args.after, limit=args.limit)
        return
    found = 0
    for item in engine.get_by_state(args.state, after=args.after):
        if item.id.startswith(args.prefix):
            yield item
            found += 1
            if found == args.limit:
                return


def _print(context: Context, item: SyncItem) -> None:
    updated = time_text(item.updated_at_ms)
    line = f"{len(item.content):>12,}  {updated}  {shown(item.state):<10}  {shown(item.id)}"
    if context.args.values:
        text = item.content[: 4 * _PREVIEW].decode(errors="replace")
        cut = text[:_PREVIEW]
        line += f"  {shown(cut)}{'...' if len(text) > len(cut) else ''}"
    context.output.text(line)


def time_text(ms: int) -> str:
    """Return wall-clock milliseconds as UTC."""
    try:
        return dt.datetime.fromtimestamp(ms / 1000, dt.UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    except (OverflowError, ValueError, OSError):
        return f"{ms} ms"


def _status_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", metavar="ID")


def _status(context: Context) -> int:
    output = context.output
    with context.reading() as engine:
        status = engine.status(context.args.id)
    if output.json:
        output.document(status)
    else:
        answers = {True: "yes", False: "no", None: "cannot be asked"}
        in_l2 = "no L2" if context.config.redis_url is None else answers[status.in_l2]
        absent = "unknown" if status.in_l3 is None else "absent"
        rows = [
            ("version", str(status.version or absent)),
            ("updated", time_text(ms_of_version(status.version)) if status.version else "-"),
            ("deleted", answers[status.deleted]),
            ("waits for", ", ".join(status.pending) or "nothing"),
            ("in L1", answers[status.in_l1]),
            ("in L2", in_l2),
            ("in L3", answers[status.in_l3]),
            ("refused", status.dead_letter or "no"),
        ]
        output.table(status.id, ("", ""), rows)
    if status.version == 0 and status.in_l3 is None:  # nobody could tell: that is no absence
        return ExitCode.UNAVAILABLE
    return ExitCode.OK if status.version and not status.deleted else ExitCode.FAILED


SCAN = Command(
    name="scan",
    summary="list items in bytewise order of ids",
    details="""\
One line an item: bytes, time of its last write (UTC), state, id; control characters are escaped.
With --json one JSON object a line, exact. Items kept in the cache tiers only are not listed.""",
    example="""\
sync-engine scan docs/ --limit 20
sync-engine scan --state review --values --json""",
    arguments=_scan_arguments,
    run=_scan,
)
STATUS = Command(
    name="status",
    summary="tell where one item is, asking each tier",
    details="Exit code 1 if there is no such item, 4 if the archive cannot be asked.",
    example="sync-engine status greeting",
    arguments=_status_arguments,
    run=_status,
)
