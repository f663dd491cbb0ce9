"""``changes``: what an engine has archived, in order."""

from __future__ import annotations

import argparse
from contextlib import closing

from sync_engine.cli.command import Command, ExitCode, UsageError, seconds
from sync_engine.cli.context import Context
from sync_engine.cli.listing import time_text
from sync_engine.cli.output import item_fields, shown
from sync_engine.core.version import ms_of_version
from sync_engine.errors import ConfigError, FeedGap, InvalidItem
from sync_engine.flow.feed import ArchivedChange, Feed, parse
from sync_engine.runtime import SystemRuntime
from sync_engine.wal.owner import LOG_SUFFIX
from sync_engine.wal.view import LogView

__all__ = ["CHANGES"]

_POLL_S = 0.2


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--after", metavar="TOKEN", help="begin after the change of this token")
    parser.add_argument("--follow", action="store_true", help="wait for more, until interrupted")
    parser.add_argument(
        "--for", dest="wait", type=seconds, metavar="TIME", help="wait for more, for so long"
    )
    parser.add_argument("--values", action="store_true", help="contents too")


def _run(context: Context) -> int:
    args, config = context.args, context.config
    path = config.data_dir / f"{config.engine_name}{LOG_SUFFIX}"
    runtime = SystemRuntime("changes")
    try:
        view = LogView(path, runtime)
    except ConfigError as exc:
        raise UsageError(
            str(exc), "name the data_dir of an engine with --data-dir or SYNC_ENGINE_DATA_DIR"
        ) from exc
    with closing(view):
        try:
            after = view.released if args.after is None else parse(args.after, view.uuid)
            return _print_all(context, runtime, Feed(view, after))
        except InvalidItem as exc:
            raise UsageError(str(exc), "tokens are in the output of --json") from exc
        except FeedGap as exc:
            context.output.warn(str(exc))
            return ExitCode.FAILED
        finally:
            runtime.close(1.0)


def _print_all(context: Context, runtime: SystemRuntime, feed: Feed) -> int:
    clock = runtime.clock
    until = clock.monotonic() + (context.args.wait or 0.0)
    while True:
        changes, upto = feed.take()
        for change in changes:
            _print(context, change)
        feed.done(upto)
        if changes:
            continue
        if not context.args.follow and clock.monotonic() >= until:
            return ExitCode.OK
        context.output.flush()  # whoever reads a pipe would see nothing of the last ones
        clock.sleep(_POLL_S)


def _print(context: Context, change: ArchivedChange) -> None:
    output, item = context.output, change.item
    if output.json:
        line: dict[str, object] = {"op": "delete" if item is None else "put", "id": change.id}
        if item is not None:
            line |= item_fields(item, content=context.args.values)
        output.line(line | {"version": change.version, "token": change.token})
        return
    updated = time_text(ms_of_version(change.version))
    size = "deleted" if item is None else f"{len(item.content):,}"
    state = "" if item is None else shown(item.state)
    output.text(f"{size:>12}  {updated}  {state:<10}  {shown(change.id)}")


CHANGES = Command(
    name="changes",
    summary="print what an engine has archived, in order",
    details="""\
Reads the log of the engine in data_dir, also while it runs, and disturbs it in nothing. The log
keeps what somebody waits for: set feed_items_kept at the engine to keep more. Where it no longer
reaches back to TOKEN, the exit code is 1, and nothing is skipped in silence.""",
    example="""\
sync-engine changes --data-dir ./data --json
sync-engine changes --after 0123456789abcdef0123456789abcdef:41 --follow""",
    arguments=_arguments,
    run=_run,
)
