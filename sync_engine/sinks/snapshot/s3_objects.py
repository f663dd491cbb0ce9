"""A replica in S3: keys below a prefix of one bucket."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from sync_engine.errors import ConfigError, StoreRejected
from sync_engine.ports import BlobInfo, Runtime
from sync_engine.s3 import NoSuchKey, PreconditionFailed, S3Client, S3Settings
from sync_engine.sinks.snapshot.errors import Changed, NoAccess
from sync_engine.sinks.snapshot.objects import Fetched

__all__ = ["S3Objects"]

_DEADLINE_S = 30.0
_CREDENTIALS = ("credentials", "access denied", "access key")


class S3Objects:
    """Objects below ``s3://bucket/prefix``; implements `Objects`.

    Thread-safety: any thread.

    Args:
        url: Address, with options after ``?`` as `S3Settings.from_url` takes them.
        runtime: Time, locks, randomness.
        endpoint_url: Of another S3 than Amazon's, where the address does not name it.

    Raises:
        ConfigError: The address cannot be used.
    """

    def __init__(self, url: str, runtime: Runtime, *, endpoint_url: str | None = None) -> None:
        others = {"deadline_s": _DEADLINE_S}
        given = {"endpoint_url": endpoint_url} if endpoint_url else {}
        address, settings = S3Settings.from_url(url, **others, **given)
        prefix = address.prefix
        self._bucket = address.bucket
        self._prefix = prefix if not prefix or prefix.endswith("/") else f"{prefix}/"
        self.url = f"s3://{self._bucket}/{self._prefix}"
        self._client = S3Client(settings, runtime)

    def conditional(self) -> bool:
        """Tell whether the server honours conditional writes; asks it once."""
        with _translated(self.url):
            return self._client.supports_conditional_writes(self._bucket, self._prefix)

    def put(
        self, key: str, data: bytes, *, if_absent: bool = False, if_match: str | None = None
    ) -> str:
        """Store an object whole; see `Objects.put`."""
        with _translated(self.url):
            try:
                return self._client.put(
                    self._bucket,
                    self._prefix + key,
                    data,
                    if_absent=if_absent,
                    if_match=if_match,
                ).etag
            except (PreconditionFailed, NoSuchKey):
                raise Changed(key) from None

    def get(self, key: str, *, length: int | None = None) -> Fetched | None:
        """Return an object or its beginning; see `Objects.get`."""
        with _translated(self.url):
            if length is None:
                found = self._client.get_bytes(self._bucket, self._prefix + key)
                return None if found is None else Fetched(found[0], found[1].etag)
            try:
                with self._client.get(self._bucket, self._prefix + key, range=(0, length)) as body:
                    return Fetched(body.read(length), body.info.etag)
            except NoSuchKey:
                return None

    def list(self, prefix: str) -> Iterator[BlobInfo]:
        """Yield objects in order; see `Objects.list`."""
        with _translated(self.url):
            for page in self._client.iter(self._bucket, self._prefix + prefix):
                for info in page.objects:
                    yield replace(info, key=info.key[len(self._prefix) :])

    def delete(self, keys: Sequence[str]) -> Sequence[str]:
        """Delete objects one by one where several at once fail; see `Objects.delete`."""
        failed = []
        with _translated(self.url):
            try:
                self._client.delete_many(self._bucket, [self._prefix + key for key in keys])
            except StoreRejected:
                for key in keys:
                    try:
                        self._client.delete(self._bucket, self._prefix + key)
                    except StoreRejected:
                        failed.append(key)
        return failed

    def close(self) -> None:
        """Close idle connections."""
        self._client.close()


@contextmanager
def _translated(url: str) -> Iterator[None]:
    """Tell wrong credentials from everything else that is wrong for good."""
    try:
        yield
    except (StoreRejected, ConfigError) as exc:
        if any(word in str(exc).lower() for word in _CREDENTIALS):
            raise NoAccess(f"{url}: {exc}") from exc
        raise
