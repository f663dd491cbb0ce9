"""One S3, asked: connections made on demand, every request repeated and translated alike."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TypeVar

from sync_engine.core.policies import RetryConfig
from sync_engine.ports import Runtime
from sync_engine.s3.address import S3Settings
from sync_engine.s3.body import S3Info, info_of
from sync_engine.s3.errors import NoSuchKey, translated
from sync_engine.s3.retry import Attempts
from sync_engine.s3.session import make_driver

__all__ = ["Connection"]

R = TypeVar("R")


class Connection:
    """What reading and writing have in common; see `S3Client`, which is both.

    Args:
        settings: Where and how.
        runtime: Gives clock, randomness and locks.
        retry: Pauses between attempts; None is 50 ms doubling to 10 s.
    """

    def __init__(
        self, settings: S3Settings, runtime: Runtime, *, retry: RetryConfig | None = None
    ) -> None:
        self.settings = settings
        self._runtime = runtime
        self._lock = runtime.lock()
        self._made: Any = None
        self.attempts = Attempts(runtime.clock, runtime.random, settings.deadline_s, retry)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.settings.endpoint})"

    def __reduce__(self) -> Any:
        raise TypeError("an S3Client holds connections: make one where it is needed")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def retries(self) -> int:
        """Attempts beyond the first, of all calls so far."""
        return self.attempts.retries

    def close(self) -> None:
        """Close idle connections; safe twice. A later call connects again."""
        with self._lock:
            made, self._made = self._made, None
        if made is not None:
            made.close()

    @property
    def _driver(self) -> Any:
        made = self._made
        if made is None:
            # Made under the lock: building one reads files, and two at a time confuse the driver.
            with self._lock:
                if self._made is None:
                    self._made = make_driver(self.settings)
                made = self._made
        return made

    def _call(
        self,
        operation: str,
        subject: str,
        call: Callable[[Any, int], R],
        *,
        once: bool = False,
    ) -> R:
        driver = self._driver  # made before the deadline runs: it reads many files

        def attempt(number: int) -> R:
            with translated(operation, subject):
                return call(driver, number)

        return self.attempts.run(attempt, once=once)

    def head_bucket(self, bucket: str) -> str:
        """Check that a bucket is there and may be listed; return its region, or an empty text.

        Raises:
            ConfigError: It is not there, or is in another region (the message names it).
            StoreRejected: The credentials may not.
        """
        answer = self._call("head_bucket", bucket, lambda s3, _: s3.head_bucket(Bucket=bucket))
        return str(answer.get("BucketRegion", ""))

    def head(
        self, bucket: str, key: str, *, version: str | None = None, sure: bool = False
    ) -> S3Info | None:
        """Return what is known of an object; None where there is none.

        The answer to a HEAD has no body: an absent bucket looks like an absent object.

        Args:
            bucket: Where it is.
            key: Its name.
            version: A version id; None is the newest.
            sure: Ask for the bucket, too, before saying None: for callers who take that for done.
                Costs one more request then.

        Raises:
            ConfigError: With `sure`: there is no such bucket.
        """
        given = {"Bucket": bucket, "Key": key} | ({"VersionId": version} if version else {})
        try:
            answer = self._call("head", f"{bucket}/{key}", lambda s3, _: s3.head_object(**given))
        except NoSuchKey:
            if sure:
                self.head_bucket(bucket)
            return None
        return info_of(key, answer)
