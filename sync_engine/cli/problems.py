"""Errors as people read them: an exit code, one line, and what to do."""

from __future__ import annotations

from typing import NamedTuple

from sync_engine.cli.command import ExitCode, UsageError
from sync_engine.errors import (
    Backpressure,
    CircuitOpen,
    ConfigError,
    Conflict,
    CorruptData,
    DeadLettered,
    EngineClosed,
    EngineFailed,
    InvalidItem,
    StoreRejected,
    StoreUnavailable,
    SyncEngineError,
)
from sync_engine.telemetry import redact

__all__ = ["Problem", "explain"]

_CODES: tuple[tuple[type[Exception], ExitCode], ...] = (
    (UsageError, ExitCode.USAGE),
    (ConfigError, ExitCode.USAGE),
    (InvalidItem, ExitCode.USAGE),
    (CorruptData, ExitCode.CORRUPT),
    (StoreUnavailable, ExitCode.UNAVAILABLE),
    (Backpressure, ExitCode.UNAVAILABLE),
)
_HINTS: tuple[tuple[type[Exception], str], ...] = (
    (UsageError, ""),
    (Backpressure, "the archive does not keep up: try again later; see `sync-engine health`"),
    (CircuitOpen, "`sync-engine doctor` tells what is wrong with the server"),
    (StoreUnavailable, "try again later; `sync-engine doctor` tells what is wrong"),
    (DeadLettered, "see `sync-engine dlq list`"),
    (StoreRejected, "the destination can never take this: change it; see `sync-engine doctor`"),
    (Conflict, "read the item again (`sync-engine status ID` tells its version)"),
    (EngineFailed, "stop, check the disk, and start again; nothing acknowledged is lost"),
    (EngineClosed, "start the command again"),
    (OSError, "check the path and its permissions"),
    (SyncEngineError, ""),
)
_SITUATIONS = (
    (
        " is in use by process ",
        "stop that process, or look from beside it, at what is archived: --set engine_name=cli",
    ),
    ("install the driver", "install the extra named above into this environment"),
    ("sync-engine migrate", "see `sync-engine migrate --help`"),
    ("there is no such setting", "`sync-engine config explain` lists all settings"),
)


class Problem(NamedTuple):
    """What is told of an error.

    Attributes:
        code: The exit code.
        text: What happened, secrets masked.
        hint: What to do; may be empty.
    """

    code: ExitCode
    text: str
    hint: str


def explain(exc: Exception) -> Problem:
    """Return what to tell of an error."""
    code = next((code for kind, code in _CODES if isinstance(exc, kind)), ExitCode.FAILED)
    text, hint = str(exc), ""
    if isinstance(exc, UsageError):
        hint = exc.hint
    elif isinstance(exc, OSError):
        name = "" if exc.filename is None else f"{exc.filename}: "
        text = f"{name}{exc.strerror or exc}"
    elif not isinstance(exc, SyncEngineError):
        text = f"unexpected {type(exc).__name__}: {exc}"
        hint = "this is a mistake in sync-engine; -vv shows where it happened"
    situation = (told for words, told in _SITUATIONS if words in text)
    general = (told for kind, told in _HINTS if isinstance(exc, kind))
    hint = hint or next(situation, "") or next(general, "")
    return Problem(code, redact(text), redact(hint))
