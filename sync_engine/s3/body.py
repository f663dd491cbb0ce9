"""The bytes of an object on their way here, counted and compared with what the server promised."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self

from sync_engine.errors import CorruptData, StoreRejected, StoreUnavailable
from sync_engine.ports import BlobInfo, Clock
from sync_engine.s3.errors import STORE, translated
from sync_engine.s3.listing import normal_etag

__all__ = ["S3Body", "S3Info", "info_of", "is_md5"]

_CHUNK: Final = 1 << 16
_SLOWEST_BYTES_S: Final = 1 << 16
_MD5: Final = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Info(BlobInfo):
    """One object as S3 describes it.

    Attributes:
        version: Its version id; empty in buckets without versions.
        metadata: The user's, names in lower case.
        content_type: As stored; empty where unknown.
        storage_class: As stored; ``STANDARD`` where the server does not say.
        sse: Kind of encryption at rest; empty for none.
    """

    version: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    content_type: str = ""
    storage_class: str = "STANDARD"
    sse: str = ""

    @property
    def etag_is_md5(self) -> bool:
        """Whether the ETag is the MD5 of the bytes: not for multipart uploads and foreign keys."""
        return is_md5(self.etag) and not self.sse.startswith(("aws:kms", "customer"))


def is_md5(etag: str) -> bool:
    """Tell whether an ETag looks like the MD5 of the bytes."""
    return _MD5.fullmatch(etag) is not None


def info_of(key: str, answer: Mapping[str, Any]) -> S3Info:
    """Return what a HEAD or GET says of an object."""
    modified = answer.get("LastModified")
    size = int(answer.get("ContentLength") or 0)
    whole = str(answer.get("ContentRange") or "").rpartition("/")[2]
    customer = answer.get("SSECustomerAlgorithm")
    return S3Info(
        key=key,
        size=int(whole) if whole.isdigit() else size,
        etag=normal_etag(answer.get("ETag", "")),
        modified_ms=0 if modified is None else round(modified.timestamp() * 1000),
        version=answer.get("VersionId") or "",
        metadata={name.lower(): value for name, value in answer.get("Metadata", {}).items()},
        content_type=answer.get("ContentType") or "",
        storage_class=answer.get("StorageClass") or "STANDARD",
        sse="customer" if customer else answer.get("ServerSideEncryption") or "",
    )


class S3Body:
    """An object being read: iterate over its chunks, or `read` it whole; then it is verified.

    The count of bytes is always compared. Their digest is, where the whole object is read and the
    server has one: ``sha256`` in the metadata, or an ETag that is an MD5.

    One thread at a time. Use it as a context manager: leaving it early gives the connection up.

    Attributes:
        info: The object.
        length: Bytes that will come (fewer than ``info.size`` where a range was asked for).
    """

    def __init__(
        self, info: S3Info, raw: Any, length: int, clock: Clock, deadline_s: float
    ) -> None:
        self.info = info
        self.length = length
        self._raw = raw
        self._clock = clock
        self._until = clock.monotonic() + deadline_s + length / _SLOWEST_BYTES_S
        self._digest: Any
        self._digest, self._expected = _expected(info) if length == info.size else (None, "")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[bytes]:
        """Yield chunks of up to 64 KiB.

        Raises:
            StoreUnavailable: The bytes ended early, or came slower than 64 KiB/s for longer than
                the deadline.
            CorruptData: They are not what was stored.
        """
        seen = 0
        while data := self._read_some():
            seen += len(data)
            if seen > self.length:
                break
            if self._digest is not None:
                self._digest.update(data)
            yield data
        if seen != self.length:
            raise StoreUnavailable(STORE, "get", f"{seen:,} of {self.length:,} bytes came")
        if self._digest is not None and self._digest.hexdigest() != self._expected:
            raise CorruptData(f"s3 object {self.info.key!r}", "its bytes differ from its digest")
        self.close()

    def read(self, bytes_max: int) -> bytes:
        """Return all bytes, verified.

        Args:
            bytes_max: More than so many are refused, before and while reading.

        Raises:
            StoreRejected: The object is larger.
            StoreUnavailable: As for iteration.
            CorruptData: As for iteration.
        """
        if self.length > bytes_max:
            self.close()
            hint = f"{self.length:,} bytes are more than the {bytes_max:,} allowed"
            raise StoreRejected(STORE, "get", hint)
        with self:
            return b"".join(self)

    def close(self) -> None:
        """Let go of the connection; safe twice."""
        raw, self._raw = self._raw, None
        if raw is not None:
            raw.close()
            raw.release_conn()

    def _read_some(self) -> bytes:
        if self._raw is None:
            return b""
        if self._clock.monotonic() > self._until:
            self.close()
            raise StoreUnavailable(STORE, "get", "the bytes come too slowly")
        try:
            with translated("get", self.info.key):
                data: bytes = self._raw.read1(_CHUNK)
        except BaseException:
            self.close()
            raise
        return data


def _expected(info: S3Info) -> tuple[Any, str]:
    stored = info.metadata.get("sha256", "").lower()
    if len(stored) == 64:
        return hashlib.sha256(), stored
    if info.etag_is_md5:
        return hashlib.md5(usedforsecurity=False), info.etag
    return None, ""
