"""Writing objects: whole, or in parts; verified by what the server says it took."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any, Final

from sync_engine.errors import StoreUnavailable
from sync_engine.s3.body import S3Info, is_md5
from sync_engine.s3.connection import Connection
from sync_engine.s3.errors import STORE, NoSuchKey, NoSuchUpload, PreconditionFailed
from sync_engine.s3.listing import normal_etag, plain

__all__ = ["Part", "Upload", "Uploads"]

_CHUNK: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a multipart upload.

    Attributes:
        number: From 1 to 10,000.
        etag: As the server gave it, without quotes.
        size: Bytes.
    """

    number: int
    etag: str
    size: int


@dataclass(frozen=True, slots=True)
class Upload:
    """A multipart upload that was neither completed nor aborted.

    Attributes:
        key: Of the object to be.
        upload_id: Names the upload.
        started_ms: Wall-clock milliseconds of its creation.
    """

    key: str
    upload_id: str
    started_ms: int


class Uploads(Connection):
    """The writing half of `S3Client`; see there."""

    def put(
        self,
        bucket: str,
        key: str,
        body: bytes | IO[bytes],
        *,
        metadata: Mapping[str, str] | None = None,
        content_type: str | None = None,
        storage_class: str | None = None,
        sse: str | None = None,
        sse_key_id: str | None = None,
        if_absent: bool = False,
        if_match: str | None = None,
        content_md5: str | None = None,
    ) -> S3Info:
        """Store an object in one request (up to 5 GiB); return what the server took.

        Args:
            bucket: Where to.
            key: Its name, up to 1,024 bytes of UTF-8.
            body: The bytes, or a seekable file at the place to read from.
            metadata: The user's own, ASCII.
            content_type: None leaves it to the server.
            storage_class: Such as ``STANDARD_IA``.
            sse: ``AES256`` or ``aws:kms``.
            sse_key_id: Of the key, with ``aws:kms``.
            if_absent: Only where there is none; see `S3Client.supports_conditional_writes`: some
                servers ignore it.
            if_match: Only in place of the object with this ETag; the same caution.
            content_md5: MD5 of the body in base64; for bytes it is computed. Without it a file is
                read once more, to compute it.

        Raises:
            PreconditionFailed: `if_absent` or `if_match` does not hold.
        """
        digest, size, start = _digest_of(body, content_md5)
        given: dict[str, Any] = {
            "Bucket": bucket,
            "Key": key,
            "ContentMD5": base64.b64encode(bytes.fromhex(digest)).decode(),
        }
        given |= _options(metadata, content_type, storage_class, sse, sse_key_id)
        if if_absent:
            given["IfNoneMatch"] = "*"
        if if_match is not None:
            given["IfMatch"] = f'"{normal_etag(if_match)}"'

        def attempt(s3: Any, number: int) -> Any:
            if not isinstance(body, bytes):
                body.seek(start)
            try:
                return s3.put_object(Body=body, **given)
            except Exception as exc:
                # The answer to an attempt before this one was lost: the object there may be ours.
                if number > 1 and _failed_condition(exc):
                    found = self.head(bucket, key)
                    if found is not None and found.etag == digest and found.size == size:
                        return {"ETag": found.etag, "VersionId": found.version}
                raise

        answer = self._call("put", f"{bucket}/{key}", attempt)
        etag = normal_etag(answer.get("ETag", ""))
        kms = (answer.get("ServerSideEncryption") or sse or "").startswith("aws:kms")
        if is_md5(etag) and not kms and etag != digest:
            raise StoreUnavailable(STORE, "put", "the bytes were damaged on the way")
        return S3Info(
            key=key,
            size=size,
            etag=etag,
            modified_ms=self._runtime.clock.now_ms(),
            version=answer.get("VersionId") or "",
            metadata=dict(metadata or {}),
            content_type=content_type or "",
            storage_class=storage_class or "STANDARD",
            sse=answer.get("ServerSideEncryption") or "",
        )

    # -- in parts ---------------------------------------------------------------------------------

    def create_multipart(
        self,
        bucket: str,
        key: str,
        *,
        metadata: Mapping[str, str] | None = None,
        content_type: str | None = None,
        storage_class: str | None = None,
        sse: str | None = None,
        sse_key_id: str | None = None,
    ) -> str:
        """Begin an upload in parts; return its id. A lost answer leaves one to be aborted later."""
        given = _options(metadata, content_type, storage_class, sse, sse_key_id)

        def attempt(s3: Any, number: int) -> Any:
            del number
            return s3.create_multipart_upload(Bucket=bucket, Key=key, **given)

        return str(self._call("create_multipart", f"{bucket}/{key}", attempt)["UploadId"])

    def put_part(
        self, bucket: str, key: str, upload_id: str, number: int, body: bytes | IO[bytes]
    ) -> Part:
        """Send one part; sending it again replaces it.

        Args:
            bucket: Where to.
            key: Of the object.
            upload_id: Of the upload.
            number: 1 to 10,000; parts are put together in this order.
            body: At least 5 MiB, except the last.
        """
        digest, size, start = _digest_of(body, None)

        def attempt(s3: Any, attempt_number: int) -> Any:
            del attempt_number
            if not isinstance(body, bytes):
                body.seek(start)
            return s3.upload_part(
                Bucket=bucket,
                Key=key,
                UploadId=upload_id,
                PartNumber=number,
                Body=body,
                ContentMD5=base64.b64encode(bytes.fromhex(digest)).decode(),
            )

        answer = self._call("put_part", f"{bucket}/{key}", attempt)
        etag = normal_etag(answer["ETag"])
        kms = (answer.get("ServerSideEncryption") or "").startswith("aws:kms")
        if is_md5(etag) and not kms and etag != digest:
            raise StoreUnavailable(STORE, "put_part", "the bytes were damaged on the way")
        return Part(number, etag, size)

    def complete_multipart(
        self,
        bucket: str,
        key: str,
        upload_id: str,
        parts: Sequence[Part],
        *,
        if_absent: bool = False,
    ) -> S3Info:
        """Put the parts together; return the object as a HEAD describes it.

        Raises:
            PreconditionFailed: `if_absent` does not hold.
            NoSuchUpload: It is gone.
            StoreRejected: A part is missing.
        """
        asked = {"Parts": [{"PartNumber": p.number, "ETag": f'"{p.etag}"'} for p in parts]}
        given: dict[str, Any] = {"IfNoneMatch": "*"} if if_absent else {}
        size = sum(part.size for part in parts)

        def attempt(s3: Any, number: int) -> Any:
            try:
                return s3.complete_multipart_upload(
                    Bucket=bucket, Key=key, UploadId=upload_id, MultipartUpload=asked, **given
                )
            except Exception as exc:
                # The answer to an attempt before this one was lost: the object there may be ours.
                taken, gone = _failed_condition(exc), code_of(exc) in {"NoSuchUpload", "404"}
                if number == 1 or not (taken or gone):
                    raise
                if not self._is_ours(bucket, key, parts, size, joined=taken):
                    raise
                return {}

        self._call("complete_multipart", f"{bucket}/{key}", attempt)
        found = self.head(bucket, key)
        if found is None or found.size != size:
            raise StoreUnavailable(STORE, "complete_multipart", "the object is not there whole")
        return found  # not the answer: servers that store it as one give it another ETag after

    def _is_ours(
        self, bucket: str, key: str, parts: Sequence[Part], size: int, *, joined: bool
    ) -> bool:
        found = self.head(bucket, key)
        if found is None or found.size != size:
            return False
        digests = b"".join(bytes.fromhex(part.etag) for part in parts if is_md5(part.etag))
        digest = hashlib.md5(digests, usedforsecurity=False).hexdigest()
        if found.etag == f"{digest}-{len(parts)}":
            return True
        # Some servers store the object as one. None of those that keep conditions does: there, it
        # is the object of somebody else, who was faster.
        return is_md5(found.etag) and not joined

    def abort_multipart(self, bucket: str, key: str, upload_id: str) -> None:
        """Drop an upload and its parts; one that is gone is fine."""

        def attempt(s3: Any, number: int) -> Any:
            del number
            return s3.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload_id)

        try:
            self._call("abort_multipart", f"{bucket}/{key}", attempt)
        except (NoSuchKey, NoSuchUpload):
            return

    def list_parts(self, bucket: str, key: str, upload_id: str) -> list[Part]:
        """Return the parts that the server has of an upload, by number.

        Raises:
            NoSuchUpload: It is gone.
        """
        found: list[Part] = []
        mark = 0
        while True:

            def attempt(s3: Any, number: int, mark: int = mark) -> Any:
                del number
                return s3.list_parts(
                    Bucket=bucket, Key=key, UploadId=upload_id, PartNumberMarker=mark
                )

            answer = self._call("list_parts", f"{bucket}/{key}", attempt)
            found += [
                Part(p["PartNumber"], normal_etag(p["ETag"]), p["Size"])
                for p in answer.get("Parts", ())
            ]
            if not answer.get("IsTruncated"):
                return found
            mark = answer["NextPartNumberMarker"]

    def list_uploads(self, bucket: str, prefix: str = "") -> Iterator[Upload]:
        """Yield the uploads that were neither completed nor aborted, by key."""
        marks: dict[str, str] = {}
        while True:

            def attempt(s3: Any, number: int, marks: dict[str, str] = marks) -> Any:
                del number
                return s3.list_multipart_uploads(
                    Bucket=bucket, Prefix=prefix, EncodingType="url", **marks
                )

            answer = self._call("list_uploads", bucket, attempt)
            encoded = answer.get("EncodingType") == "url"
            for each in answer.get("Uploads", ()):
                key = plain(each["Key"]) if encoded else each["Key"]
                started_ms = round(each["Initiated"].timestamp() * 1000)
                if key.startswith(prefix):
                    yield Upload(key, each["UploadId"], started_ms)
            if not answer.get("IsTruncated"):
                return
            marks = {
                "KeyMarker": plain(answer["NextKeyMarker"]),
                "UploadIdMarker": answer["NextUploadIdMarker"],
            }


def _options(
    metadata: Mapping[str, str] | None,
    content_type: str | None,
    storage_class: str | None,
    sse: str | None,
    sse_key_id: str | None,
) -> dict[str, Any]:
    given = {
        "Metadata": None if metadata is None else dict(metadata),
        "ContentType": content_type,
        "StorageClass": storage_class,
        "ServerSideEncryption": sse,
        "SSEKMSKeyId": sse_key_id,
    }
    return {name: value for name, value in given.items() if value is not None}


def _digest_of(body: bytes | IO[bytes], content_md5: str | None) -> tuple[str, int, int]:
    """Return the MD5 in hex, the size, and the place in the file where the body begins."""
    if isinstance(body, bytes):
        return hashlib.md5(body, usedforsecurity=False).hexdigest(), len(body), 0
    start = body.tell()
    if content_md5 is not None:
        size = body.seek(0, 2) - start
        body.seek(start)
        return base64.b64decode(content_md5).hex(), size, start
    digest = hashlib.md5(usedforsecurity=False)
    size = 0
    while data := body.read(_CHUNK):
        digest.update(data)
        size += len(data)
    body.seek(start)
    return digest.hexdigest(), size, start


def code_of(exc: Exception) -> str:
    response = getattr(exc, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


def _failed_condition(exc: Exception) -> bool:
    return isinstance(exc, PreconditionFailed) or code_of(exc) in {"PreconditionFailed", "412"}
