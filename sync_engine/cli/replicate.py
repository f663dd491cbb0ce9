"""``replicate``: follows a live SQLite database, in a process of its own."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sync_engine.cli.command import Command, ExitCode, seconds
from sync_engine.cli.context import Context
from sync_engine.cli.problems import explain
from sync_engine.core.policies import RetryConfig
from sync_engine.errors import ConfigError, StoreUnavailable, SyncEngineError
from sync_engine.runtime import SystemRuntime

if TYPE_CHECKING:  # imported where they are used: other commands need not wait for them
    from sync_engine.sinks.snapshot import Objects, ReplicationSettings, Replicator

__all__ = ["REPLICATE", "add_target_options", "with_own_codes"]

_LOOK_S = 0.5
_ONCE_S = 0.05
_CODES = """\
Exit codes beside the usual ones: 6 if the credentials are refused, 7 if another replicator writes
to the target."""


def with_own_codes(run: Callable[[Context], int]) -> Callable[[Context], int]:
    """Give refused credentials and a taken target exit codes of their own."""

    @wraps(run)
    def wrapped(context: Context) -> int:
        try:
            return run(context)
        except SyncEngineError as exc:
            code = getattr(exc, "exit_code", None)
            if code is None:
                raise
            context.output.error(explain(exc).text)
            return int(code)

    return wrapped


def add_target_options(parser: argparse.ArgumentParser) -> None:
    """Add what every command that speaks to a target takes."""
    parser.add_argument(
        "--endpoint-url", metavar="URL", help="S3 other than Amazon's (also AWS_ENDPOINT_URL)"
    )


def endpoint_of(args: argparse.Namespace) -> str | None:
    """Return the endpoint: of the command line, else of the environment."""
    return (
        args.endpoint_url
        or os.environ.get("AWS_ENDPOINT_URL_S3")
        or os.environ.get("AWS_ENDPOINT_URL")
    )


def _arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("database", metavar="DB", type=Path, help="SQLite database in WAL mode")
    add("target", metavar="TARGET", help="s3://bucket/prefix or a directory")
    add_target_options(parser)
    add("--state-dir", metavar="DIR", type=Path, help="default: .NAME.replica beside DB")
    add("--interval", type=seconds, metavar="TIME", help="between two segments (1s)")
    add("--snapshot-interval", type=seconds, metavar="TIME", help="between two snapshots (24h)")
    add("--retain", type=seconds, metavar="TIME", help="points stay restorable this long (72h)")
    add("--level", type=int, metavar="N", help="zstd level, 1 to 22 (3)")
    add("--drill", type=seconds, metavar="TIME", help="between two trial restores (none)")
    add("--no-lease", action="store_true", help="no renewals: an idle database costs no request")
    add("--no-restore", action="store_true", help="do not restore DB where it is missing")
    add("--allow-fresh", action="store_true", help="begin where there is neither DB nor replica")
    add("--once", action="store_true", help="replicate what is there, then end")
    add(
        "--option",
        dest="options",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="any other setting of replication; may be repeated",
    )
    add("--with-parent", type=int, metavar="PID", help="end when that parent process does")


def settings_of(args: argparse.Namespace) -> ReplicationSettings:
    """Return the settings of the command line.

    Raises:
        ConfigError: One is unknown or out of range.
    """
    from sync_engine.sinks.snapshot.settings import ReplicationSettings

    given: dict[str, Any] = {}
    kinds = {field.name: field for field in fields(ReplicationSettings)}
    for text in args.options:
        name, equals, value = text.partition("=")
        if not equals or name not in kinds:
            raise ConfigError(f"--option {text}: must be NAME=VALUE, one of {', '.join(kinds)}")
        given[name] = _value(name, kinds[name].default, value)
    named = {
        "interval_s": args.interval,
        "snapshot_interval_s": args.snapshot_interval,
        "retain_s": args.retain,
        "compression_level": args.level,
        "drill_interval_s": args.drill,
    }
    given |= {name: value for name, value in named.items() if value is not None}
    if args.no_lease:
        given["lease"] = False
    if args.no_restore:
        given["auto_restore"] = False
    if args.allow_fresh:
        given["allow_fresh"] = True
    if "interval_s" in given:
        given.setdefault("poll_s", min(0.1, given["interval_s"]))
    return ReplicationSettings.from_mapping(given)


def _value(name: str, default: object, text: str) -> object:
    try:
        if isinstance(default, bool):
            return {"true": True, "false": False}[text.lower()]
        if isinstance(default, tuple):
            return tuple(float(part) for part in text.split(",") if part)
        return type(default)(text)  # type: ignore[call-arg]
    except (KeyError, ValueError):
        raise ConfigError(f"--option {name}: cannot be {text!r}") from None


@with_own_codes
def _replicate(context: Context) -> int:
    from sync_engine.sinks.snapshot.objects import open_objects

    args, output = context.args, context.output
    settings = settings_of(args)
    runtime = SystemRuntime("replicator")
    try:
        objects = open_objects(args.target, runtime, endpoint_url=endpoint_of(args), create=True)
        replicator = _started(context, lambda: _make(args, objects, runtime, settings), runtime)
        output.report(f"replicating {args.database} to {objects.url}")
        try:
            if args.once:
                _until_durable(replicator, runtime)
            else:
                _until_over(replicator, args.with_parent)
        finally:
            with context.stop.deferred():
                left = replicator.stop()
                if left:
                    output.warn(f"{left} segments wait in {replicator.state_dir}")
    finally:
        runtime.close(5.0)
    return ExitCode.OK


def _make(
    args: argparse.Namespace,
    objects: Objects,
    runtime: SystemRuntime,
    settings: ReplicationSettings,
) -> Replicator:
    from sync_engine.sinks.snapshot.replicator import Replicator

    return Replicator(args.database, objects, runtime, settings, args.state_dir)


def _started(
    context: Context, make: Callable[[], Replicator], runtime: SystemRuntime
) -> Replicator:
    """Start; where the target cannot be reached now, go on trying."""
    retry = RetryConfig.daemon()
    failures = 0
    while True:
        replicator = make()
        try:
            replicator.start(lambda: _orphaned(context.args.with_parent))
        except StoreUnavailable as exc:
            replicator.stop(0.0)
            if context.args.once or _orphaned(context.args.with_parent):
                raise
            failures += 1
            context.output.warn(explain(exc).text)
            runtime.clock.sleep(retry.delay_s(failures, runtime.random()))
        except BaseException:
            replicator.stop(0.0)
            raise
        else:
            return replicator


def _until_over(replicator: Replicator, parent: int | None) -> None:
    while not replicator.wait(_LOOK_S):
        if _orphaned(parent):
            return


def _orphaned(parent: int | None) -> bool:
    return parent is not None and os.getppid() != parent


def _until_durable(replicator: Replicator, runtime: SystemRuntime) -> None:
    """Wait until everything that was committed by now is in the target."""
    began_ms = runtime.clock.now_ms()
    while True:
        status = replicator.status()
        if status["seen_ms"] > began_ms and 0 < status["seen_txid"] <= status["durable_txid"]:
            return
        with contextlib.suppress(StoreUnavailable):
            replicator.wait(_ONCE_S)


REPLICATE = Command(
    name="replicate",
    summary="replicate a live SQLite database to S3 or a directory, continuously",
    details=f"""\
Run it beside whatever writes to DB: the engine's embedded archive, or anybody's database. It never
writes to DB itself. If DB is missing, the newest point is restored first. Ends at SIGTERM, with
everything delivered that the time allowed; what is left waits in the state directory.

{_CODES}""",
    example="sync-engine replicate ./data/archive.db s3://backups/archive\n"
    "sync-engine replicate app.db /mnt/replica --interval 500ms --no-lease",
    arguments=_arguments,
    run=_replicate,
)
