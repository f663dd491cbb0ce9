"""What is printed: tables, JSON, progress; colour and bars only on a terminal."""

from __future__ import annotations

import base64
import enum
import json
import logging
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import PurePath
from typing import Any, Protocol

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table
from rich.text import Text

from sync_engine.core.item import SyncItem
from sync_engine.telemetry import redact

__all__ = ["Advance", "Output", "count", "duration", "item_fields", "plain", "shown", "size"]

_WIDTH = 1000  # where there is no terminal, nothing is wrapped
_ASIDE = {"upkeep_failed"}  # another engine is the sole writer: nothing that a command needs
_NARROW = 30  # columns up to this are never wrapped, and others not below it
_STYLES = {"yes": "green", "no": "dim", "ok": "green", "note": "cyan", "warning": "yellow"}
_STYLES |= {"error": "bold red", "up": "green", "down": "bold red"}


class Advance(Protocol):
    """Tells a progress bar that something was done."""

    def __call__(self, items: int = 1, bytes: int = 0) -> None: ...  # noqa: D102


class Output:
    """Prints for one run of one command.

    Args:
        json: JSON in place of tables.
        quiet: No reports, only data and errors.
        verbose: 0, 1 (log lines) or 2 (debugging).
        color: Whether colour is allowed where there is a terminal.
    """

    def __init__(self, *, json: bool, quiet: bool, verbose: int, color: bool) -> None:
        self.json = json
        self.quiet = quiet
        self.verbose = verbose
        self.out = _console(sys.stdout, color=color)
        self.err = _console(sys.stderr, color=color)

    # -- data -------------------------------------------------------------------------------------

    def document(self, value: object) -> None:
        """Print the one JSON document of a command."""
        self._write(_json(value, indent=2))

    def line(self, value: object) -> None:
        """Print one JSON line of many."""
        self._write(_json(value, separators=(",", ":")))

    def _write(self, text: str) -> None:
        sys.stdout.write(f"{text}\n")

    def flush(self) -> None:
        """Hand over what was printed: for commands that wait for more."""
        sys.stdout.flush()

    def bytes(self, data: bytes) -> None:
        """Print raw bytes, nothing else."""
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()

    def text(self, line: str) -> None:
        """Print one line of data; never wrapped, control characters escaped."""
        self._write(shown(line))

    # -- reports ----------------------------------------------------------------------------------

    def report(self, line: str, style: str = "") -> None:
        """Print one line about what was done, unless quiet or in JSON."""
        if not self.quiet and not self.json:
            self.out.print(Text(shown(line), style), soft_wrap=True)

    def fields(self, title: str, fields: Mapping[str, object]) -> None:
        """Print names and values."""
        self.table(title, ("", ""), [(name, str(value)) for name, value in fields.items()])

    def table(
        self,
        title: str,
        columns: Sequence[str],
        rows: Sequence[Sequence[str]],
        *,
        right: Sequence[int] = (),
        wrap: Sequence[int] = (),
    ) -> None:
        """Print a table.

        Args:
            title: Above it; may be empty.
            columns: Headings; all empty for none.
            rows: Cells as text.
            right: Columns set flush right.
            wrap: Columns whose cells may take several lines.
        """
        table = Table(
            box=box.SIMPLE_HEAD,
            show_header=any(columns),
            show_edge=False,
            header_style="bold",
            pad_edge=False,
            padding=(0, 2, 0, 0),
        )
        for place, name in enumerate(columns):
            cells = [len(row[place]) for row in rows]
            width = max([len(name), *cells])
            table.add_column(
                name,
                justify="right" if place in right else "left",
                overflow="fold",
                no_wrap=width <= _NARROW and place not in wrap,
                min_width=min(width, _NARROW) if place in wrap else None,
                style="bold" if not any(columns) and place == 0 else None,
            )
        for row in rows:
            table.add_row(*[Text(shown(cell), _STYLES.get(cell, "")) for cell in row])
        if title:
            self.out.print(Text(title, "bold cyan"))
        if self.out.is_terminal:
            self.out.print(table)
        else:
            with self.out.capture() as capture:
                self.out.print(table)
            self._write("\n".join(line.rstrip() for line in capture.get().splitlines()))
        self.out.print()

    # -- remarks ----------------------------------------------------------------------------------

    def note(self, text: str) -> None:
        """Say something on the side, unless quiet."""
        if not self.quiet:
            self.err.print(Text(shown(redact(text)), "dim"), soft_wrap=True)

    def warn(self, text: str) -> None:
        """Warn; also when quiet."""
        self._remark("warning", "yellow", text)

    def error(self, text: str, hint: str = "") -> None:
        """Tell what went wrong and what to do."""
        first, *others = text.splitlines() or [""]
        self._remark("error", "bold red", first)
        for other in others:
            self.err.print(Text(f"  {shown(redact(other))}"), soft_wrap=True)
        if hint:
            self._remark("hint", "cyan", hint)

    def _remark(self, word: str, style: str, text: str) -> None:
        line = Text.assemble((f"{word}:", style), " ", shown(redact(text)))
        self.err.print(line, soft_wrap=True)

    @contextmanager
    def progress(self, what: str, total: int | None = None) -> Iterator[Advance]:
        """Show a bar on a terminal while something is done, items and bytes counted.

        Args:
            what: In a few words.
            total: Items there will be; None where nobody knows.
        """
        if self.quiet or self.json or not self.err.is_terminal:
            yield lambda items=1, bytes=0: None
            return
        bar = BarColumn(bar_width=28)
        columns = [SpinnerColumn(), TextColumn("{task.description}"), bar]
        counts = TextColumn("{task.completed:,.0f} items  {task.fields[seen]}")
        shown_bytes = 0
        with Progress(*columns, counts, console=self.err, transient=True) as progress:
            task = progress.add_task(what, total=total, seen="")

            def advance(items: int = 1, bytes: int = 0) -> None:
                nonlocal shown_bytes
                shown_bytes += bytes
                rate = progress.tasks[task].speed or 0.0
                seen = f"{size(shown_bytes)}  {rate:,.0f}/s"
                progress.update(task, advance=items, seen=seen)

            yield advance

    @contextmanager
    def logging(self) -> Iterator[None]:
        """Show the engine's log lines: warnings, more with --verbose, errors only with --quiet."""
        levels = (logging.WARNING, logging.INFO, logging.DEBUG)
        level = logging.ERROR if self.quiet else levels[min(self.verbose, 2)]
        logger = logging.getLogger("sync_engine")
        before, propagate = logger.level, logger.propagate
        handler = _Lines(self)
        logger.addHandler(handler)
        logger.setLevel(level)
        logger.propagate = False
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.setLevel(before)
            logger.propagate = propagate


class _Lines(logging.Handler):
    """Log lines as remarks."""

    def __init__(self, output: Output) -> None:
        super().__init__()
        self._output = output

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        if getattr(record, "event", "") in _ASIDE and not self._output.verbose:
            return
        word = f"{record.levelname.lower()}: {record.name.removeprefix('sync_engine.')}:"
        style = "yellow" if record.levelno >= logging.WARNING else "dim"
        text = shown(redact(record.getMessage()))
        try:
            self._output.err.print(Text.assemble((word, style), " ", text), soft_wrap=True)
        except (OSError, ValueError):
            self.handleError(record)


class _Console(Console):
    """Leaves a broken pipe to the program, in place of ending it."""

    def on_broken_pipe(self) -> None:
        """Raise the error that is being handled, again."""
        raise  # rich calls this in its handler


def _console(file: Any, *, color: bool) -> Console:
    terminal = file.isatty()
    width = None if terminal or "COLUMNS" in os.environ else _WIDTH
    return _Console(
        file=file,
        width=width,
        no_color=True if not color else None,
        force_terminal=terminal,
        highlight=False,
        markup=False,
        emoji=False,
    )


def _json(value: object, **style: Any) -> str:
    """Return JSON; letters that standard output cannot carry are written as escapes."""
    text = json.dumps(plain(value), ensure_ascii=False, allow_nan=False, **style)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except UnicodeEncodeError:
        return json.dumps(plain(value), allow_nan=False, **style)
    return text


def plain(value: Any) -> Any:
    """Return a value as JSON knows it."""
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(value).decode()
    if isinstance(value, Mapping):
        names = (key.name.lower() if isinstance(key, enum.Enum) else str(key) for key in value)
        return {name: plain(item) for name, item in zip(names, value.values(), strict=True)}
    members = getattr(value, "__struct_fields__", getattr(value, "__dataclass_fields__", None))
    if members is not None:
        return {name: plain(getattr(value, name)) for name in members}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return plain(value._asdict())
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, PurePath) else redact(str(value))


def item_fields(item: SyncItem, *, content: bool) -> dict[str, object]:
    """Return an item as a JSON document: text as ``content``, other bytes as ``content_base64``."""
    fields: dict[str, object] = {
        "id": item.id,
        "bytes": len(item.content),
        "content_type": item.content_type.name.lower(),
        "state": item.state,
        "version": item.version,
        "updated_at_ms": item.updated_at_ms,
        "expires_at_ms": item.expires_at_ms,
    }
    if content:
        try:
            fields["content"] = item.content.decode()
        except UnicodeDecodeError:
            fields["content_base64"] = base64.b64encode(item.content).decode()
    return fields


def shown(text: str) -> str:
    """Return a text that is safe on a terminal: what cannot be printed is escaped."""
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )


def size(value: float) -> str:
    """Return a number of bytes in words: ``4.1 MiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:,.0f} B" if unit == "B" else f"{value:,.1f} {unit}"
        value /= 1024
    return f"{value:,.1f} TiB"


def duration(seconds: float) -> str:
    """Return a time in words: ``35 ms``."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:,.1f} µs"
    if seconds < 1:
        return f"{seconds * 1e3:,.1f} ms"
    return f"{seconds:,.2f} s"


def count(value: int, one: str, many: str = "") -> str:
    """Return a number and its noun: ``1 item``, ``2,000 items``."""
    return f"{value:,} {one if value == 1 else many or one + 's'}"
