"""What `doctor` finds, and how bad it is."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from sync_engine.cli.command import ExitCode
from sync_engine.cli.problems import explain
from sync_engine.errors import SyncEngineError

__all__ = ["Finding", "Severity", "failed", "worst"]


class Severity(enum.StrEnum):
    """How bad a finding is."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        part: What it belongs to, such as ``redis``.
        severity: How bad it is.
        what: What was found.
        remedy: What to do; empty where nothing has to be done.
        code: What an error means for the exit code.
    """

    part: str
    severity: Severity
    what: str
    remedy: str = ""
    code: ExitCode = ExitCode.FAILED


def failed(part: str, exc: SyncEngineError, *, unavailable: str) -> Finding:
    """Return what an error tells of a part.

    Args:
        part: What was looked at.
        exc: What went wrong.
        unavailable: What to do where a server cannot be reached.
    """
    problem = explain(exc)
    remedy = problem.hint
    if problem.code is ExitCode.UNAVAILABLE:
        remedy = unavailable
    elif "doctor" in remedy:
        remedy = ""  # we are the doctor
    return Finding(
        part=part, severity=Severity.ERROR, what=problem.text, remedy=remedy, code=problem.code
    )


_ORDER = (ExitCode.CORRUPT, ExitCode.USAGE, ExitCode.UNAVAILABLE, ExitCode.FAILED)


def worst(findings: list[Finding]) -> ExitCode:
    """Return the exit code: of the gravest error, 0 where there is none."""
    codes = {finding.code for finding in findings if finding.severity is Severity.ERROR}
    return next((code for code in _ORDER if code in codes), ExitCode.OK)
