"""``watch``: the files of directories to S3, as they are finished."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from sync_engine.cli.command import Command, ExitCode, UsageError, seconds
from sync_engine.cli.context import Context
from sync_engine.cli.output import count, duration, size
from sync_engine.cli.signals import Interrupted
from sync_engine.runtime import SystemRuntime
from sync_engine.s3 import S3Address, S3Settings
from sync_engine.sources.file_watch import IGNORED, FindPolicy, Mode
from sync_engine.transfer import After, FilesToS3, Overwrite, Progress, TransferSettings

__all__ = ["WATCH"]

_LOOK_S = 0.2
_LINE_S = 5.0
_STOP_S = 60.0
_SHOWN_MAX = 10
_GIVE_UP_S = 300.0
_DEADLINE_S = 30.0
_DEFAULTS = TransferSettings()


def _arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("paths", nargs="+", metavar="DIR|URL", help="directories, then s3://bucket/prefix")
    add("--once", action="store_true", help="upload what is there, then end")
    add(
        "--give-up-after", type=seconds, default=_GIVE_UP_S, metavar="TIME",
        help="with --once: end with an error where the server fails for so long (default: 5m)",
    )  # fmt: skip
    add("--dry-run", action="store_true", help="tell what would be done, and do nothing")
    add("--ledger", type=Path, metavar="FILE", help="default: DATA_DIR/watch.db")
    group = parser.add_argument_group("files")
    add = group.add_argument
    add("--mode", choices=Mode.ALL, default=Mode.ADDED_ONLY, help="default: %(default)s")
    add("--include", action="append", default=[], metavar="GLOB", help="only these; repeatable")
    add(
        "--exclude", action="append", default=[], metavar="GLOB",
        help=f"not these; beside {' '.join(IGNORED)}; repeatable",
    )  # fmt: skip
    add("--all-names", action="store_true", help="hidden and temporary names, too")
    add(
        "--backend", choices=("auto", "inotify", "watchdog", "poll"), default="auto",
        help="who tells of changes (default: %(default)s)",
    )  # fmt: skip
    find = _DEFAULTS.find
    add("--settle", type=seconds, default=find.settle_s, metavar="TIME",
        help="a file that nobody was seen to close must rest so long (default: 2s)")  # fmt: skip
    add("--rescan", type=seconds, default=find.rescan_s, metavar="TIME",
        help="look at everything so often (default: 30s)")  # fmt: skip
    add("--max-delete", type=float, default=find.max_delete, metavar="SHARE",
        help="with mirror: more files that vanish at once are a fault (default: 0.5)")  # fmt: skip
    group = parser.add_argument_group("after the upload")
    add = group.add_argument
    choice = group.add_mutually_exclusive_group()
    choice.add_argument("--delete-after-upload", action="store_true",
                        help="delete a file that the server has, whole")  # fmt: skip
    choice.add_argument("--move-to", type=Path, metavar="DIR", help="move it there instead")
    add("--prune", action="store_true", help="remove directories that are empty then")
    group = parser.add_argument_group("objects")
    add = group.add_argument
    add("--key-template", metavar="TEXT", help="default: {path}; with several DIR {root}/{path}")
    add("--overwrite", choices=Overwrite.ALL, default=Overwrite.REPLACE,
        help="where an object of another is there (default: %(default)s)")  # fmt: skip
    add("--storage-class", metavar="NAME", help="such as STANDARD_IA")
    add("--sse", choices=("AES256", "aws:kms"), help="encryption at rest")
    add("--sse-key-id", metavar="ID", help="key for aws:kms")
    add("--verify", choices=("head", "get"), default="head",
        help="ask for size and digest, or read the object back (default: %(default)s)")  # fmt: skip
    group = parser.add_argument_group("server")
    add = group.add_argument
    add("--endpoint-url", metavar="URL", help="another S3 than AWS")
    add("--region", metavar="NAME")
    add("--profile", metavar="NAME", help="of the AWS configuration files")
    add("--concurrency", type=int, default=_DEFAULTS.concurrency, metavar="N",
        help="uploads at a time (default: %(default)s)")  # fmt: skip
    add("--abort-foreign-uploads", action="store_true",
        help="abort what others began to upload in parts below the prefix a day ago")  # fmt: skip
    add("--part-size", type=int, default=_DEFAULTS.part_bytes >> 20, metavar="MIB",
        help="of larger files, in MiB (default: %(default)s)")  # fmt: skip


def _run(context: Context) -> int:
    args = context.args
    *names, url = args.paths
    if not names or "://" not in url:
        raise UsageError("name one or more directories, then s3://bucket/prefix")
    settings = _settings(args)
    address, s3 = _server(args, url, settings.concurrency)
    ledger = args.ledger or context.config.data_dir / "watch.db"
    runtime = SystemRuntime("watch")
    program = FilesToS3([Path(name) for name in names], address, s3, ledger, settings, runtime)
    if args.dry_run:
        return _plan(context, program)
    return _watch(context, program, runtime)


def _settings(args: argparse.Namespace) -> TransferSettings:
    after = After.KEEP
    if args.delete_after_upload:
        after = After.DELETE
    elif args.move_to is not None:
        after = After.MOVE
    exclude = () if args.all_names else IGNORED
    find = FindPolicy(
        mode=args.mode, settle_s=args.settle, rescan_s=args.rescan, max_delete=args.max_delete
    )
    return TransferSettings(
        find=find,
        include=tuple(args.include),
        exclude=(*exclude, *args.exclude),
        backend=args.backend,
        key_template=args.key_template,
        overwrite=args.overwrite,
        after=after,
        move_to=args.move_to,
        prune=args.prune,
        concurrency=args.concurrency,
        part_bytes=args.part_size << 20,
        storage_class=args.storage_class,
        sse=args.sse,
        sse_key_id=args.sse_key_id,
        verify=args.verify,
        abort_foreign=args.abort_foreign_uploads,
    )


def _server(args: argparse.Namespace, url: str, threads: int) -> tuple[S3Address, S3Settings]:
    deadline_s = min(_DEADLINE_S, args.give_up_after) if args.once else _DEADLINE_S
    address, s3 = S3Settings.from_url(url, deadline_s=deadline_s, connections_max=threads + 2)
    given = {
        "endpoint_url": args.endpoint_url,
        "region": args.region,
        "profile": args.profile,
    }
    return address, replace(s3, **{name: value for name, value in given.items() if value})


def _plan(context: Context, program: FilesToS3) -> int:
    output = context.output
    files = total = parked = 0
    for planned in program.plan():
        files += planned.action == "upload"
        parked += planned.action == "park"
        total += planned.size
        if output.json:
            output.line(asdict(planned))
        else:
            what = planned.key if planned.action != "park" else planned.reason
            output.text(f"{planned.action:<6} {planned.size:>14,}  {planned.path}  {what}")
    if not output.json:
        output.report(f"{count(files, 'file')} to upload, {size(total)}; nothing was done")
    return ExitCode.PARTLY if parked else ExitCode.OK


class _Reporter:
    """Shows progress: a line that changes on a terminal, JSON lines elsewhere."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._output = context.output
        self._clock = context.clock
        self._began = self._line_at = context.clock.monotonic()
        self._before: Progress | None = None
        self._shown = (-1, -1)
        self._told: set[str] = set()
        self._terminal = self._output.err.is_terminal and not self._output.json

    def look(self, progress: Progress) -> None:
        """Tell of errors at once, of the rest now and then."""
        for error in progress.errors:
            if error not in self._told:
                self._told.add(error)
                self._output.warn(error)
        now = self._clock.monotonic()
        if now - self._line_at < (_LOOK_S if self._terminal else _LINE_S):
            return
        seconds_ = now - self._line_at
        before = self._before or progress
        rate = (progress.uploaded - before.uploaded) / seconds_
        speed = (progress.uploaded_bytes - before.uploaded_bytes) / seconds_
        self._before, self._line_at = progress, now
        if self._terminal:
            self._bar(progress, rate, speed)
        elif (progress.uploaded, progress.open) != self._shown and not self._output.quiet:
            self._shown = (progress.uploaded, progress.open)
            self._output.line(self._fields("progress", progress) | {"files_s": round(rate, 1)})
            self._output.flush()

    def _bar(self, progress: Progress, rate: float, speed: float) -> None:
        if self._output.quiet:
            return
        parts = [
            f"{progress.uploaded:,} uploaded",
            f"{progress.open:,} waiting",
            f"{rate:,.0f} files/s",
            f"{size(speed)}/s",
        ]
        if progress.removed:
            parts.insert(1, f"{progress.removed:,} removed")
        if progress.parked:
            parts.append(f"{progress.parked:,} parked")
        self._output.err.file.write(f"\r\x1b[2K{'   '.join(parts)}")
        self._output.err.file.flush()

    def end(self, progress: Progress) -> None:
        """Tell the sums."""
        took_s = self._clock.monotonic() - self._began
        if self._terminal and not self._output.quiet:
            self._output.err.file.write("\r\x1b[2K")
        for path, reason in progress.problems[-_SHOWN_MAX:]:
            self._output.warn(f"{path}: {reason}")
        if self._output.json or not self._output.out.is_terminal:
            if not self._output.quiet or self._output.json:
                fields = self._fields("end", progress)
                self._output.line(fields | {"seconds": round(took_s, 3)})
            return
        uploaded = f"{count(progress.uploaded, 'file')} uploaded, {size(progress.uploaded_bytes)}"
        others = [
            f"{number:,} {name}"
            for name, number in (
                ("removed here", progress.removed),
                ("deleted there", progress.deleted),
                ("left alone", progress.ignored),
                ("parked", progress.parked),
                ("still to do", progress.open),
            )
            if number
        ]
        self._output.report(", ".join([uploaded, *others]) + f" in {duration(took_s)}")

    def _fields(self, event: str, progress: Progress) -> dict[str, Any]:
        shown: Mapping[str, Any] = asdict(progress)
        return {"event": event, **{n: v for n, v in shown.items() if n != "idle"}}


def _watch(context: Context, program: FilesToS3, runtime: SystemRuntime) -> int:
    once, give_up_s = context.args.once, context.args.give_up_after
    gave_up = False
    reporter = _Reporter(context)
    interrupted: Interrupted | None = None
    try:
        program.start()
        while True:
            context.clock.sleep(_LOOK_S)
            if not program.started:
                continue
            progress = program.progress()
            reporter.look(progress)
            gave_up = once and progress.open > 0 and progress.stalled_s >= give_up_s
            if gave_up or (once and (progress.idle or _stuck(progress))):
                break
    except Interrupted as exc:
        interrupted = exc
    finally:
        with suppress(Interrupted):
            program.stop(0.0 if gave_up else _STOP_S)
        runtime.close(1.0)
    if not program.started:
        if interrupted is not None:
            raise interrupted
        return ExitCode.FAILED
    progress = program.progress()
    reporter.end(progress)
    if interrupted is not None:
        raise interrupted
    if gave_up:
        context.output.warn(
            f"the server failed for {duration(progress.stalled_s)}: {count(progress.open, 'file')} "
            "still to do; run it again later, or allow more time with --give-up-after"
        )
        return ExitCode.UNAVAILABLE
    if progress.open and progress.errors:
        return ExitCode.UNAVAILABLE
    return ExitCode.PARTLY if progress.parked or progress.open else ExitCode.OK


def _stuck(progress: Progress) -> bool:
    """Tell whether what is left waits for people."""
    return progress.scans == 0 and bool(progress.errors)


WATCH = Command(
    name="watch",
    summary="upload the files of directories to S3 as they are finished",
    details="""\
A ledger remembers every step of every file: a run that was killed goes on where it was, uploads
nothing twice and forgets nothing. A file is taken when its writer has closed it or moved it into
place, or when it rests. With --delete-after-upload it is deleted only after the server was asked
and has it whole, and only if it is still the file that was uploaded.

Mode added-only takes each file once: changes and renames later are ignored. Mode mirror follows
changes and deletions. SIGTERM and SIGINT let the uploads under way end, and report. Credentials
come from the usual chain (AWS_ACCESS_KEY_ID ..., profile, instance). Exit code 3: files were
parked; `--json` names them and says why. Exit code 4: the server failed for longer than
--give-up-after, or a directory could not be read, and files are left to do.""",
    example="""\
sync-engine watch ./out s3://bucket/prefix --delete-after-upload
sync-engine watch ./out s3://bucket/prefix --once --include '*.csv' --dry-run
sync-engine watch ./out s3://bucket/prefix --mode mirror --endpoint-url http://localhost:9000""",
    arguments=_arguments,
    run=_run,
)
