"""``ingest``: files, directories and JSON lines, with honest counts."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from sync_engine.cli.command import Command, ExitCode, UsageError, add_write_options
from sync_engine.cli.context import Context
from sync_engine.cli.files import FileEntry, Walk, read_whole, standard_input
from sync_engine.cli.output import Advance, count, duration, size
from sync_engine.cli.signals import Interrupted
from sync_engine.core.item import ContentType, SyncItem
from sync_engine.engine import SyncEngine
from sync_engine.errors import Backpressure, SyncEngineError

__all__ = ["INGEST"]

_GROUP_ITEMS, _GROUP_BYTES = 500, 4 << 20
_ERRORS_SHOWN, _ERRORS_KEPT = 10, 1000
_PATIENCE_S = 60.0


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "paths", nargs="+", metavar="PATH", help="file or directory; - is standard input"
    )
    parser.add_argument("--prefix", default="", help="begins every id")
    parser.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="GLOB",
        help="leave out files and directories of this name or relative path; may be repeated",
    )
    parser.add_argument(
        "--jsonl", action="store_true", help="each line of the files is an item, a JSON object"
    )
    parser.add_argument(
        "--id-field", default="id", metavar="NAME", help="with --jsonl: holds the id (default: id)"
    )
    add_write_options(parser)


class _Ingestion:
    """Groups items, submits them, counts what became of each."""

    def __init__(self, context: Context, engine: SyncEngine, advance: Advance) -> None:
        self._context = context
        self._engine = engine
        self._advance = advance
        self._options = context.options()
        self._group: list[SyncItem] = []
        self._group_bytes = 0
        self.accepted = 0
        self.refused = 0
        self.bytes = 0
        self.errors: list[dict[str, str]] = []

    def take(self, item: SyncItem) -> None:
        """Take one item; it is submitted with its group."""
        self._group.append(item)
        self._group_bytes += len(item.content)
        if len(self._group) >= _GROUP_ITEMS or self._group_bytes >= _GROUP_BYTES:
            self.submit()

    def refuse(self, id: str, reason: str) -> None:
        """Count an item that cannot be taken, and say why."""
        self.refused += 1
        if self.refused <= _ERRORS_SHOWN:
            self._context.output.warn(f"refused {id}: {reason}")
        if len(self.errors) < _ERRORS_KEPT:
            self.errors.append({"id": id, "error": reason})

    def submit(self) -> None:
        """Submit the group; wait while the archive does not keep up, as long as it moves."""
        group, self._group, self._group_bytes = self._group, [], 0
        until = self._context.clock.monotonic() + _PATIENCE_S
        wait_s: float | None = 0.0
        while group and wait_s is not None:
            self._context.clock.sleep(wait_s)
            with self._context.stop.deferred():
                try:
                    self._submit(group)
                    wait_s = None
                except Backpressure as exc:
                    if self._context.clock.monotonic() > until:
                        raise
                    wait_s = exc.retry_after_s

    def _submit(self, group: list[SyncItem]) -> None:
        result = self._engine.submit_many(group, self._options)
        for place, item in enumerate(group):
            if place in result.versions:
                self.accepted += 1
                self.bytes += len(item.content)
                self._advance(1, len(item.content))
            else:
                self.refuse(item.id, str(result.errors[place]))


def _run(context: Context) -> int:
    args, output = context.args, context.output
    for path in args.paths:
        if path != "-" and not Path(path).exists():
            raise UsageError(f"{path}: no such file or directory")
    walk = Walk(args.exclude, context.config.data_dir)
    interrupted: Interrupted | None = None
    with context.writing() as engine, output.progress("ingesting") as advance:
        work = _Ingestion(context, engine, advance)
        started = context.clock.monotonic()
        try:
            (_take_lines if args.jsonl else _take_files)(context, work, walk)
            work.submit()
        except Interrupted as exc:
            interrupted = exc
        except SyncEngineError:
            _report(context, work, walk, context.clock.monotonic() - started)
            raise
        seconds = context.clock.monotonic() - started
    _report(context, work, walk, seconds)
    if interrupted is not None:
        raise interrupted
    if not work.refused:
        return ExitCode.OK
    return ExitCode.PARTLY if work.accepted else ExitCode.FAILED


def _take_files(context: Context, work: _Ingestion, walk: Walk) -> None:
    args, bytes_max = context.args, context.config.max_payload_bytes
    seen: set[str] | None = set() if len(args.paths) > 1 or "-" in args.paths else None
    for entry in walk.files(_named(args.paths)):
        _tell_unreadable(work, walk)
        id = args.prefix + entry.id
        if seen is not None:
            if id in seen:
                work.refuse(id, f"{entry.path}: another file has the same id; use --prefix")
                continue
            seen.add(id)
        _take_file(work, entry, id, bytes_max)
    _tell_unreadable(work, walk)


def _named(paths: list[str]) -> Iterator[str]:
    for path in paths:
        if path == "-":
            for line in standard_input():
                if line.strip():
                    yield os.fsdecode(line.rstrip(b"\n"))
        else:
            yield path


def _tell_unreadable(work: _Ingestion, walk: Walk) -> None:
    for path, reason in walk.unreadable:
        work.refuse(path, reason)
    walk.unreadable.clear()


def _take_file(work: _Ingestion, entry: FileEntry, id: str, bytes_max: int) -> None:
    try:
        content = read_whole(entry.path, bytes_max)
    except OSError as exc:
        work.refuse(id, exc.strerror or str(exc))
    except UsageError as exc:
        work.refuse(id, str(exc))
    else:
        work.take(SyncItem(id, content))


def _take_lines(context: Context, work: _Ingestion, walk: Walk) -> None:
    bytes_max = context.config.max_payload_bytes
    for path in context.args.paths:
        for name, file in _opened(path, walk):
            with file as lines:
                _take_lines_of(context, work, lines, name, bytes_max)
    _tell_unreadable(work, walk)


def _opened(path: str, walk: Walk) -> Iterator[tuple[str, _Stream]]:
    if path == "-":
        yield "standard input", _Stream(standard_input(), close=False)
        return
    for entry in walk.files([path]):
        try:
            file = entry.path.open("rb")
        except OSError as exc:
            walk.unreadable.append((str(entry.path), exc.strerror or str(exc)))
        else:
            yield str(entry.path), _Stream(file, close=True)


class _Stream:
    """A binary file, closed at the end unless it is standard input."""

    def __init__(self, file: IO[bytes], *, close: bool) -> None:
        self._file = file
        self._close = close

    def __enter__(self) -> IO[bytes]:
        return self._file

    def __exit__(self, *exc: object) -> None:
        if self._close:
            self._file.close()


def _take_lines_of(
    context: Context, work: _Ingestion, lines: IO[bytes], name: str, bytes_max: int
) -> None:
    number = 0
    while line := lines.readline(bytes_max + 2):
        number += 1
        place = f"{name}, line {number}"
        content = line.rstrip(b"\r\n")
        if len(content) > bytes_max:
            while line and not line.endswith(b"\n"):
                line = lines.readline(1 << 20)  # the rest of it
            work.refuse(place, f"has more than max_payload_bytes ({bytes_max:,})")
        elif content.strip():
            try:
                id = context.args.prefix + _id_of(content, context.args.id_field)
            except ValueError as exc:
                work.refuse(place, str(exc))
            else:
                work.take(SyncItem(id, content, ContentType.JSON))


def _id_of(line: bytes, field: str) -> str:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as exc:
        raise ValueError(f"not JSON: {exc}") from None
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")  # noqa: TRY004 - a fault of the data
    id = value.get(field)
    if type(id) in {str, int}:
        return str(id)
    raise ValueError(f"has no text or whole number in field {field!r}; see --id-field")


def _report(context: Context, work: _Ingestion, walk: Walk, seconds: float) -> None:
    output, rate = context.output, work.accepted / seconds if seconds else 0.0
    left = {} if context.closed is None else dict(context.closed.left)
    if output.json:
        output.document(
            {
                "accepted": work.accepted,
                "refused": work.refused,
                "skipped": walk.skipped,
                "bytes": work.bytes,
                "seconds": round(seconds, 6),
                "items_per_s": round(rate, 1),
                "errors": work.errors,
                "left": left,
            }
        )
        return
    if work.refused > _ERRORS_SHOWN:
        output.warn(f"{work.refused - _ERRORS_SHOWN:,} more were refused; --json lists them")
    speed = f"{rate:,.0f} items/s, {size(work.bytes / seconds if seconds else 0)}/s"
    told = f"{count(work.accepted, 'item')} ({size(work.bytes)}) acknowledged"
    told += f" in {duration(seconds)}: {speed}"
    told += f"; {work.refused:,} refused" if work.refused else ""
    told += f"; {walk.skipped:,} skipped" if walk.skipped else ""
    output.report(told)
    if context.closed is not None and context.closed.complete:
        output.note("all of it is archived")


INGEST = Command(
    name="ingest",
    summary="write files, directories and JSON lines",
    details="""\
An item's id is its path relative to the directory given, with / between names. Symbolic links and
special files are skipped. With --jsonl, an item's content is its line, byte by byte. Standard input
(-) holds JSON lines with --jsonl, else the names of files, one a line.""",
    example="""\
sync-engine ingest ./docs --prefix docs/
sync-engine ingest --jsonl users.jsonl --id-field email
git ls-files | sync-engine ingest -""",
    arguments=_arguments,
    run=_run,
)
