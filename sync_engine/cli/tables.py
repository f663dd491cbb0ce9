"""``tables``: how far replicated tables are, whether they equal the items, and mending them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from sync_engine.adapters import build
from sync_engine.cli.command import Command, ExitCode, UsageError
from sync_engine.cli.context import Context
from sync_engine.cli.output import count, duration
from sync_engine.engine import SyncEngine
from sync_engine.pipeline import load
from sync_engine.pipeline.model import PipelineConfig, SinkSpec
from sync_engine.ports import AdapterContext
from sync_engine.runtime import SystemRuntime

if TYPE_CHECKING:
    from sync_engine.core.item import SyncItem
    from sync_engine.sinks.sql_table import SqlTableSink, Verification

__all__ = ["TABLES"]

_TYPE = "sql_table"


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="the pipeline, TOML")
    parser.add_argument("--sink", metavar="NAME", help="which, where there are several sql_table")


def _sampling(parser: argparse.ArgumentParser) -> None:
    _arguments(parser)
    parser.add_argument(
        "--sample", type=float, default=1.0, metavar="SHARE", help="of ranges, above 0 to 1"
    )


def _chosen(context: Context, config: PipelineConfig) -> SinkSpec:
    specs = [spec for spec in config.sinks if spec.type == _TYPE]
    wanted = context.args.sink
    found = [spec for spec in specs if wanted in (None, spec.name)]
    if len(found) != 1:
        names = ", ".join(spec.name for spec in specs) or "none"
        raise UsageError(f"name one sink of type {_TYPE}: there is {names}", "--sink NAME")
    return found[0]


@contextmanager
def _opened(context: Context) -> Iterator[tuple[SyncEngine, SqlTableSink, SinkSpec]]:
    """Open the engine as one that only looks, and the sink beside the one that runs."""
    config = load(context.pipeline_file(), overrides=context.settings)
    spec = _chosen(context, config)
    settings = {**spec.settings, "create": False}
    runtime = SystemRuntime("tables")
    made = AdapterContext(
        name=spec.name, runtime=runtime, data_dir=config.engine.data_dir, wake=lambda: None
    )
    sink: SqlTableSink = build("sink", _TYPE, made, settings)
    try:
        with SyncEngine(replace(config.engine, passive=True)) as engine:
            yield engine, sink, spec
    finally:
        sink.close()
        runtime.close(1.0)


def _items(engine: SyncEngine, spec: SinkSpec) -> Iterator[SyncItem]:
    for prefix in spec.prefixes:
        yield from engine.scan_prefix(prefix)


def _verified(
    context: Context, engine: SyncEngine, sink: SqlTableSink, spec: SinkSpec
) -> Verification:
    return sink.verify(lambda: _items(engine, spec), sample=context.args.sample)


def _verify(context: Context) -> int:
    with _opened(context) as (engine, sink, spec):
        found = _verified(context, engine, sink, spec)
    _tell(context, found, mended=None)
    return ExitCode.OK if found.clean else ExitCode.FAILED


def _repair(context: Context) -> int:
    with _opened(context) as (engine, sink, spec):
        found = _verified(context, engine, sink, spec)
        mended = sink.repair(found, engine.get, lambda: _items(engine, spec))
    _tell(context, found, mended=mended)
    return ExitCode.OK if mended == len(found.drift) else ExitCode.PARTLY


def _tell(context: Context, found: Verification, *, mended: int | None) -> None:
    output = context.output
    if output.json:
        output.document(
            {
                "rows": dict(found.rows),
                "ranges": found.ranges,
                "ranges_differing": found.ranges_differing,
                "drift": [{"table": d.table, "id": d.id, "kind": d.kind} for d in found.drift],
                "refused": list(found.refused),
                "mended": mended,
            }
        )
        return
    rows = [(one.table, one.kind, one.id) for one in found.drift]
    if rows:
        output.table(count(len(rows), "row") + " of drift", ("table", "kind", "id"), rows)
    told = f"{count(sum(found.rows.values()), 'row')} compared, {len(rows)} differ"
    output.report(told if mended is None else f"{told}, {mended} mended")


def _lag(context: Context) -> int:
    with _opened(context) as (_engine, sink, _spec):
        standing = sink.standing()
    if context.output.json:
        context.output.document(
            [
                {
                    "log": one.log_uuid,
                    "position": one.position,
                    "age_s": one.age_s,
                    "waiting": one.waiting,
                }
                for one in standing
            ]
        )
        return ExitCode.OK
    rows = [
        (
            one.log_uuid,
            str(one.position),
            "none yet" if one.age_s is None else duration(one.age_s),
            str(one.waiting),
        )
        for one in standing
    ]
    names = ("log", "position", "last change, ago", "waiting")
    context.output.table(count(len(rows), "log"), names, rows, right=(1, 2, 3))
    return ExitCode.OK


TABLES = Command(
    name="tables",
    summary="replicated tables: how far they are, whether they equal the items, mending them",
    example="sync-engine tables verify pipeline.toml",
    children=(
        Command(
            name="lag",
            summary="tell the position of each log in the tables, and the age of its last change",
            example="sync-engine tables lag pipeline.toml --sink users",
            arguments=_arguments,
            run=_lag,
        ),
        Command(
            name="verify",
            summary="compare tables with items; exit code 1 if they differ",
            example="sync-engine tables verify pipeline.toml --sample 0.1",
            arguments=_sampling,
            run=_verify,
        ),
        Command(
            name="repair",
            summary="compare tables with items, and mend the rows that differ",
            details=(
                "Exit code 3: some rows were left as they are, because the database refuses them or"
                " they changed meanwhile; the log lines (-v) say which are refused."
            ),
            example="sync-engine tables repair pipeline.toml",
            arguments=_sampling,
            run=_repair,
        ),
    ),
)
