"""``run``: a pipeline file as a process: sources, engine and sinks until somebody says stop."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.live import Live
from rich.table import Table

from sync_engine.cli.command import Command, ExitCode
from sync_engine.cli.context import Context
from sync_engine.cli.output import count, duration, size
from sync_engine.cli.signals import Interrupted
from sync_engine.pipeline import Difference, Pipeline, PipelineConfig, Stopped, load
from sync_engine.telemetry import get_logger
from sync_engine.telemetry.logs import JsonFormatter

__all__ = ["RUN"]

_log = get_logger("pipeline")
_TICK_S = 0.25

_Look = tuple[int, int, int] | None


def _look(path: Path) -> _Look:
    """Return what changes whenever a file does; None where there is none."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="the pipeline, TOML")
    parser.add_argument("--check", action="store_true", help="check the file, and run nothing")
    parser.add_argument(
        "--forget",
        action="append",
        default=[],
        metavar="SINK",
        help="no longer keep the log for a sink that was taken out of the file; may be repeated",
    )


def _run(context: Context) -> int:
    path = context.pipeline_file()
    seen = _look(path)
    config = load(path, overrides=context.settings)
    if context.args.check:
        Pipeline.check(config)
        _tell_checked(context, path, config)
        return ExitCode.OK
    with _logging(context):
        return _serve(context, path, config, seen)


def _serve(context: Context, path: Path, config: PipelineConfig, seen: _Look) -> int:
    pipeline = Pipeline(config)
    watch = _Watch(context, path, pipeline, seen)
    try:
        with watch.hangup():
            with context.stop.deferred():  # what is left can only be told of what has started
                pipeline.start()
                for name in context.args.forget:
                    if not pipeline.forget(name):
                        _log.warning("sink_not_known", sink=name)
            watch.loop()
    except Interrupted as exc:  # the usual end; a second signal ends the flush, too
        try:
            return _tell_stopped(context, pipeline.stop(), exc.signum)
        except Interrupted:
            pipeline.abandon()
            raise
    except BaseException:
        pipeline.abandon()
        raise
    return ExitCode.OK


class _Watch:
    """Sits beside a running pipeline: shows how it does, and reloads its file."""

    def __init__(self, context: Context, path: Path, pipeline: Pipeline, seen: _Look) -> None:
        self._context = context
        self._path = path
        self._pipeline = pipeline
        self._hung_up = False
        self._seen = seen
        self._rates = _Rates()

    @contextmanager
    def hangup(self) -> Iterator[None]:
        """Listen to SIGHUP; outside the main thread, where Python cannot, do nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(signum: int, frame: object) -> None:
            del signum, frame
            self._hung_up = True

        before = signal.signal(signal.SIGHUP, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGHUP, before)

    def loop(self) -> None:
        """Go on until a signal raises."""
        with _screen(self._context) as show:
            reported = self._context.clock.monotonic()
            while True:
                self._context.clock.sleep(_TICK_S)
                self._reload_if_due()
                now = self._context.clock.monotonic()
                due = now - reported >= self._pipeline.config.run.report_s
                if show is None and not due:
                    continue
                status = self._rates.measured(self._pipeline.status(), now)
                if show is not None:
                    show(status)
                if due:
                    reported = now
                    _log.info("pipeline_rates", **_told(status))

    def _reload_if_due(self) -> None:
        seen = _look(self._path)
        changed = seen is not None and seen != self._seen
        if changed and self._pipeline.config.run.reload_on_change:
            self._hung_up = True
        if not self._hung_up:
            return
        self._hung_up = False
        self._seen = seen
        with self._context.stop.deferred():  # ended well in any case: the signal is heard then
            try:
                new = load(self._path, overrides=self._context.settings)
                self._tell_reloaded(self._pipeline.reload(new))
            except Exception as exc:  # whatever a new part does, the others run
                _log.error("reload_failed", file=str(self._path), error=exc)

    def _tell_reloaded(self, found: Difference) -> None:
        if found.needs_restart:
            _log.warning("restart_needed", settings=list(found.needs_restart))
        for name in found.sinks_left:
            _log.warning("sink_keeps_the_log", sink=name, let_go_with=f"run --forget {name}")


class _Rates:
    """Adds what happened per second to a status, from one look to the next."""

    def __init__(self) -> None:
        self._before: dict[str, tuple[float, float]] = {}

    def measured(self, status: dict[str, Any], now_s: float) -> dict[str, Any]:
        for kind, counter in (("sources", "taken"), ("sinks", "delivered")):
            for name, part in status[kind].items():
                part["per_s"] = self._rate(f"{kind}.{name}", part[counter], now_s)
        return status

    def _rate(self, key: str, total: float, now_s: float) -> float:
        before = self._before.get(key)
        self._before[key] = total, now_s
        if before is None or now_s <= before[1]:
            return 0.0
        return max(0.0, total - before[0]) / (now_s - before[1])


def _told(status: Mapping[str, Any]) -> dict[str, Any]:
    """Return a status as fields of one log line."""
    sources = {
        name: {key: part[key] for key in ("taken", "refused", "held", "waits_for", "error")}
        for name, part in status["sources"].items()
    }
    sinks = {
        name: {key: part[key] for key in ("stage", "delivered", "lag_items", "lag_s", "error")}
        for name, part in status["sinks"].items()
    }
    return {"sources": sources, "sinks": sinks, "backpressure": status["backpressure"]}


@contextmanager
def _screen(context: Context) -> Iterator[Callable[[Mapping[str, Any]], None] | None]:
    """Give what shows a status, again and again, on a terminal; None elsewhere."""
    output = context.output
    if output.quiet or output.json or not output.err.is_terminal:
        yield None
        return
    with Live(console=output.err, refresh_per_second=4, transient=True) as live:
        yield lambda status: live.update(_table(status))


def _table(status: Mapping[str, Any]) -> Table:
    table = Table(box=None, header_style="dim")
    for column in ("", "items", "per s", "waiting", "state"):
        table.add_column(column, justify="left" if column in ("", "state") else "right")
    for name, part in status["sources"].items():
        state = part["error"] or ("waits for room" if part["waits_for"] else "running")
        table.add_row(
            f"> {name}", f"{part['taken']:,}", f"{part['per_s']:,.0f}", f"{part['held']:,}", state
        )
    for name, part in status["sinks"].items():
        state = part["error"] or _stage(part)
        waiting = f"{part['lag_items']:,} ({size(part['lag_bytes'])})"
        table.add_row(
            f"< {name}", f"{part['delivered']:,}", f"{part['per_s']:,.0f}", waiting, state
        )
    return table


def _stage(part: Mapping[str, Any]) -> str:
    if part["stage"] == "copy":
        return f"copying, {part['copied_rows']:,} rows"
    if part["lag_items"]:
        return f"following, {duration(part['lag_s'])} behind"
    return "following" if part["stage"] == "follow" else "attaching"


@contextmanager
def _logging(context: Context) -> Iterator[None]:
    """Away from a terminal, log as lines of JSON, from the level INFO."""
    output = context.output
    if output.err.is_terminal and not output.json:
        yield
        return
    logger = logging.getLogger("sync_engine")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    before, level = logger.handlers[:], logger.level
    logger.handlers[:] = [handler]
    wanted = logging.DEBUG if output.verbose > 1 else logging.INFO
    logger.setLevel(logging.ERROR if output.quiet else wanted)
    try:
        yield
    finally:
        logger.handlers[:] = before
        logger.setLevel(level)


def _tell_checked(context: Context, path: Path, config: PipelineConfig) -> None:
    found = {
        "file": str(path),
        "sources": [{"name": spec.name, "type": spec.type} for spec in config.sources],
        "sinks": [
            {"name": spec.name, "type": spec.type, "prefix": list(spec.prefixes)}
            for spec in config.sinks
        ],
    }
    if context.output.json:
        context.output.document(found)
        return
    told = f"{count(len(config.sources), 'source')}, {count(len(config.sinks), 'sink')}"
    context.output.report(f"{path}: {told}; the settings can be used")


def _tell_stopped(context: Context, stopped: Stopped, signum: int) -> int:
    output = context.output
    if output.json:
        output.document(
            {
                "signal": signum,
                "left": stopped.left,
                "dead_letters": stopped.dead_letters,
                "seconds": round(stopped.seconds, 6),
            }
        )
    for name, left in stopped.left.items():
        output.warn(f"{count(left, 'change')} for {name} stay in the log; the next run goes on")
    if stopped.dead_letters:
        letters = count(stopped.dead_letters, "dead letter")
        output.warn(f"{letters} wait for a decision: `sync-engine dlq list`")
    if stopped.complete:
        output.note(f"everything taken is delivered ({duration(stopped.seconds)})")
    return ExitCode.OK if stopped.complete else ExitCode.UNAVAILABLE


RUN = Command(
    name="run",
    summary="run sources, engine and sinks of a pipeline file",
    details="""\
The first SIGTERM or SIGINT takes nothing more, delivers what was taken within close_timeout_s, and
ends with exit code 0, or 4 if something is left (it is safe in the log). A second one ends at once.
SIGHUP reads the file again, as does a change of it: sources and sinks come, go and change while the
others run. A file that cannot be used changes nothing, and is told in the log.""",
    example="""\
sync-engine run pipeline.toml --check
sync-engine run pipeline.toml""",
    arguments=_arguments,
    run=_run,
)
