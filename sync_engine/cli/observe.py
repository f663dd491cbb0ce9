"""``stats``, ``health`` and ``flush``: how the engine does."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

from sync_engine.cli.command import Command, ExitCode, seconds
from sync_engine.cli.context import Context
from sync_engine.cli.output import count, duration, plain, size

__all__ = ["FLUSH", "HEALTH", "STATS"]


def _stats(context: Context) -> int:
    with context.reading() as engine:
        stats = plain(engine.stats())
    if context.output.json:
        context.output.document(stats)
        return ExitCode.OK
    metrics = stats.pop("metrics")
    for section, values in stats.items():
        if isinstance(values, Mapping):
            rows = [(name, _shown(name, value)) for name, value in _flat(values)]
            context.output.table(section, ("", ""), rows)
    rows = [(name, _histogram(value)) for name, value in metrics.items()]
    context.output.table("metrics of this run", ("", ""), rows)
    return ExitCode.OK


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def _shown(name: str, value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if "bytes" in name and "max" not in name:
        return f"{value:,.0f}  ({size(value)})" if value >= 1024 else f"{value:,.0f}"
    return f"{value:,.0f}" if value == int(value) else f"{value:,.4g}"


def _histogram(value: Any) -> str:
    if isinstance(value, Mapping):
        mean = value["sum"] / value["count"] if value["count"] else 0.0
        return f"{count(value['count'], 'time')}, mean {duration(mean)}"
    return _shown("", value)


def _health(context: Context) -> int:
    output = context.output
    with context.reading() as engine:
        health = engine.health()
    code = ExitCode.FAILED if health.degraded else ExitCode.OK
    if any(tier.latency_s is None for tier in health.tiers.values()):
        code = ExitCode.UNAVAILABLE
    if output.json:
        output.document(health)
        return code
    rows = [
        (
            name.upper(),
            "up" if tier.latency_s is not None else "down",
            "-" if tier.latency_s is None else duration(tier.latency_s),
            tier.circuit,
            f"{tier.lag_items:,}",
            tier.error,
        )
        for name, tier in health.tiers.items()
    ]
    columns = ("tier", "", "latency", "circuit", "lag", "last error")
    output.table("tiers", columns, rows, right=(2, 4))
    output.fields(
        "on the way to the archive",
        {
            "changes": f"{health.pending_items:,}",
            "bytes": size(health.pending_bytes),
            "age of the oldest": duration(health.pending_age_s),
            "dead letters": f"{health.dead_letters:,}",
            "back-pressure": health.backpressure,
        },
    )
    for sentence in (*health.degraded, *health.warnings):
        output.warn(sentence.removesuffix(": "))
    if code == ExitCode.UNAVAILABLE:
        output.note("`sync-engine doctor` tells what is wrong with a server")
    if not health.degraded and not health.warnings:
        output.report("all is well", "green")
    return code


def _flush_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--timeout", type=seconds, metavar="TIME", help="default: the setting close_timeout_s"
    )


def _flush(context: Context) -> int:
    output = context.output
    with context.delivering() as engine:
        report = engine.flush(context.args.timeout)
        health = engine.health() if report.left else None
    if output.json:
        output.document(report)
    elif report.complete:
        output.report(f"everything is delivered ({duration(report.seconds)})")
    if health is not None:
        for name, left in report.left.items():
            why = health.tiers[name].error or "no answer in time"
            output.warn(f"{count(left, 'change')} not delivered to {name}: {why}")
    if report.dead_letters:
        output.warn(f"{count(report.dead_letters, 'dead letter')}: see `sync-engine dlq list`")
    return ExitCode.OK if report.complete else ExitCode.UNAVAILABLE


STATS = Command(
    name="stats",
    summary="print counters and gauges of every part",
    details="Counters of L1, filter and metrics begin with this run; log and cursors persist.",
    example="sync-engine stats --json",
    run=_stats,
)
HEALTH = Command(
    name="health",
    summary="ask every tier, and tell what is amiss",
    details="Exit code 4 if a server does not answer, 1 if something else is amiss.",
    example="sync-engine health",
    run=_health,
)
FLUSH = Command(
    name="flush",
    summary="deliver everything that waits in the log",
    details="Exit code 4 if something is left; it stays in the log.",
    example="sync-engine flush --timeout 5m",
    arguments=_flush_arguments,
    run=_flush,
)
