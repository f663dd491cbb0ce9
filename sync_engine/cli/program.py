"""Reads the command line, runs a command, turns errors into two lines and an exit code."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from sync_engine.cli.command import (
    EPILOG,
    PROG,
    ExitCode,
    Parser,
    add_global_options,
    fill_parser,
)
from sync_engine.cli.context import Context
from sync_engine.cli.output import Output
from sync_engine.cli.problems import explain
from sync_engine.cli.signals import Interrupted, Stop
from sync_engine.cli.table import COMMANDS
from sync_engine.telemetry import redact

__all__ = ["main", "make_parser"]

_SIGINT, _SIGPIPE = 2, 13
_DESCRIPTION = """\
Keep bytes in memory, Redis and SQL behind one durable log: what is acknowledged is never lost.

Begin with `sync-engine quickstart`; it needs no server."""


# argparse exports no name for what `add_subparsers(action=…)` is documented to take.
class _OnDemand(argparse._SubParsersAction):  # type: ignore[type-arg]  # noqa: SLF001
    """Fills the parser of the command that was chosen; the others stay empty."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        for listed in COMMANDS:
            if listed.name == values[0]:
                fill_parser(self.choices[listed.name], listed.load())
        super().__call__(parser, namespace, values, option_string)


def make_parser(*, whole: bool = True) -> argparse.ArgumentParser:
    """Return the parser of the command line.

    Args:
        whole: Import every command, for who looks at all of them. Otherwise each is listed, and
            imported when a command line chooses it; such a parser parses once.
    """
    parser = Parser(
        prog=PROG,
        description=_DESCRIPTION,
        epilog=f"example:\n  sync-engine quickstart\n  sync-engine --data-dir ./data put greeting"
        f" --text hello\n  sync-engine --data-dir ./data get greeting\n\n{EPILOG}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    add_global_options(parser, default=None)
    action = "parsers" if whole else _OnDemand
    parsers = parser.add_subparsers(title="commands", metavar="COMMAND", action=action)
    for listed in COMMANDS:
        below = parsers.add_parser(listed.name, help=listed.summary, allow_abbrev=False)
        if whole:
            fill_parser(below, listed.load())
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The words after the program's name; None takes those of this process.

    Returns:
        The exit code; see `ExitCode`.

    Blocking: for as long as the command takes. SIGINT and SIGTERM are handled meanwhile if this
    is the main thread.
    """
    _make_printable()
    try:
        args = make_parser(whole=False).parse_args(argv)
    except SystemExit as exc:
        return _flushed(int(exc.code or 0))
    verbose = args.verbose + getattr(args, "verbose_after", 0)
    output = Output(json=args.json, quiet=args.quiet, verbose=verbose, color=not args.no_color)
    try:
        code = _run(args, output)
    except BrokenPipeError:
        _abandon_stdout()
        return 128 + _SIGPIPE
    return _flushed(code)


def _flushed(code: int) -> int:
    """Return the exit code, unless what was printed does not arrive."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = 128 + _SIGPIPE
    except OSError:
        code = code or int(ExitCode.FAILED)
    else:
        return code
    _abandon_stdout()
    return code


def _version(context: Context) -> int:
    from sync_engine import __version__

    context.output.text(f"{PROG} {__version__}")
    return ExitCode.OK


def _run(args: argparse.Namespace, output: Output) -> int:
    run = _version if args.version else getattr(args, "run", None)
    if run is None:
        make_parser(whole=False).print_help(sys.stderr)
        return int(ExitCode.USAGE)
    stop = Stop()
    try:
        with output.logging(), stop.installed():
            code = int(run(Context(args, output, stop)))
            sys.stdout.flush()
            return code
    except BrokenPipeError:
        raise
    except KeyboardInterrupt as exc:
        signum = exc.signum if isinstance(exc, Interrupted) else _SIGINT
        word = "interrupted" if signum == _SIGINT else "terminated"
        output.note(f"{word}; what was acknowledged is safe in the log")
        return 128 + signum
    except Exception as exc:
        if output.verbose > 1:
            output.err.print(redact(traceback.format_exc()), soft_wrap=True)
        problem = explain(exc)
        output.error(problem.text, problem.hint)
        return int(problem.code)


def _make_printable() -> None:
    """Escape what the terminal's encoding cannot show, and print into nothing what is closed."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            nothing = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - stays open
            setattr(sys, name, nothing)
    for stream in (sys.stdout, sys.stderr):
        encoding = getattr(stream, "encoding", None) or ""
        if encoding.lower().replace("-", "") != "utf8" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _abandon_stdout() -> None:
    """Let the interpreter flush into nothing at its exit."""
    with suppress(OSError, ValueError):
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, sys.stdout.fileno())
        os.close(nothing)
