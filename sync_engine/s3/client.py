"""Everything the house asks of S3, in our own words and with our own errors."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from sync_engine.errors import ConfigError, StorageError, StoreRejected, StoreUnavailable
from sync_engine.s3.body import S3Body, S3Info, info_of
from sync_engine.s3.errors import ABSENT, STORE, TRANSIENT, NoSuchKey, PreconditionFailed
from sync_engine.s3.listing import ListPage, normal_etag, plain
from sync_engine.s3.session import ROWS
from sync_engine.s3.uploads import Uploads, code_of

__all__ = ["S3Client"]

_DELETES: Final = 1000
_NOT_XML: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")


class S3Client(Uploads):
    """One S3, spoken to over a pool of connections.

    Connects at the first call. Every method repeats what failed for a passing reason, with full
    jitter, until ``settings.deadline_s`` is over; each is idempotent, or tells its own earlier
    effect from another's. All raise `StoreUnavailable` (try again later), `StoreRejected` (this can
    never work) and `ConfigError` (bucket, region, credentials or this machine's clock are wrong).

    Thread-safety: every method, from up to ``settings.connections_max`` threads at a time.
    Blocking: network.

    Args:
        settings: Where and how.
        runtime: Gives clock, randomness and locks.
        retry: Pauses between attempts; None is 50 ms doubling to 10 s.
    """

    _conditional: bool | None = None

    # -- buckets ----------------------------------------------------------------------------------

    def ping(self, bucket: str) -> float:
        """Return the seconds of one `head_bucket`, without retries."""
        clock = self._runtime.clock
        began = clock.monotonic()
        self._call("ping", bucket, lambda s3, _: s3.head_bucket(Bucket=bucket), once=True)
        return clock.monotonic() - began

    # -- listings ---------------------------------------------------------------------------------

    def list_page(
        self,
        bucket: str,
        prefix: str = "",
        *,
        start_after: str | None = None,
        token: str | None = None,
        max_keys: int | None = None,
        delimiter: str | None = None,
    ) -> ListPage:
        """Return one page of a listing; keys are byte-exact, whatever they hold.

        Args:
            bucket: Whose objects.
            prefix: What their keys begin with.
            start_after: Only keys after this one.
            token: Of the page before; `start_after` is not looked at then.
            max_keys: 1 to 1,000; None is ``settings.page_size``.
            delimiter: Keys that hold it after the prefix are folded into `ListPage.prefixes`.

        Cost: one request; about 4 µs an object of our own time.
        """
        given: dict[str, Any] = {
            "Bucket": bucket,
            "Prefix": prefix,
            "MaxKeys": max_keys or self.settings.page_size,
            "EncodingType": "url",
        }
        if token is not None:
            given["ContinuationToken"] = token
        elif start_after:
            given["StartAfter"] = start_after
        if delimiter is not None:
            given["Delimiter"] = delimiter

        def attempt(s3: Any, number: int) -> ListPage:
            del number
            return _page(s3.list_objects_v2(**given))

        page = self._call("list", bucket, attempt)
        if page.truncated and page.token is not None and page.token == token:
            raise _no_end("list")
        return page

    def iter(
        self, bucket: str, prefix: str = "", *, start_after: str | None = None
    ) -> Iterator[ListPage]:
        """Yield the pages of a listing, the last one included."""
        token: str | None = None
        while True:
            page = self.list_page(bucket, prefix, start_after=start_after, token=token)
            yield page
            if not page.truncated:
                return
            token = page.token
            if token is None:
                if not page.rows:
                    raise _no_end("list")
                start_after = page.rows[-1][0]

    def list_versions(
        self, bucket: str, prefix: str = "", *, start_after: str | None = None
    ) -> Iterator[Sequence[Mapping[str, Any]]]:
        """Yield pages of versions and delete markers, in key order, the newest of a key first.

        Each is a mapping with ``key``, ``version``, ``latest``, ``deleted``, ``etag``, ``size`` and
        ``modified_ms``.
        """
        marks: dict[str, Any] = {"KeyMarker": start_after} if start_after else {}
        while True:
            asked = {"Bucket": bucket, "Prefix": prefix, "EncodingType": "url", **marks}

            def attempt(s3: Any, number: int, asked: dict[str, Any] = asked) -> Any:
                del number
                return s3.list_object_versions(**asked)

            answer = self._call("list_versions", bucket, attempt)
            yield _versions(answer)
            if not answer.get("IsTruncated"):
                return
            # The marker comes back as it is to be sent, except that it is percent-encoded.
            before, marks = (
                marks,
                {
                    "KeyMarker": plain(answer.get("NextKeyMarker", "")),
                    "VersionIdMarker": answer.get("NextVersionIdMarker", ""),
                },
            )
            if marks == before or not marks["KeyMarker"]:
                raise _no_end("list_versions")

    # -- objects ----------------------------------------------------------------------------------

    def get(
        self,
        bucket: str,
        key: str,
        *,
        range: tuple[int, int] | None = None,
        if_match: str | None = None,
        version: str | None = None,
    ) -> S3Body:
        """Open an object for reading; see `S3Body` for what is verified.

        Args:
            bucket: Where it is.
            key: Its name.
            range: First byte and the one after the last; None is all of it.
            if_match: Only if its ETag is this one. Servers exist that do not look at it: what came
                is compared here, too.
            version: A version id; None is the newest.

        Raises:
            NoSuchKey: There is none.
            PreconditionFailed: Its ETag is another.
        """
        given: dict[str, Any] = {"Bucket": bucket, "Key": key}
        if range is not None:
            given["Range"] = f"bytes={range[0]}-{range[1] - 1}"
        if if_match is not None:
            given["IfMatch"] = f'"{normal_etag(if_match)}"'
        if version:
            given["VersionId"] = version
        answer = self._call("get", f"{bucket}/{key}", lambda s3, _: s3.get_object(**given))
        info = info_of(key, answer)
        body = S3Body(
            info,
            answer["Body"]._raw_stream,  # noqa: SLF001 - its own `read` cannot be bounded in time
            int(answer["ContentLength"]),
            self._runtime.clock,
            self.settings.deadline_s,
        )
        if if_match is not None and info.etag != normal_etag(if_match):
            body.close()
            raise PreconditionFailed(key)
        return body

    def get_bytes(
        self, bucket: str, key: str, *, bytes_max: int = 1 << 30, if_match: str | None = None
    ) -> tuple[bytes, S3Info] | None:
        """Return an object's verified bytes and description; None where there is none.

        Raises:
            StoreRejected: It has more than `bytes_max` bytes.
            CorruptData: Its bytes are not what was stored.
        """

        def attempt(number: int) -> tuple[bytes, S3Info] | None:
            del number
            try:
                body = self.get(bucket, key, if_match=if_match)
            except NoSuchKey:
                return None
            return body.read(bytes_max), body.info

        return self.attempts.run(attempt)

    def delete(
        self, bucket: str, key: str, *, version: str | None = None, if_match: str | None = None
    ) -> None:
        """Delete an object; an absent one is fine.

        Args:
            bucket: Where it is.
            key: Its name.
            version: A version id; None is the newest.
            if_match: Only the object with this ETag. Servers that do not know this condition
                ignore it, or say so: then whatever is there is deleted.

        Raises:
            PreconditionFailed: There is an object with another ETag.
        """
        given = {"Bucket": bucket, "Key": key} | ({"VersionId": version} if version else {})
        condition = {} if if_match is None else {"IfMatch": f'"{normal_etag(if_match)}"'}

        def attempt(s3: Any, number: int) -> Any:
            del number
            try:
                return s3.delete_object(**given, **condition)
            except Exception as exc:
                if not (condition and _knows_no_condition(exc)):
                    raise
            return s3.delete_object(**given)

        try:
            self._call("delete", f"{bucket}/{key}", attempt)
        except NoSuchKey:
            return
        except PreconditionFailed:
            if self.head(bucket, key, version=version, sure=True) is not None:
                raise  # else an attempt whose answer was lost has deleted it

    def delete_many(self, bucket: str, keys: Sequence[str]) -> None:
        """Delete objects, up to 1,000 a request; absent ones are fine.

        Raises:
            StoreRejected: Some could not be deleted (the message names one); the others are gone.
        """
        plain = [key for key in keys if not _NOT_XML.search(key)]
        for key in keys:
            if _NOT_XML.search(key):  # cannot stand in the request's XML
                self.delete(bucket, key)
        for low in range(0, len(plain), _DELETES):
            self._delete_some(bucket, plain[low : low + _DELETES])

    def _delete_some(self, bucket: str, keys: Sequence[str]) -> None:
        left = list(keys)
        refused: dict[str, str] = {}

        def attempt(s3: Any, number: int) -> Any:
            del number
            asked = {"Objects": [{"Key": key} for key in left], "Quiet": True}
            answer = s3.delete_objects(Bucket=bucket, Delete=asked)
            errors = {e["Key"]: str(e.get("Code")) for e in answer.get("Errors", ())}
            left[:] = [key for key, code in errors.items() if code in TRANSIENT]
            refused.update(
                (key, code)
                for key, code in errors.items()
                if code not in TRANSIENT and code not in ABSENT
            )
            if left:
                raise StoreUnavailable(STORE, "delete", TRANSIENT[errors[left[0]]])

        self._call("delete", bucket, attempt)
        for key, code in refused.items():
            raise StoreRejected(STORE, "delete", f"{bucket}/{key}: the server refused ({code})")

    def copy(self, bucket: str, key: str, to_bucket: str, to_key: str) -> S3Info:
        """Copy an object within the server (up to 5 GiB); return the copy.

        Raises:
            NoSuchKey: There is no such object.
        """
        source = {"Bucket": bucket, "Key": key}

        def attempt(s3: Any, number: int) -> Any:
            del number
            return s3.copy_object(Bucket=to_bucket, Key=to_key, CopySource=source)

        self._call("copy", f"{bucket}/{key}", attempt)
        made = self.head(to_bucket, to_key)
        if made is None:
            raise StoreUnavailable(STORE, "copy", "the copy is not there")
        return made

    # -- abilities --------------------------------------------------------------------------------

    def supports_conditional_writes(self, bucket: str, probe_prefix: str = "") -> bool:
        """Tell whether the endpoint honours ``If-None-Match`` on writes; some ignore it silently.

        Asked once for each client: a small object is put twice and deleted.

        Args:
            bucket: May be written to.
            probe_prefix: What the key of the small object begins with.
        """
        if self._conditional is None:
            key = f"{probe_prefix}.sync-engine-probe-{int(self._runtime.random() * 1e15):x}"
            self.put(bucket, key, b"")
            try:
                self._call(
                    "probe",
                    f"{bucket}/{key}",
                    lambda s3, _: s3.put_object(Bucket=bucket, Key=key, Body=b"", IfNoneMatch="*"),
                )
                self._conditional = False
            except PreconditionFailed:
                self._conditional = True
            except StorageError as exc:
                if isinstance(exc, StoreUnavailable):
                    raise
                self._conditional = False  # it does not know the header
            finally:
                self.delete(bucket, key)
        return self._conditional


def _knows_no_condition(exc: Exception) -> bool:
    # Of the server, or of a driver that is older than the condition.
    return code_of(exc) == "NotImplemented" or type(exc).__name__ == "ParamValidationError"


def _no_end(operation: str) -> StoreUnavailable:
    return StoreUnavailable(STORE, operation, "the listing does not say how to go on")


def _page(answer: Mapping[str, Any]) -> ListPage:
    rows = answer.get(ROWS)
    if rows is None:
        raise ConfigError("s3: the installed driver does not call us for listings: update boto3")
    folded = answer.get("CommonPrefixes") or ()
    count = answer.get("KeyCount")
    if count is not None and count not in {len(rows) + len(folded), len(rows)}:
        raise StoreUnavailable(STORE, "list", f"{len(rows)} of {count} objects came")
    if "IsTruncated" not in answer:
        raise StoreUnavailable(STORE, "list", "the answer is no listing")
    encoded = answer.get("EncodingType") == "url"
    return ListPage(
        rows=rows,
        prefixes=[plain(f["Prefix"]) if encoded else f["Prefix"] for f in folded],
        token=answer.get("NextContinuationToken") or None,
        truncated=bool(answer["IsTruncated"]),
    )


def _versions(answer: Mapping[str, Any]) -> list[dict[str, Any]]:
    encoded = answer.get("EncodingType") == "url"
    made: list[dict[str, Any]] = []
    for name in ("Versions", "DeleteMarkers"):
        made.extend(
            {
                "key": plain(each["Key"]) if encoded else each["Key"],
                "version": each.get("VersionId", ""),
                "latest": bool(each.get("IsLatest")),
                "deleted": name == "DeleteMarkers",
                "etag": normal_etag(each.get("ETag", "")),
                "size": int(each.get("Size", 0)),
                "modified_ms": round(each["LastModified"].timestamp() * 1000),
            }
            for each in answer.get(name, ())
        )
    # Two lists come; together they are in key order again, the newest first.
    made.sort(key=lambda v: (v["key"].encode("utf-8", "surrogateescape"), -v["modified_ms"]))
    return made
