"""What people see of the program: plain values."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Planned", "Progress"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far it is.

    Attributes:
        files: Rows of the ledger by state, names in lower case.
        open: Files found and not yet verified (or, where asked, cleaned up).
        uploaded: Objects stored by this process.
        uploaded_bytes: Their bytes.
        verified: Objects that were found whole at the server.
        removed: Local files deleted or moved.
        deleted: Objects deleted because their files were.
        changed: Files that changed while they were uploaded, or before they were removed.
        retries: Attempts beyond the first.
        parked: Files put aside.
        ignored: Files left alone since their key was taken.
        overflows: How often the watcher lost events and noticed.
        rescans: Scans out of turn.
        scans: Scans in all.
        commits: Commits of the ledger.
        watcher: Its name.
        stalled_s: Seconds since the server began to fail whatever it is asked; 0 where it does not.
        idle: Whether all that is there was looked at and nothing waits, but for what the system
            keeps us from removing here.
        errors: What keeps files from being found or sent.
        problems: Paths and reasons of the last files that were put aside.
    """

    files: dict[str, int]
    open: int
    uploaded: int
    uploaded_bytes: int
    verified: int
    removed: int
    deleted: int
    changed: int
    retries: int
    parked: int
    ignored: int
    overflows: int
    rescans: int
    scans: int
    commits: int
    watcher: str
    stalled_s: float
    idle: bool
    errors: list[str] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Planned:
    """What would be done with a file.

    Attributes:
        action: ``upload``, ``delete`` or ``park``.
        path: Of the file.
        key: Of the object.
        size: Bytes.
        reason: With ``park``.
    """

    action: str
    path: str
    key: str
    size: int
    reason: str = ""
