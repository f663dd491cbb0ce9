"""``dlq``: changes that a destination refused for good."""

from __future__ import annotations

import argparse
import sys

from sync_engine.cli.command import Command, ExitCode, UsageError
from sync_engine.cli.context import Context
from sync_engine.cli.listing import time_text
from sync_engine.cli.output import count, item_fields, size
from sync_engine.engine import SyncEngine
from sync_engine.wal.records import DeadLetter

__all__ = ["DLQ"]


def _fields(letter: DeadLetter, *, content: bool) -> dict[str, object]:
    change = letter.change
    item = change.item()
    fields: dict[str, object] = {
        "position": letter.position,
        "destination": letter.follower,
        "error": letter.error,
        "at_ms": letter.at_ms,
        "delete": item is None,
    }
    if item is None:
        return fields | {"id": change.id, "version": change.version}
    return fields | item_fields(item, content=content)


def _list(context: Context) -> int:
    output = context.output
    with context.reading() as engine:
        letters = engine.dead_letters()
    if output.json:
        output.document([_fields(letter, content=False) for letter in letters])
    elif not letters:
        output.report("no dead letters")
    else:
        rows = [
            (
                str(letter.position),
                letter.follower,
                letter.change.id,
                "delete" if letter.change.content is None else size(len(letter.change.content)),
                time_text(letter.at_ms),
                letter.error,
            )
            for letter in letters
        ]
        columns = ("position", "for", "id", "size", "refused", "error")
        output.table(count(len(letters), "dead letter"), columns, rows, right=(0, 3))
    return ExitCode.OK


def _show_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("position", metavar="POS", type=int)
    parser.add_argument("--raw", action="store_true", help="its content alone, byte by byte")


def _show(context: Context) -> int:
    args, output = context.args, context.output
    with context.reading() as engine:
        found = _found(engine, [args.position])
    if args.raw:
        output.bytes(found[0].change.content or b"")
    elif output.json:
        output.document([_fields(letter, content=True) for letter in found])
    else:
        for letter in found:
            fields = _fields(letter, content=True)
            output.fields(f"dead letter {letter.position}", fields)
    return ExitCode.OK


def _found(engine: SyncEngine, positions: list[int]) -> list[DeadLetter]:
    """Return the letters at these positions.

    Raises:
        UsageError: One of them has none.
    """
    letters = [letter for letter in engine.dead_letters() if letter.position in positions]
    missing = set(positions) - {letter.position for letter in letters}
    if missing:
        raise UsageError(
            f"no dead letter at position {', '.join(map(str, sorted(missing)))}",
            "`sync-engine dlq list` tells the positions",
        )
    return letters


def _choice_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("positions", metavar="POS", type=int, nargs="*")
    parser.add_argument("--all", action="store_true", help="all there are")


def _drop_arguments(parser: argparse.ArgumentParser) -> None:
    _choice_arguments(parser)
    parser.add_argument("--yes", action="store_true", help="do not ask")


def _chosen(context: Context) -> list[int] | None:
    args = context.args
    if bool(args.positions) == args.all:
        raise UsageError("name positions, or --all")
    return None if args.all else args.positions


def _requeue(context: Context) -> int:
    output, positions = context.output, _chosen(context)
    with context.delivering() as engine:
        if positions is not None:
            _found(engine, positions)
        before = len(engine.dead_letters())
        with context.stop.deferred():
            sent = engine.requeue_dead_letters(positions)
        report = engine.flush()
        refused = max(0, len(engine.dead_letters()) - (before - sent))
    delivered = 0 if report.left else sent - refused
    if output.json:
        answer = {"requeued": sent, "delivered": delivered, "refused": refused}
        output.document({**answer, "left": report.left})
    else:
        output.report(f"{count(sent, 'change')} sent again, {refused:,} refused again")
    if report.left:
        output.warn("not all are delivered yet; they are safe in the log")
        return ExitCode.UNAVAILABLE
    if refused:
        return ExitCode.PARTLY if delivered else ExitCode.FAILED
    return ExitCode.OK


def _drop(context: Context) -> int:
    output, positions = context.output, _chosen(context)
    with context.reading() as engine:
        letters = engine.dead_letters() if positions is None else _found(engine, positions)
        if letters and not context.args.yes:
            _ask(count(len(letters), "dead letter"))
        dropped = engine.drop_dead_letters(letter.position for letter in letters)
    if output.json:
        output.document({"dropped": dropped})
    else:
        output.report(f"{count(dropped, 'dead letter')} dropped")
    return ExitCode.OK


def _ask(what: str) -> None:
    """Ask on the terminal; without one, or without a yes, go no further.

    Raises:
        UsageError: Nobody said yes.
    """
    if sys.stdin.isatty() and sys.stderr.isatty():
        sys.stderr.write(f"Give up {what} for good? [y/N] ")
        sys.stderr.flush()
        if sys.stdin.readline().strip().lower() in {"y", "yes"}:
            return
    raise UsageError(f"{what} would be given up for good", "add --yes")


DLQ = Command(
    name="dlq",
    summary="list, show, send again or drop dead letters",
    details="""\
A change that a destination refuses for good is put aside with the destination's words, and its
neighbours flow on. Mend the cause, then send it again.""",
    example="""\
sync-engine dlq list
sync-engine dlq requeue --all""",
    children=(
        Command(name="list", summary="list them", example="sync-engine dlq list", run=_list),
        Command(
            name="show",
            summary="show one, with its content",
            example="sync-engine dlq show 17",
            arguments=_show_arguments,
            run=_show,
        ),
        Command(
            name="requeue",
            summary="send them again, with the versions they have",
            details="Exit code 1 if all were refused again, 3 if some, 4 if a server is down.",
            example="sync-engine dlq requeue 17 18",
            arguments=_choice_arguments,
            run=_requeue,
        ),
        Command(
            name="drop",
            summary="forget them for good; the only command that gives data up",
            example="sync-engine dlq drop 17 --yes",
            arguments=_drop_arguments,
            run=_drop,
        ),
    ),
)
