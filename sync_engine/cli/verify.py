"""``verify`` and ``repair``: is what is derived from the archive what it should be?"""

from __future__ import annotations

import argparse
from collections import Counter
from typing import Any

from sync_engine.cli.command import Command, ExitCode, words
from sync_engine.cli.context import Context
from sync_engine.cli.merkle import other_archive
from sync_engine.cli.output import Output, count, duration, shown
from sync_engine.engine import SyncEngine
from sync_engine.flow.repair import RepairReport
from sync_engine.flow.verify import VerifyReport

__all__ = ["REPAIR", "VERIFY"]

_SHOWN_MAX = 20


def _pace_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--sample", type=float, default=1.0, metavar="SHARE", help="of the ranges: 0.01 is 1 %%"
    )
    parser.add_argument("--rate", type=float, metavar="N", help="rows a second at most")
    parser.add_argument("--after", type=words, metavar="TOKEN", help="go on where `next` says")
    parser.add_argument("--items", type=int, metavar="N", help="stop after about so many rows")


def _pace(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "sample": args.sample,
        "items_per_s": args.rate,
        "after": args.after,
        "items_max": args.items,
    }


def _verify(context: Context) -> int:
    with context.reading() as engine:
        report = _run(context, engine)
    if context.output.json:
        context.output.document(report)
    else:
        _tell(context.output, report)
    return ExitCode.OK if report.ok else ExitCode.CORRUPT


def _run(context: Context, engine: SyncEngine) -> VerifyReport:
    with context.output.progress("verifying") as advance:
        seen = 0

        def step(report: VerifyReport) -> None:
            nonlocal seen
            advance(report.items - seen)
            seen = report.items

        return engine.verify(progress=step, **_pace(context.args))


def _tell(output: Output, report: VerifyReport) -> None:
    output.fields(
        f"verified in {duration(report.seconds)}",
        {
            "rows": f"{report.items:,}",
            "ranges compared with the tree": f"{report.ranges:,}",
            "rows looked up in L2": f"{report.l2_checked:,}",
            "rows looked up in the filter": f"{report.filter_checked:,}",
        },
    )
    for what, ids in (
        ("fail their checksum", report.corrupt),
        ("are answered by L2 with a value that was replaced", report.l2_stale),
        ("are denied by the filter", report.filter_missed),
    ):
        if ids:
            output.warn(f"{count(len(ids), 'item')} {what}: {_some(ids)}")
    if report.unmatched:
        ranges = count(len(report.unmatched), "range")
        output.warn(f"{ranges} of the tree and the rows disagree, from {_some(report.unmatched)}")
    if report.ok:
        output.report("nothing is amiss", "green")
    else:
        output.note("`sync-engine repair --dry-run` tells what would be done")
    if report.next is not None:
        output.note(f"not at the end: go on with --after {shown(report.next)!r}")


def _some(ids: tuple[str, ...]) -> str:
    text = ", ".join(shown(id) for id in ids[:_SHOWN_MAX])
    return text + (", ..." if len(ids) > _SHOWN_MAX else "")


def _repair_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="only tell what would be done")
    parser.add_argument(
        "--from", dest="other", metavar="URL", help="take what is newer in another archive"
    )
    parser.add_argument(
        "--path", default="", type=words, metavar="PATH", help="with --from: only below it"
    )
    _pace_arguments(parser)


def _repair(context: Context) -> int:
    args, output = context.args, context.output
    door = context.reading if args.dry_run else context.delivering
    with door() as engine:
        if args.other is not None:
            with other_archive(context, args.other) as other:
                report = engine.repair(other, dry_run=args.dry_run, path=args.path)
        else:
            report = engine.repair(dry_run=args.dry_run, **_pace(args))
    if output.json:
        actions = [{"id": one.id, "action": one.mended.value} for one in report.actions]
        output.document({"dry_run": report.dry_run, "ok": report.ok, "actions": actions})
    else:
        _tell_repair(output, report)
    return ExitCode.OK if report.ok else ExitCode.PARTLY


def _tell_repair(output: Output, report: RepairReport) -> None:
    kinds = Counter(action.mended.value for action in report.actions)
    for kind, number in kinds.items():
        output.text(f"{number:>8,}  {kind}")
    if not report.actions:
        output.report("there is nothing to mend", "green")
    elif report.dry_run:
        output.report("nothing was changed")


VERIFY = Command(
    name="verify",
    summary="compare rows with the tree, L2 and filter with the archive",
    details="Changes nothing. Exit code 5 if anything is amiss.",
    example="""\
sync-engine verify --sample 0.05
sync-engine verify --rate 20000""",
    arguments=_pace_arguments,
    run=_verify,
)
REPAIR = Command(
    name="repair",
    summary="mend what verify finds, or take what is newer in another archive",
    details="""\
The larger version wins; what is absent on one side deletes nothing on the other. Exit code 3 if
something could not be mended.""",
    example="""\
sync-engine repair --dry-run
sync-engine repair --from mysql://app@elsewhere/items""",
    arguments=_repair_arguments,
    run=_repair,
)
