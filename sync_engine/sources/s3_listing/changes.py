"""What happened to objects of a bucket: plain frozen values."""

from __future__ import annotations

import enum
import fnmatch
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from sync_engine.errors import ConfigError, StoreRejected
from sync_engine.s3.listing import Row, modified_ms

__all__ = [
    "Added",
    "Deleted",
    "Identity",
    "KeyFilter",
    "Modified",
    "Op",
    "Renamed",
    "S3Change",
    "S3Object",
    "TooManyDeletions",
    "same_by",
]


class Op(enum.StrEnum):
    """What happened."""

    ADDED = "added"
    MODIFIED = "modified"
    DELETED = "deleted"
    RENAMED = "renamed"


@dataclass(frozen=True, slots=True)
class S3Object:
    """One object as a listing described it.

    Attributes:
        key: Its name, exactly.
        etag: Without quotes; opaque. With `versions`, ``;`` and the version id follow.
        size: Bytes.
        modified: Last-modified as the server writes it.
    """

    key: str
    etag: str
    size: int
    modified: str

    @property
    def modified_ms(self) -> int:
        """Last-modified in wall-clock milliseconds; 0 where unreadable."""
        return modified_ms(self.modified)

    @property
    def etag_kind(self) -> str:
        """``md5`` (as far as one can see), ``multipart``, or ``opaque``."""
        etag = self.etag.partition(";")[0]
        if re.fullmatch(r"[0-9a-f]{32}", etag):
            return "md5"
        return "multipart" if re.fullmatch(r"[0-9a-f]{32}-\d+", etag) else "opaque"

    @property
    def version(self) -> str:
        """The version id, where versions are listed; else empty."""
        return self.etag.partition(";")[2]


@dataclass(frozen=True, slots=True)
class Added:
    """A key that the state did not hold.

    Attributes:
        seq: Place among the changes of this state file; grows, never repeats.
        new: The object.
    """

    seq: int
    new: S3Object
    op: ClassVar[Op] = Op.ADDED

    @property
    def key(self) -> str:
        """The object's key."""
        return self.new.key


@dataclass(frozen=True, slots=True)
class _Replaced:
    seq: int
    old: S3Object
    new: S3Object

    @property
    def key(self) -> str:
        """The object's key, as it is now."""
        return self.new.key


@dataclass(frozen=True, slots=True)
class Modified(_Replaced):
    """A key whose object is another one.

    Attributes:
        seq: Place among the changes.
        old: As it was known.
        new: As it is.
    """

    op: ClassVar[Op] = Op.MODIFIED

    @property
    def etag_kind(self) -> str:
        """Kind of the new ETag: one of ``multipart`` may have changed with the same bytes."""
        return self.new.etag_kind


@dataclass(frozen=True, slots=True)
class Deleted:
    """A key that is gone: told only after a listing that ended without an error.

    Attributes:
        seq: Place among the changes.
        old: As it was known.
        marker: Version id of the delete marker, where versions are listed; else empty.
    """

    seq: int
    old: S3Object
    marker: str = ""
    op: ClassVar[Op] = Op.DELETED

    @property
    def key(self) -> str:
        """The object's key."""
        return self.old.key


@dataclass(frozen=True, slots=True)
class Renamed(_Replaced):
    """One key went and one came in the same scan, with the same ETag and size, and no others.

    Attributes:
        seq: Place among the changes.
        old: As it was known.
        new: As it is.
    """

    op: ClassVar[Op] = Op.RENAMED


S3Change = Added | Modified | Deleted | Renamed


class TooManyDeletions(StoreRejected):
    """A scan ended well, yet so much is gone that somebody should look first. Nothing was deleted.

    Attributes:
        missing: Keys that the listing no longer has.
        known: Keys that the state held.
    """

    def __init__(self, missing: int, known: int, allowed: str) -> None:
        super().__init__(
            "s3",
            "release deletions",
            f"{missing:,} of {known:,} known keys are missing, {allowed}: nothing was reported "
            "as deleted; if they are meant to be gone, allow it once",
        )
        self.missing = missing
        self.known = known


class Identity(enum.StrEnum):
    """When two descriptions are the same object."""

    ETAG = "etag"
    ETAG_MTIME = "etag+mtime"
    SIZE_MTIME = "size+mtime"


def same_by(identity: Identity) -> Callable[[Row, Row], bool]:
    """Return the test whether two rows of one key are the same object.

    Size always counts. Where either has no ETag, last-modified decides in its place.
    """

    def same_time(a: Row, b: Row) -> bool:
        return a[3] == b[3] or modified_ms(a[3]) == modified_ms(b[3])

    def by_etag(a: Row, b: Row) -> bool:
        if not a[1] or not b[1]:
            return a[2] == b[2] and same_time(a, b)
        return a[1] == b[1] and a[2] == b[2]

    if identity is Identity.ETAG:
        return by_etag
    if identity is Identity.ETAG_MTIME:
        return lambda a, b: by_etag(a, b) and same_time(a, b)
    return lambda a, b: a[2] == b[2] and same_time(a, b)


class KeyFilter:
    """Which keys are looked at: those matching an `include` (or any) and no `exclude`.

    Args:
        include: Patterns of the whole key, with ``*``, ``?`` and ``[…]``; ``*`` crosses ``/``.
        exclude: The same.
    """

    def __init__(self, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> None:
        for name, given in (("include", include), ("exclude", exclude)):
            if isinstance(given, str) or not all(isinstance(each, str) for each in given):
                raise ConfigError(f"{name} must be a list of patterns")
        self.include = tuple(include)
        self.exclude = tuple(exclude)
        self._in = _union(self.include)
        self._out = _union(self.exclude)

    def __bool__(self) -> bool:
        return bool(self.include or self.exclude)

    def __call__(self, key: str) -> bool:
        """Tell whether a key is looked at."""
        if self._out is not None and self._out(key):
            return False
        return self._in is None or self._in(key) is not None


def _union(patterns: Sequence[str]) -> Callable[[str], Any] | None:
    if not patterns:
        return None
    return re.compile("|".join(f"(?:{fnmatch.translate(each)})" for each in patterns)).match
