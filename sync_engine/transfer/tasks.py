"""What an uploader is asked to do, and what it answers: values alone."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from sync_engine.s3 import Part
from sync_engine.sinks.s3_upload.digests import Digests
from sync_engine.sources.file_watch import Root, Row
from sync_engine.sources.file_watch.beneath import Fingerprint

__all__ = ["Outcome", "Result", "Task", "Work"]


class Work(enum.Enum):
    """Kinds of tasks."""

    UPLOAD = "upload"
    VERIFY = "verify"
    DELETE = "delete"


@dataclass(frozen=True, slots=True)
class Task:
    """One step of one file.

    Attributes:
        work: What to do.
        root: Where the file is.
        row: The file as the ledger knows it; its key is set.
        resumed: Whether an earlier attempt may have had an effect that nobody noted.
        parts: Parts that the server took, by number.
        since_ms: When an upload in parts was about to begin that was never heard of again, in Unix
            milliseconds; None where none was.
    """

    work: Work
    root: Root
    row: Row
    resumed: bool = False
    parts: Mapping[int, Part] = field(default_factory=dict)
    since_ms: int | None = None


class Result(enum.Enum):
    """How a task ended; PART alone does not end it.

    BEGUN: an upload in parts has an id. UPLOADED, VERIFIED, DELETED: done. CHANGED: the local file
    is not the one that was seen. VANISHED: it is not there. TAKEN: the key belongs to another
    object. DIFFERENT: the object is not what was uploaded. FAILED: may succeed later. REJECTED:
    will not. MISCONFIGURED: nothing succeeds until a setting is corrected.
    """

    BEGUN = "begun"
    PART = "part"
    UPLOADED = "uploaded"
    VERIFIED = "verified"
    DELETED = "deleted"
    CHANGED = "changed"
    VANISHED = "vanished"
    TAKEN = "taken"
    DIFFERENT = "different"
    FAILED = "failed"
    REJECTED = "rejected"
    MISCONFIGURED = "misconfigured"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a task.

    Attributes:
        task: The task.
        result: How it ended.
        key: Of the object; empty where it did not change.
        etag: Of the object.
        digests: Of what was read.
        taken: Fingerprint of the file that was read.
        upload_id: Of the upload in parts; None where there is none any more.
        part: With PART.
        reason: Why not, for people.
        retry_after_s: What the server asked for, in seconds.
    """

    task: Task
    result: Result
    key: str = ""
    etag: str = ""
    digests: Digests | None = None
    taken: Fingerprint | None = None
    upload_id: str | None = None
    part: Part | None = None
    reason: str = ""
    retry_after_s: float = 0.0
