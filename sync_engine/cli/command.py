"""What a command is, the options that all of them take, and what their exit codes mean."""

from __future__ import annotations

import argparse
import enum
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from sync_engine.config.values import Unusable, duration
from sync_engine.errors import SyncEngineError
from sync_engine.telemetry import redact

if TYPE_CHECKING:
    from sync_engine.cli.context import Context

__all__ = [
    "EPILOG",
    "PROG",
    "Command",
    "ExitCode",
    "Parser",
    "UsageError",
    "add_global_options",
    "add_write_options",
    "fill_parser",
    "seconds",
    "words",
]

PROG = "sync-engine"
_DURATION = duration("s")


class ExitCode(enum.IntEnum):
    """What a command leaves behind, for scripts."""

    OK = 0
    FAILED = 1
    USAGE = 2
    PARTLY = 3
    UNAVAILABLE = 4
    CORRUPT = 5


EPILOG = """\
exit codes:
  0    done
  1    failed, or not found
  2    the command line or a setting cannot be used
  3    partly done: some items were refused
  4    a server is unavailable, or does not keep up
  5    stored data is damaged
  130  interrupted (SIGINT); 143: terminated (SIGTERM); 141: the reader of our output went away

Settings come from options, then SYNC_ENGINE_* variables, then --config FILE; see
`sync-engine config explain`."""


class UsageError(SyncEngineError):
    """The command line asks for something that cannot be done.

    Attributes:
        hint: What to do instead; may be empty.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class Parser(argparse.ArgumentParser):
    """Reports mistakes in two lines, as every other error here."""

    def error(self, message: str) -> NoReturn:
        """Print the mistake and end with exit code 2."""
        sys.stderr.write(f"error: {redact(message)}\nhint: {self.prog} --help\n")
        raise SystemExit(int(ExitCode.USAGE))


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One command.

    Attributes:
        name: The word that calls it.
        summary: One line of help.
        details: Further paragraphs of help.
        example: Command lines, one a line, as shown in its help.
        arguments: Adds its arguments to a parser.
        run: Does it; returns the exit code.
        children: Commands below it; it does nothing itself then.
    """

    name: str
    summary: str
    example: str
    details: str = ""
    arguments: Callable[[argparse.ArgumentParser], None] | None = None
    run: Callable[[Context], int] | None = None
    children: tuple[Command, ...] = ()


def fill_parser(parser: argparse.ArgumentParser, command: Command) -> None:
    """Give a parser what a command has: its help, arguments, and the commands below it."""
    lines = "\n".join(f"  {line}" for line in command.example.splitlines())
    parser.description = f"{command.summary[:1].upper()}{command.summary[1:]}.\n\n{command.details}"
    parser.epilog = f"example:\n{lines}"
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    if command.arguments is not None:
        command.arguments(parser)
    if command.children:
        below = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
        for child in command.children:
            under = below.add_parser(child.name, help=child.summary, allow_abbrev=False)
            fill_parser(under, child)
    else:
        add_global_options(parser, default=argparse.SUPPRESS)
        parser.set_defaults(run=command.run)


def add_global_options(parser: argparse.ArgumentParser, *, default: str | None) -> None:
    """Add what every command takes.

    Args:
        parser: Of the program or of one command: they may stand before or after its name.
        default: ``argparse.SUPPRESS`` for a command, so that it does not undo what stands before;
            what adds up is gathered apart, in ``settings_after`` and ``verbose_after``.
    """
    group = parser.add_argument_group("settings, for every command")
    add = group.add_argument
    add("--config", metavar="FILE", default=default, help="TOML file of settings")
    add("--data-dir", metavar="DIR", default=default, help="directory of log and embedded archive")
    add("--redis-url", metavar="URL", default=default, help="server of L2")
    add("--sql-url", metavar="URL", default=default, help="database of the archive")
    add(
        "--set",
        dest="settings_after" if default else "settings",
        metavar="NAME=VALUE",
        action="append",
        default=default,
        help="any other setting; may be repeated",
    )
    group = parser.add_argument_group("output, for every command")
    flag = argparse.SUPPRESS if default else False
    add = group.add_argument
    add("--json", action="store_true", default=flag, help="JSON in place of tables")
    add("-q", "--quiet", action="store_true", default=flag, help="data and errors only")
    add(
        "-v",
        "--verbose",
        dest="verbose_after" if default else "verbose",
        action="count",
        default=default or 0,
        help="log lines too; twice: debugging, and tracebacks of errors",
    )
    add("--no-color", action="store_true", default=flag, help="no colour (also NO_COLOR=1)")


def add_write_options(parser: argparse.ArgumentParser) -> None:
    """Add what every writing command takes."""
    parser.add_argument(
        "--ttl", type=seconds, metavar="TIME", help="expire after 90, 90s, 15m, 2h, 7d"
    )
    parser.add_argument("--state", metavar="LABEL", help="label to list items by")
    parser.add_argument(
        "--durability",
        choices=("memory", "log", "fsync", "archive"),
        help="what an acknowledgement means (default: the setting durability)",
    )


def seconds(text: str) -> float:
    """Return the seconds of a duration such as ``90``, ``15m`` or ``2h``; an argparse type."""
    try:
        return float(_DURATION.parse(text))
    except Unusable as exc:
        raise argparse.ArgumentTypeError(str(exc)) from None


def words(text: str) -> str:
    """Return a text that is one; an argparse type. What is not UTF-8 comes as lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"must be UTF-8, got {text!a}") from None
    return text
