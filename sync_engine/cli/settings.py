"""``config``: what is set, and where."""

from __future__ import annotations

import argparse

from sync_engine.cli.command import Command, ExitCode
from sync_engine.cli.context import Context

__all__ = ["CONFIG"]


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--changed", action="store_true", help="leave the defaults out")


def _explain(context: Context) -> int:
    rows = [
        row
        for row in context.config.explain()
        if not context.args.changed or row.source != "default"
    ]
    if context.output.json:
        context.output.document(rows)
    else:
        context.output.table("", ("setting", "value", "from", "meaning"), rows, wrap=(3,))
    return ExitCode.OK


CONFIG = Command(
    name="config",
    summary="tell what is set, and where",
    example="sync-engine config explain --changed",
    children=(
        Command(
            name="explain",
            summary="print every setting, where its value comes from, and what it means",
            details="Passwords are masked. Nothing is opened or connected to.",
            example="SYNC_ENGINE_DURABILITY=fsync sync-engine config explain --changed",
            arguments=_arguments,
            run=_explain,
        ),
    ),
)
