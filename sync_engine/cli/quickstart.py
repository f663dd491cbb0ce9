"""``quickstart``: real files, a real kill, and what became of them in each tier."""

from __future__ import annotations

import argparse
import secrets
import shlex
import tempfile
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import sync_engine
from sync_engine.cli.command import Command, ExitCode, UsageError
from sync_engine.cli.context import Context
from sync_engine.cli.files import FileEntry, Walk
from sync_engine.cli.output import count, duration, shown, size
from sync_engine.cli.quickstart_run import (
    Reading,
    Recovered,
    Written,
    absent_reads,
    look_into_log,
    read_back,
    write_and_kill,
)
from sync_engine.config import SyncEngineConfig
from sync_engine.core.results import FlushReport
from sync_engine.engine import SyncEngine

__all__ = ["QUICKSTART"]

_LEFT_OUT = (
    ".git", ".hg", ".svn", "__pycache__", "*.pyc", ".venv", "venv", "env", ".env", "node_modules",
    ".tox", ".nox", ".*_cache", ".cache", ".hypothesis", ".eggs", "*.egg-info", "sync-engine-data",
    "*.log.db*", "*.log.head", "*.log.lock",
)  # fmt: skip
_FILES_MAX, _BYTES_MAX = 5000, 256 << 20


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dir", metavar="DIR", nargs="?", help="files to write (default: here)")
    parser.add_argument(
        "--limit",
        type=int,
        default=_FILES_MAX,
        metavar="N",
        help=f"at most so many files (default: {_FILES_MAX}), and 256 MiB",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Results:
    """All that was measured."""

    root: Path
    config: SyncEngineConfig
    prefix: str
    written: Written
    recovered: Recovered
    opened_s: float
    readings: tuple[Reading, ...]
    flushed: FlushReport
    denied: tuple[int, float]
    archived: int
    stats: dict[str, Any]
    skipped: int


def _run(context: Context) -> int:
    output, args, clock = context.output, context.args, context.clock
    if args.limit < 1:
        raise UsageError("--limit must be 1 or more")
    config, prefix = _configure(context)
    root, files, skipped = _choose(args.dir, config, args.limit)
    output.note(
        f"{root}: {count(len(files), 'file')}; {count(skipped, 'entry', 'entries')} left out"
    )
    if len(files) == args.limit or sum(file.size for file in files) > _BYTES_MAX - (1 << 20):
        output.note("there may be more: it stops at --limit files, or 256 MiB")
    with output.progress("writing", len(files)) as advance:
        written = write_and_kill(config, files, prefix, clock, advance)
    recovered = look_into_log(config, clock)
    started = clock.monotonic()
    engine = SyncEngine(config).start()
    opened_s = clock.monotonic() - started
    try:
        first = read_back(engine, written, clock)
        flushed = engine.flush()
        later = [read_back(engine, written, clock) for _ in range(2)]
        results = _Results(
            root=root,
            config=config,
            prefix=prefix,
            written=written,
            recovered=recovered,
            opened_s=opened_s,
            readings=(first, *later),
            flushed=flushed,
            denied=absent_reads(engine, list(written.acked), clock),
            archived=engine.count_prefix(prefix),
            stats=engine.stats(),
            skipped=skipped,
        )
    finally:
        with context.stop.deferred():
            engine.close()
    whole = _whole(results)
    if output.json:
        output.document(_document(results, whole=whole))
    else:
        _print(context, results, whole=whole)
    return ExitCode.OK if whole else ExitCode.FAILED


def _configure(context: Context) -> tuple[SyncEngineConfig, str]:
    """Return settings and a prefix of ids that leave everybody else's data alone."""
    config = context.config
    settings = dict(context.settings)
    prefix = ""
    if "data_dir" not in settings:
        settings["data_dir"] = tempfile.mkdtemp(prefix="sync-engine-quickstart-")
    if config.sql_url is not None:
        prefix = f"quickstart-{secrets.token_hex(3)}/"
    elif config.redis_url is not None and "redis_prefix" not in settings:
        settings["redis_prefix"] = f"quickstart-{secrets.token_hex(3)}"
    return SyncEngineConfig.load(context.args.config, **settings), prefix


def _choose(
    folder: str | None, config: SyncEngineConfig, limit: int
) -> tuple[Path, list[FileEntry], int]:
    """Return the files to write: of the directory, or the package's own where there are none."""
    roots = [Path(folder)] if folder else [Path.cwd(), Path(sync_engine.__file__).parent]
    if folder and not roots[0].is_dir():
        raise UsageError(f"{folder}: no such directory")
    for root in roots:
        walk = Walk((*_LEFT_OUT, *_environments(root)), config.data_dir)
        files: list[FileEntry] = []
        large, total = 0, 0
        for file in walk.files([str(root)]):
            if file.size > config.max_payload_bytes or total + file.size > _BYTES_MAX:
                large += 1
                continue
            files.append(file)
            total += file.size
            if len(files) == limit:
                break
        if files:
            return root, files, walk.skipped + large
    raise UsageError(f"{roots[0]} holds no files", "name another directory")


def _environments(root: Path) -> list[str]:
    """Return virtual environments right below a directory, whatever they are called."""
    return [path.parent.name for path in root.glob("*/pyvenv.cfg")]


def _whole(results: _Results) -> bool:
    asked = len(results.written.acked)
    return (
        asked > 0
        and results.written.status == -9
        and all(reading.verified == asked for reading in results.readings)
        and not results.flushed.left
        and results.archived >= asked
    )


def _document(results: _Results, *, whole: bool) -> dict[str, Any]:
    written, recovered = results.written, results.recovered
    first, second, third = results.readings
    return {
        "complete": whole,
        "directory": results.root,
        "data_dir": results.config.data_dir,
        "files": len(written.acked),
        "bytes": written.bytes,
        "skipped": results.skipped,
        "errors": written.errors,
        "write_seconds": written.seconds,
        "killed": {"pid": written.pid, "signal": -written.status},
        "log": recovered,
        "reopen_seconds": results.opened_s,
        "read_after_kill": first,
        "flush": results.flushed,
        "read_after_flush": second,
        "read_again": third,
        "absent_denied": results.denied[0],
        "absent_seconds": results.denied[1],
        "archived": results.archived,
        "stats": results.stats,
    }


def _print(context: Context, results: _Results, *, whole: bool) -> None:
    output, written = context.output, results.written
    output.table(
        "What happened", ("", "items", "bytes", "time", ""), _steps(results), right=(1, 2, 3)
    )
    output.table("Where it is now", ("tier", "items", "bytes", ""), _tiers(results), right=(1, 2))
    for id, reason in islice(written.errors.items(), 5):
        output.warn(f"not taken: {id}: {reason}")
    for name, reading in zip(("after the kill", "later", "at last"), results.readings, strict=True):
        for kind, ids in (("missing", reading.missing), ("damaged", reading.damaged)):
            if ids:
                output.error(f"{count(len(ids), 'file')} {kind} {name}: {shown(ids[0])} ...")
    if not whole:
        output.error("not everything came back, or not everything was archived")
        return
    told = f"All {len(written.acked):,} files came back from a killed process, byte for byte."
    output.report(told, "bold green")
    _next_steps(context, results)


def _steps(results: _Results) -> list[tuple[str, str, str, str, str]]:
    written, recovered = results.written, results.recovered
    first, second, third = results.readings
    durability = f"durability {results.config.durability.value}"
    rate = len(written.acked) / written.seconds if written.seconds else 0.0
    denied, denied_s = results.denied
    return [
        (
            "written by another process",
            f"{len(written.acked):,}",
            size(written.bytes),
            duration(written.seconds),
            f"{rate:,.0f} acknowledged/s, {durability}",
        ),
        (
            "killed",
            "",
            "",
            "",
            f"process {written.pid}, signal {-written.status}, last ack just in",
        ),
        (
            "found in its log",
            f"{recovered.unarchived:,}",
            size(recovered.bytes),
            duration(recovered.seconds),
            f"above the archive's cursor, of {recovered.positions:,} positions",
        ),
        ("engine reopened", "", "", duration(results.opened_s), "reads and writes from here on"),
        _reading("read back, SHA-256 verified", first),
        (
            "flushed",
            "",
            "",
            duration(results.flushed.seconds),
            "everything archived" if results.flushed.complete else "not everything delivered",
        ),
        _reading("read again", second),
        _reading("and again", third),
        (
            "asked for absent ids",
            f"{denied:,}",
            "",
            duration(denied_s),
            "denied by the filter, no server asked" if denied else "filter not warm yet",
        ),
    ]


def _reading(what: str, reading: Reading) -> tuple[str, str, str, str, str]:
    verified = reading.verified
    each = duration(reading.seconds / verified) if verified else "-"
    tiers = ", ".join(f"{tier} {n:,}" for tier, n in reading.by_tier.items())
    told = f"{each} each; from {tiers}"
    return (what, f"{verified:,}", size(reading.bytes), duration(reading.seconds), told)


def _tiers(results: _Results) -> list[tuple[str, str, str, str]]:
    stats, config = results.stats, results.config
    log, near, filters = stats["log"], stats["l1"], stats["filter"]
    rows = [
        (
            "overlay",
            f"{log['overlay_items']:,}",
            size(log["memory_bytes"]),
            "newest changes still on their way",
        ),
        (
            "L1 memory",
            f"{near.items:,}",
            size(near.bytes),
            f"of {size(near.bytes_max)}; {near.hits:,} hits, {near.misses:,} misses, {near.policy}",
        ),
    ]
    if stats["l2"] is not None:
        rows.append(("L2 Redis", "", "", f"cursor at {stats['cursors'].get('l2', 0):,}"))
    trusted = "trusted" if filters["trusted"] else "warming: says maybe"
    rows += [
        ("filter", f"{filters['count']:,.0f}", size(filters["size_bytes"]), trusted),
        (
            "L3 archive",
            f"{results.archived:,}",
            _archive_size(config),
            f"cursor at {stats['cursors']['l3']:,}; {stats['l3']['corrupt']:,.0f} corrupt",
        ),
        (
            "log",
            f"{log['pending_items']:,}",
            size(log["file_bytes"]),
            f"waiting; {log['synced']:,} of {log['head']:,} fsynced, {log['dead_letters']:,} dead",
        ),
    ]
    return rows


def _archive_size(config: SyncEngineConfig) -> str:
    path = Path(config.data_dir) / "archive.db"
    if config.sql_url is not None or not path.exists():
        return ""
    parts = (path, path.with_name("archive.db-wal"))
    return size(sum(part.stat().st_size for part in parts if part.exists()))


def _next_steps(context: Context, results: _Results) -> None:
    first = next(iter(results.written.acked))
    options = f"--data-dir {shlex.quote(str(results.config.data_dir))}"
    for name in ("config", "sql_url"):
        value = getattr(context.args, name)
        options += "" if value is None else f" --{name.replace('_', '-')} ..."
    context.output.report("")
    context.output.report("Next:", "bold cyan")
    for command in (
        f"sync-engine {options} get {shlex.quote(first)}",
        f"sync-engine {options} scan {shlex.quote(results.prefix)} --limit 10"
        if results.prefix
        else f"sync-engine {options} scan --limit 10",
        f"sync-engine {options} status {shlex.quote(first)}",
        f"sync-engine {options} doctor",
        "sync-engine --help",
    ):
        context.output.report(f"  {command}")
    context.output.note(f"the data stays in {results.config.data_dir}")


QUICKSTART = Command(
    name="quickstart",
    summary="write real files, kill the writer, read everything back",
    details="""\
Writes the files of DIR (default: the current directory; where that has none, those of this
package) from a process of its own, which is killed (SIGKILL) at its last acknowledgement. Then
reopens its log here, reads every file back, compares SHA-256, and tells what each tier holds.
Version control, caches and virtual environments are left out. Data goes to a temporary directory
unless --data-dir is given. Needs no server; uses those that are configured. Exit code 1 if anything
is missing.""",
    example="""\
sync-engine quickstart
sync-engine quickstart ./docs --data-dir ./data""",
    arguments=_arguments,
    run=_run,
)
