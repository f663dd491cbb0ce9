"""A source, setting by setting."""

from __future__ import annotations

import os
from typing import Any, Self

from sync_engine.errors import ConfigError
from sync_engine.ports import Runtime
from sync_engine.s3.address import S3Settings
from sync_engine.sources.s3_listing.changes import Identity
from sync_engine.sources.s3_listing.source import S3ListingSource

__all__ = ["S3ListingBuilder"]


class S3ListingBuilder:
    """Collects settings; every method returns the builder itself. Secrets never show in its repr.

    Needed are a bucket and a state file; without credentials, the usual chain is asked.
    """

    def __init__(self) -> None:
        self._s3: dict[str, Any] = {}
        self._given: dict[str, Any] = {}

    def __repr__(self) -> str:
        return f"S3ListingBuilder(bucket={self._given.get('bucket')!r})"

    def _set(self, **given: Any) -> Self:
        self._given |= given
        return self

    def _set_s3(self, **given: Any) -> Self:
        self._s3 |= given
        return self

    def bucket(self, name: str) -> Self:
        """Name the bucket."""
        return self._set(bucket=name)

    def prefix(self, prefix: str) -> Self:
        """Look only at keys that begin with this."""
        return self._set(prefix=prefix)

    def region(self, name: str) -> Self:
        """Name the region."""
        return self._set_s3(region=name)

    def credentials(
        self, access_key_id: str, secret_access_key: str, session_token: str | None = None
    ) -> Self:
        """Give keys in place of the usual chain."""
        return self._set_s3(
            access_key_id=access_key_id,
            secret_access_key=secret_access_key,
            session_token=session_token,
        )

    def profile(self, name: str) -> Self:
        """Take credentials and region of a profile in the AWS configuration files."""
        return self._set_s3(profile=name)

    def endpoint(self, url: str) -> Self:
        """Name another S3 than AWS: ``http://host:port``; the bucket then stands in the path."""
        return self._set_s3(endpoint_url=url)

    def addressing(self, style: str) -> Self:
        """Say where the bucket stands: ``auto``, ``path`` or ``virtual``."""
        return self._set_s3(addressing=style)

    def timeouts(
        self,
        *,
        connect_s: float | None = None,
        read_s: float | None = None,
        deadline_s: float | None = None,
    ) -> Self:
        """Bound a connection, an answer, and an operation with its retries, in seconds."""
        given = {
            "connect_timeout_s": connect_s,
            "read_timeout_s": read_s,
            "deadline_s": deadline_s,
        }
        return self._set_s3(**{name: value for name, value in given.items() if value is not None})

    def page_size(self, keys: int) -> Self:
        """Ask for so many keys a page, 1 to 1,000."""
        return self._set_s3(page_size=keys)

    def state(self, path: str | os.PathLike[str]) -> Self:
        """Name the file that remembers."""
        return self._set(state=path)

    def include(self, *patterns: str) -> Self:
        """Look only at keys that match one of these."""
        return self._set(include=patterns)

    def exclude(self, *patterns: str) -> Self:
        """Leave out keys that match one of these."""
        return self._set(exclude=patterns)

    def identity(self, by: Identity | str) -> Self:
        """Say when an object is the same: ``etag``, ``etag+mtime`` or ``size+mtime``."""
        return self._set(identity=by)

    def renames(self) -> Self:
        """Tell renames."""
        return self._set(renames=True)

    def baseline(self) -> Self:
        """Let the first scan only remember."""
        return self._set(baseline=True)

    def versions(self) -> Self:
        """List versions in place of objects."""
        return self._set(versions=True)

    def workers(self, count: int) -> Self:
        """List so many ranges at a time, 1 to 8."""
        return self._set(workers=count)

    def max_delete(self, count: int) -> Self:
        """Refuse scans that miss more keys than this."""
        return self._set(max_delete=count)

    def force_delete(self) -> Self:
        """Tell any number of deletions."""
        return self._set(force_delete=True)

    def rebase(self) -> Self:
        """Take over a state file that remembers something else."""
        return self._set(rebase=True)

    def build(self, runtime: Runtime) -> S3ListingSource:
        """Return the source; it connects to nothing yet.

        Raises:
            ConfigError: Something needed is missing, or a setting is out of range.
        """
        missing = [name for name in ("bucket", "state") if not self._given.get(name)]
        if missing:
            raise ConfigError(f"a source of listings needs {' and '.join(missing)}")
        given = dict(self._given)
        return S3ListingSource(
            given.pop("bucket"), runtime, settings=S3Settings(**self._s3), **given
        )
