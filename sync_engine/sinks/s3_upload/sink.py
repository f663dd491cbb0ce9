"""The sink: one object per item, its version in the metadata."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, wait
from typing import Any, Final
from urllib.parse import quote

from sync_engine.core import failpoints
from sync_engine.core.item import Change
from sync_engine.core.version import ms_of_version
from sync_engine.errors import ConfigError, StoreRejected, StoreUnavailable
from sync_engine.ports import AdapterContext
from sync_engine.s3 import PreconditionFailed, S3Address, S3Client, S3Info, S3Settings
from sync_engine.sinks.s3_upload.keys import KeyTemplate
from sync_engine.sinks.s3_upload.tombstones import Tombstones
from sync_engine.telemetry import get_logger

__all__ = ["S3UploadSink", "from_settings"]

_log = get_logger("s3_upload")
_TRIES_MAX: Final = 20
_TYPES: Final = {0: "application/octet-stream", 1: "application/json"}


class S3UploadSink:
    """Stores each item as an object, and deletes the object with the item.

    The object's metadata carry ``version``, ``id`` (percent-encoded), ``state`` and, where there is
    one, ``expires-at-ms``. An object of a newer version is never replaced or deleted, one without a
    version (somebody else's) counts as older: it is looked at first, and the write is conditional
    where the endpoint honours that; where it does not, two sinks that write one prefix at one
    moment are not told apart, and a warning says so. A deletion names the object that was found,
    too; a server that does not know that condition deletes what is there. The versions of deletions
    are remembered in a file beside the log, for thirty days.

    Thread-safety: one caller at a time. Blocking: network; a batch goes over several connections.

    Args:
        context: Name, threads, directory of its file.
        address: Bucket and prefix.
        s3: How to reach it.
        key_template: See `KeyTemplate`; ``{path}`` is the id.
        storage_class: None leaves it to the bucket.
        sse: ``AES256`` or ``aws:kms``; None leaves it to the bucket.
        sse_key_id: Key for ``aws:kms``.
    """

    def __init__(
        self,
        context: AdapterContext,
        address: S3Address,
        s3: S3Settings,
        *,
        key_template: str = "{path}",
        storage_class: str | None = None,
        sse: str | None = None,
        sse_key_id: str | None = None,
    ) -> None:
        self.name = context.name
        self.address = address
        self._context = context
        self._template = KeyTemplate(address, key_template)
        self._s3_settings = s3
        self._options = {"storage_class": storage_class, "sse": sse, "sse_key_id": sse_key_id}
        self._client: S3Client | None = None
        self._tombstones: Tombstones | None = None
        self._conditional = False

    def attach(self) -> None:
        """Connect, and learn whether conditional writes are honoured; see `ports.Sink`."""
        if self._client is None:
            self._client = S3Client(self._s3_settings, self._context.runtime)
        self._client.head_bucket(self.address.bucket)
        self._conditional = self._client.supports_conditional_writes(
            self.address.bucket, self._template.prefix
        )
        if not self._conditional:
            _log.limited(
                "conditional_writes_ignored",
                sink=self.name,
                hint="let one engine alone write this prefix",
            )
        if self._tombstones is None:
            self._tombstones = Tombstones(self._context.data_dir / f"{self.name}.s3-upload.db")

    def apply(self, changes: Sequence[Change]) -> None:
        """Store and delete objects; see `ports.Sink`.

        The batch is not one transaction: after `StoreUnavailable` some of it may be there, and
        repeating it is harmless. What can never be stored is refused before anything is.
        """
        client, tombstones = self._attached()
        keyed = [(self._key(change), change) for change in changes]
        if len({key for key, _ in keyed}) < len(keyed):
            raise StoreRejected("s3", "apply", "two ids of the batch have the same key")
        deleted = tombstones.versions([key for key, _ in keyed])
        todo = [(key, change) for key, change in keyed if change.version >= deleted.get(key, 0)]
        gone = {key: change.version for key, change in todo if change.is_tombstone}
        if gone:
            tombstones.add(gone, self._context.runtime.clock.now_ms())
        if len(todo) < 2:
            for key, change in todo:
                self._apply_one(client, key, change)
            return
        executor = self._context.runtime.executor()
        futures = [executor.submit(self._apply_one, client, key, change) for key, change in todo]
        done, waiting = wait(futures, return_when=FIRST_EXCEPTION)
        for future in waiting:
            future.cancel()
        wait([future for future in waiting if not future.cancelled()])
        for future in done:
            future.result()

    def _attached(self) -> tuple[S3Client, Tombstones]:
        if self._client is None or self._tombstones is None:
            raise StoreUnavailable("s3", "apply", "not attached")
        return self._client, self._tombstones

    def _key(self, change: Change) -> str:
        return self._template.key(change.id, time_ms=ms_of_version(change.version))

    def _apply_one(self, client: S3Client, key: str, change: Change) -> None:
        bucket = self.address.bucket
        for _ in range(_TRIES_MAX):
            # Where a deletion finds nothing, nothing is written that would tell of a wrong bucket.
            found = client.head(bucket, key, sure=change.content is None)
            if found is not None and not self._is_older(found, change):
                return
            if change.content is None:
                if found is None or self._delete(client, found):
                    return
                continue
            options: dict[str, Any] = dict(self._options)
            if self._conditional:
                options["if_absent"] = found is None
                options["if_match"] = None if found is None else found.etag
            try:
                client.put(
                    bucket,
                    key,
                    change.content,
                    metadata=_metadata(change),
                    content_type=_TYPES.get(change.content_type, _TYPES[0]),
                    **options,
                )
            except PreconditionFailed:
                continue
            if failpoints.armed:
                failpoints.hit("s3_upload.stored")
            return
        raise StoreUnavailable("s3", "apply", f"{key!r} changes faster than it can be replaced")

    def _delete(self, client: S3Client, found: S3Info) -> bool:
        """Delete an object, and tell whether it still was the one that was looked at."""
        try:
            client.delete(self.address.bucket, found.key, if_match=found.etag)
        except PreconditionFailed:
            return False
        return True

    def _is_older(self, found: S3Info, change: Change) -> bool:
        """Tell whether an object may be replaced by a change.

        Raises:
            StoreRejected: It is the object of another id.
        """
        id = found.metadata.get("id")
        if id is not None and id != _quoted(change.id):
            raise StoreRejected("s3", "apply", f"another id has the same key {found.key!r}")
        version = found.metadata.get("version", "")
        return int(version) < change.version if version.isdigit() else True

    def ping(self) -> float:
        """Return the seconds of one round trip; see `ports.Sink`."""
        client, _ = self._attached()
        return client.ping(self.address.bucket)

    def close(self) -> None:
        """Close connections and the file; safe twice."""
        client, self._client = self._client, None
        tombstones, self._tombstones = self._tombstones, None
        if client is not None:
            client.close()
        if tombstones is not None:
            tombstones.close()


def _metadata(change: Change) -> dict[str, str]:
    made = {
        "version": str(change.version),
        "id": _quoted(change.id),
        "state": quote(change.state, safe="/ "),
    }
    if change.expires_at_ms:
        made["expires-at-ms"] = str(change.expires_at_ms)
    return made


def _quoted(id: str) -> str:
    return quote(id, safe="/")


def from_settings(
    context: AdapterContext,
    *,
    url: str,
    key_template: str = "{path}",
    endpoint_url: str | None = None,
    region: str | None = None,
    profile: str | None = None,
    access_key_id: str | None = None,
    secret_access_key: str | None = None,
    session_token: str | None = None,
    storage_class: str | None = None,
    sse: str | None = None,
    sse_key_id: str | None = None,
    deadline_s: float = 30.0,
) -> S3UploadSink:
    """Make an `S3UploadSink` from plain settings; connects to nothing yet.

    Args:
        context: What every adapter is given.
        url: ``s3://bucket/prefix``, options after a ``?`` as `S3Settings.from_url` reads them.
        key_template: See `KeyTemplate`.
        endpoint_url: Another S3 than AWS.
        region: Name of the region.
        profile: Of the AWS configuration files.
        access_key_id: None asks the usual chain.
        secret_access_key: Together with the id.
        session_token: Of temporary credentials.
        storage_class: None leaves it to the bucket.
        sse: ``AES256`` or ``aws:kms``.
        sse_key_id: Key for ``aws:kms``.
        deadline_s: Seconds an operation may take with its retries (above 0).

    Raises:
        ConfigError: A setting cannot be used.
    """
    if sse_key_id is not None and not (sse or "").startswith("aws:kms"):
        raise ConfigError(f"sink {context.name!r}: sse_key_id needs sse = 'aws:kms'")
    given = {
        "endpoint_url": endpoint_url,
        "region": region,
        "profile": profile,
        "access_key_id": access_key_id,
        "secret_access_key": secret_access_key,
        "session_token": session_token,
    }
    address, s3 = S3Settings.from_url(
        url, deadline_s=deadline_s, **{n: v for n, v in given.items() if v is not None}
    )
    return S3UploadSink(
        context,
        address,
        s3,
        key_template=key_template,
        storage_class=storage_class,
        sse=sse,
        sse_key_id=sse_key_id,
    )
