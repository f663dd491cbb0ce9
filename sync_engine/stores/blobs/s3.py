"""Blobs on any S3."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

from sync_engine.errors import Conflict
from sync_engine.ports import BlobInfo
from sync_engine.s3.client import S3Client
from sync_engine.s3.errors import PreconditionFailed
from sync_engine.telemetry import get_logger

__all__ = ["S3Blobs"]

_log = get_logger("stores.blobs")
_BYTES_MAX: Final = 5 << 30


class S3Blobs:
    """Objects of a bucket below a prefix; implements the port `BlobStore`.

    Some servers ignore the condition of `if_absent` silently. The endpoint is asked once whether
    it keeps it; where it does not, a HEAD comes before the write, and of two writers at the same
    moment both may win: see `atomic_if_absent`.

    Thread-safety: as `S3Client`. Blocking: network, up to its deadline.

    Args:
        client: The S3; left open.
        bucket: The bucket.
        prefix: Stands before every key, and in no key that is given or taken here.
        bytes_max: Larger objects are not read into memory.
    """

    def __init__(
        self, client: S3Client, bucket: str, prefix: str = "", *, bytes_max: int = _BYTES_MAX
    ) -> None:
        self._client = client
        self._bucket = bucket
        self._prefix = prefix
        self._bytes_max = bytes_max

    def __repr__(self) -> str:
        return f"S3Blobs({self._bucket!r}, {self._prefix!r})"

    @property
    def atomic_if_absent(self) -> bool:
        """Whether of several writers with `if_absent` exactly one wins.

        Blocking: three small requests at the first time.

        Raises:
            StoreUnavailable: It cannot be asked now.
        """
        return self._client.supports_conditional_writes(self._bucket, self._prefix)

    def put(self, key: str, data: bytes, *, if_absent: bool = False) -> BlobInfo:
        """Store an object whole.

        Raises:
            Conflict: With `if_absent`: there is one.
            StoreUnavailable: Try again later; it may have been stored.
        """
        name = self._prefix + key
        if if_absent and not self.atomic_if_absent:
            _log.limited("blobs_if_absent_is_weak", bucket=self._bucket)
            if self._client.head(self._bucket, name) is not None:
                raise Conflict(key, 0, 1)
            if_absent = False
        try:
            made = self._client.put(self._bucket, name, data, if_absent=if_absent)
        except PreconditionFailed:
            raise Conflict(key, 0, 1) from None
        return BlobInfo(key=key, size=made.size, etag=made.etag, modified_ms=made.modified_ms)

    def get(self, key: str) -> bytes | None:
        """Return an object's verified bytes, or None where there is none.

        Raises:
            StoreUnavailable: Try again later.
            CorruptData: The bytes are not those that were stored.
        """
        got = self._client.get_bytes(self._bucket, self._prefix + key, bytes_max=self._bytes_max)
        return None if got is None else got[0]

    def list(self, prefix: str) -> Iterator[BlobInfo]:
        """Yield objects in bytewise key order. Cost: one request a 1,000."""
        cut = len(self._prefix)
        for page in self._client.iter(self._bucket, self._prefix + prefix):
            for found in page.objects:
                yield replace(found, key=found.key[cut:])

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; absent ones are fine. Cost: one request a 1,000."""
        self._client.delete_many(self._bucket, [self._prefix + key for key in keys])
