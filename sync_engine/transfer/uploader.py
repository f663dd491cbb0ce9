"""Uploading one file: read what was seen, send it, ask the server what it has."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Final

from sync_engine.core import failpoints
from sync_engine.errors import (
    ConfigError,
    StorageError,
    StoreBusy,
    StoreRejected,
    StoreUnavailable,
)
from sync_engine.s3 import NoSuchUpload, Part, PreconditionFailed, S3Client, S3Info
from sync_engine.sinks.s3_upload.digests import Digests, holds, multipart_etag, read_back
from sync_engine.sources.file_watch.beneath import Fingerprint, fingerprint, open_beneath
from sync_engine.telemetry import get_logger
from sync_engine.transfer.orphans import SKEW_MS
from sync_engine.transfer.settings import Overwrite, TransferSettings
from sync_engine.transfer.tasks import Outcome, Result, Task, Work

__all__ = ["Uploader"]

_log = get_logger("transfer")
_CHUNK: Final = 1 << 20
_TRIES_MAX: Final = 100
_ABSENT: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EINVAL})


class _Changed(Exception):
    """The file is not the one that was seen."""


class _Taken(Exception):
    """The key belongs to another object."""


class Uploader:
    """Does tasks, with nothing but the client of its own; keeps no state between them.

    Thread-safety: any number of threads. Blocking: network and disk.

    Args:
        s3: The client.
        bucket: Where to.
        settings: How.
        report: Takes each `Outcome.part` while an upload goes on; must not block.
        conditional: Whether the endpoint honours conditional writes.
    """

    def __init__(
        self,
        s3: S3Client,
        bucket: str,
        settings: TransferSettings,
        report: Callable[[Outcome], None],
        *,
        conditional: bool = False,
    ) -> None:
        self._s3 = s3
        self._bucket = bucket
        self._settings = settings
        self._report = report
        self.conditional = conditional

    def do(self, task: Task) -> Outcome:
        """Do a task; every error is an outcome."""
        works = {Work.UPLOAD: self._upload, Work.VERIFY: self._verify, Work.DELETE: self._delete}
        kept = task.row.upload_id
        try:
            return works[task.work](task)
        except ConfigError as exc:
            return Outcome(task, Result.MISCONFIGURED, upload_id=kept, reason=str(exc))
        except StoreRejected as exc:
            return Outcome(task, Result.REJECTED, upload_id=kept, reason=str(exc))
        except StorageError as exc:
            after_s = exc.retry_after_s if isinstance(exc, StoreBusy) else 0.0
            return Outcome(
                task, Result.FAILED, upload_id=kept, reason=str(exc), retry_after_s=after_s
            )
        except OSError as exc:
            return Outcome(task, Result.REJECTED, upload_id=kept, reason=f"cannot be read: {exc}")
        except Exception as exc:
            _log.limited("upload_failed", level=40, path=task.row.path, error=exc)
            reason = f"{type(exc).__name__}: {exc}"
            return Outcome(task, Result.REJECTED, upload_id=kept, reason=reason)

    # -- uploading --------------------------------------------------------------------------------

    def _upload(self, task: Task) -> Outcome:
        row = task.row
        stale = row.upload_id is not None and row.taken != row.seen
        try:
            handle = open_beneath(task.root.path, row.path)
        except OSError as exc:
            if exc.errno not in _ABSENT:
                raise
            self._abort(task)
            return Outcome(task, Result.VANISHED)
        try:
            self._check(handle, row.seen)
            if stale:
                self._abort(task)
                task = replace(task, row=row._replace(upload_id=None), parts={})
            if row.size < self._settings.part_bytes:
                return self._put_whole(task, handle)
            return self._put_parts(task, handle)
        except _Changed:
            self._abort(task)
            return Outcome(task, Result.CHANGED)
        except _Taken as exc:
            self._abort(task)
            return Outcome(task, Result.TAKEN, reason=str(exc))
        finally:
            os.close(handle)

    def _check(self, handle: int, seen: Fingerprint) -> None:
        if fingerprint(os.fstat(handle)) != seen:
            raise _Changed

    def _abort(self, task: Task) -> None:
        if task.row.upload_id is not None and task.row.key is not None:
            self._s3.abort_multipart(self._bucket, task.row.key, task.row.upload_id)

    def _metadata(self, digests: Digests, seen: Fingerprint) -> dict[str, str]:
        return {"sha256": digests.sha256, "mtime-ns": str(seen.mtime_ns)}

    def _put_whole(self, task: Task, handle: int) -> Outcome:
        row, settings = task.row, self._settings
        data = b"".join(_chunks(handle, row.size + 1))
        if len(data) != row.size:
            raise _Changed
        self._check(handle, row.seen)
        digests = Digests.of(data)
        for key, present, absent in self._places(task, digests):
            if present is not None and holds(present, digests):
                return self._uploaded(task, present, digests)
            try:
                info = self._s3.put(
                    self._bucket,
                    key,
                    data,
                    metadata=self._metadata(digests, row.seen),
                    storage_class=settings.storage_class,
                    sse=settings.sse,
                    sse_key_id=settings.sse_key_id,
                    if_absent=absent and self.conditional,
                    if_match=present.etag if present and self.conditional else None,
                )
            except PreconditionFailed:
                continue
            if failpoints.armed:
                failpoints.hit("upload.sent")
            return self._uploaded(task, info, digests)
        raise StoreUnavailable("s3", "put", "the object changes faster than it can be replaced")

    def _uploaded(self, task: Task, info: S3Info, digests: Digests) -> Outcome:
        return Outcome(
            task, Result.UPLOADED, key=info.key, etag=info.etag, digests=digests,
            taken=task.row.seen,
        )  # fmt: skip

    def _places(self, task: Task, digests: Digests) -> Iterator[tuple[str, S3Info | None, bool]]:
        """Yield keys to write to, what is there now, and whether nothing may be there.

        Raises:
            _Taken: The policy forbids it.
        """
        row, policy = task.row, self._settings.overwrite
        first = row.key or ""
        if policy == Overwrite.REPLACE:
            # What an earlier life may have sent need not be sent again.
            found = self._s3.head(self._bucket, first) if task.resumed else None
            yield first, (found if found is not None and holds(found, digests) else None), False
            return
        number = 0
        for _ in range(_TRIES_MAX):
            key = first if number == 0 else f"{first}~{number}"
            found = self._s3.head(self._bucket, key)
            if found is None:
                yield key, None, True
            elif holds(found, digests) or (row.etag is not None and found.etag == row.etag):
                yield key, found, False
            elif policy == Overwrite.VERSION_SUFFIX:
                number += 1
            else:
                raise _Taken(f"the key {key!r} is taken by another object")
        raise _Taken(f"no free key after {first!r}~{number}")

    # -- in parts ---------------------------------------------------------------------------------

    def _put_parts(self, task: Task, handle: int) -> Outcome:
        if task.row.upload_id is None:
            return self._begin(task, handle)
        return self._go_on(task, handle, task.row.upload_id)

    def _begin(self, task: Task, handle: int) -> Outcome:
        row, settings = task.row, self._settings
        md5 = hashlib.md5(usedforsecurity=False)
        sha256 = hashlib.sha256()
        size = 0
        for data in _chunks(handle, row.size + 1):
            md5.update(data)
            sha256.update(data)
            size += len(data)
        self._check(handle, row.seen)
        digests = Digests(size, md5.hexdigest(), sha256.hexdigest())
        key, present, _ = next(self._places(task, digests))
        if present is not None and holds(present, digests):
            return self._uploaded(task, present, digests)
        if task.since_ms is not None:
            self._abort_unknown(key, task.since_ms)
        upload_id = self._s3.create_multipart(
            self._bucket,
            key,
            metadata=self._metadata(digests, row.seen),
            storage_class=settings.storage_class,
            sse=settings.sse,
            sse_key_id=settings.sse_key_id,
        )
        if failpoints.armed:
            failpoints.hit("upload.begun")
        return Outcome(
            task, Result.BEGUN, key=key, digests=digests, taken=row.seen, upload_id=upload_id
        )

    def _abort_unknown(self, key: str, since_ms: int) -> None:
        """Abort what was begun for a key by a life that died before it could note the id."""
        with suppress(StoreRejected):  # servers exist that cannot list uploads
            for upload in list(self._s3.list_uploads(self._bucket, key)):
                if upload.key == key and upload.started_ms >= since_ms - SKEW_MS:
                    self._s3.abort_multipart(self._bucket, key, upload.upload_id)

    def _go_on(self, task: Task, handle: int, upload_id: str) -> Outcome:
        row = task.row
        key = row.key or ""
        digests = Digests.parse(row.digest or "")
        if task.resumed:
            found = self._s3.head(self._bucket, key)
            whole = Digests(digests.size, digests.md5, digests.sha256, self._parts_etag(task))
            if found is not None and holds(found, whole):
                self._s3.abort_multipart(self._bucket, key, upload_id)
                return self._uploaded(task, found, whole)
        try:
            parts, md5s = self._send_parts(task, handle, upload_id, digests.sha256)
            info = self._complete(task, key, upload_id, parts)
        except NoSuchUpload:
            return Outcome(task, Result.CHANGED)  # begin anew
        if failpoints.armed:
            failpoints.hit("upload.sent")
        whole = Digests(digests.size, digests.md5, digests.sha256, multipart_etag(md5s))
        return self._uploaded(task, info, whole)

    def _parts_etag(self, task: Task) -> str:
        etags = [task.parts[number].etag for number in sorted(task.parts)]
        try:
            return multipart_etag(etags) if etags else ""
        except ValueError:
            return ""  # ETags that are no MD5s

    def _send_parts(
        self, task: Task, handle: int, upload_id: str, sha256_seen: str
    ) -> tuple[list[Part], list[str]]:
        row = task.row
        sha256 = hashlib.sha256()
        parts: list[Part] = []
        md5s: list[str] = []
        part_size = self._settings.part_size(row.size)
        os.lseek(handle, 0, os.SEEK_SET)
        for start in range(0, row.size, part_size):
            data = b"".join(_chunks(handle, min(part_size, row.size - start)))
            self._check(handle, row.seen)
            sha256.update(data)
            md5s.append(hashlib.md5(data, usedforsecurity=False).hexdigest())
            number = len(md5s)
            known = task.parts.get(number)
            if known is None or known.etag != md5s[-1] or known.size != len(data):
                known = self._s3.put_part(self._bucket, row.key or "", upload_id, number, data)
                self._report(Outcome(task, Result.PART, part=known, upload_id=upload_id))
                if failpoints.armed:
                    failpoints.hit("upload.part")
            parts.append(known)
        if sha256.hexdigest() != sha256_seen:
            raise _Changed  # within one tick of the file system's clock
        return parts, md5s

    def _complete(self, task: Task, key: str, upload_id: str, parts: list[Part]) -> S3Info:
        absent = (
            self._settings.overwrite != Overwrite.REPLACE
            and self.conditional
            and task.row.etag is None
        )
        try:
            return self._s3.complete_multipart(
                self._bucket, key, upload_id, parts, if_absent=absent
            )
        except PreconditionFailed:
            raise _Taken(f"the key {key!r} was taken meanwhile") from None

    # -- the other works --------------------------------------------------------------------------

    def _verify(self, task: Task) -> Outcome:
        row = task.row
        digests = Digests.parse(row.digest or "")
        info = self._s3.head(self._bucket, row.key or "", sure=True)
        if info is None:
            return Outcome(task, Result.DIFFERENT, reason="the object is not there")
        whole = holds(info, digests)
        if whole is None or (whole and self._settings.verify == "get"):
            whole = read_back(self._s3, self._bucket, info, digests)
        if not whole:
            return Outcome(task, Result.DIFFERENT, reason="the object is not what was uploaded")
        return Outcome(task, Result.VERIFIED, etag=info.etag)

    def _delete(self, task: Task) -> Outcome:
        row = task.row
        key = row.key or ""
        found = self._s3.head(self._bucket, key, sure=True)
        ours = found is None or found.etag == row.etag
        if found is not None and ours:
            try:
                self._s3.delete(self._bucket, key, if_match=found.etag)
            except PreconditionFailed:  # replaced since it was looked at
                ours = False
        if not ours:
            _log.warning("object_kept", key=key, why="it is not the one that was uploaded")
        return Outcome(task, Result.DELETED)


def _chunks(handle: int, size: int) -> Iterator[bytes]:
    while size > 0 and (data := os.read(handle, min(_CHUNK, size))):
        yield data
        size -= len(data)
