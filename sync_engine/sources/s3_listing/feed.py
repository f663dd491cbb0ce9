"""The listing source as the engine's port: batches of items, acknowledged by token."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from sync_engine.core.item import Change, ContentType, check_id
from sync_engine.errors import (
    ConfigError,
    CorruptData,
    InvalidItem,
    StoreRejected,
    StoreUnavailable,
)
from sync_engine.ports import AdapterContext, SourceBatch
from sync_engine.s3.address import S3Address, S3Settings
from sync_engine.sources.s3_listing.changes import (
    Deleted,
    Renamed,
    S3Change,
    S3Object,
    TooManyDeletions,
)
from sync_engine.sources.s3_listing.source import S3ListingSource
from sync_engine.telemetry import get_logger

__all__ = ["S3ListingFeed", "from_settings"]

_log = get_logger("sources.s3_listing")
_BATCH_BYTES: Final = 16 << 20
_BYTES_MAX: Final = 16 << 20
_TRIES_MAX: Final = 5
_OWN: Final = frozenset(
    {
        "prefix", "include", "exclude", "identity", "renames", "baseline", "versions", "workers",
        "max_delete", "force_delete", "rebase",
    }
)  # fmt: skip


class S3ListingFeed:
    """Gives objects of a bucket as items; implements the port `Source`.

    An item is the object's description as JSON, or the object's bytes, verified. An object that
    cannot be an item (too large, id too long, damaged, refused) is parked: remembered with its
    reason in the state file, logged and counted, and taken up again when it changes. One that is
    damaged or refused is asked for again after every scan, too; so is one that failed five times
    in a row for a passing reason while the bucket could be listed: it holds up no others.

    Args:
        name: Of this instance.
        source: The changes; closed with this feed.
        content: ``metadata`` or ``object``.
        id_template: Makes the id: ``{key}``, ``{bucket}`` and ``{name}`` (the key without prefix).
        bytes_max: Objects that are larger are parked.
        interval_s: Seconds from the begin of a scan to that of the next (above 0).
        now: Monotonic seconds.
    """

    def __init__(
        self,
        name: str,
        source: S3ListingSource,
        *,
        content: str = "metadata",
        id_template: str = "{key}",
        bytes_max: int = _BYTES_MAX,
        interval_s: float = 60.0,
        now: Callable[[], float],
    ) -> None:
        if content not in {"metadata", "object"}:
            raise ConfigError(f"content must be metadata or object, got {content!r}")
        if not interval_s > 0:
            raise ConfigError(f"interval_s must be above 0 seconds, got {interval_s!r}")
        if bytes_max < 0:
            raise ConfigError(f"bytes_max must be 0 or more, got {bytes_max!r}")
        self.name = name
        self.source = source
        self._content = content
        self._template = id_template
        self._bytes_max = bytes_max
        self._interval_s = interval_s
        self._now = now
        self._given = 0
        self._next_scan_s = 0.0
        self._scan_began_s = 0.0
        self._scanning = False
        self._failing: tuple[S3Object | None, int] = (None, 0)
        self._counts = {"parked": 0.0, "vanished": 0.0, "given": 0.0, "refused_scans": 0.0}
        try:
            self._id("key")
        except (KeyError, IndexError, ValueError, AttributeError) as exc:
            raise ConfigError(
                f"id_template {id_template!r} cannot be filled: it may hold {{key}}, {{bucket}} "
                "and {name}"
            ) from exc
        if self._id("\ue000") == self._id("\ue001"):
            raise ConfigError(f"id_template {id_template!r} gives all objects one id: add {{key}}")

    def attach(self) -> None:
        """Open the state and look whether the bucket can be listed.

        Raises:
            StoreUnavailable: It cannot be asked now.
            ConfigError: Bucket, credentials or state file are wrong.
            StoreRejected: The credentials may not list the bucket.
        """
        self.source.open()
        address = self.source.address
        self.source.client.list_page(address.bucket, address.prefix, max_keys=1)
        self._given = self.source.state.acked

    def poll(self, items_max: int) -> SourceBatch:
        """Return up to `items_max` changes; at most one page is listed for them.

        With contents, a batch ends at 16 MiB. A rename counts as two.

        Raises:
            StoreUnavailable: Try again later; nothing was skipped. What came before the change
                that failed was given by the call before.
        """
        found = self.source.waiting(self._given, max(1, items_max // 2))
        wait_s = 0.0
        if not found:
            wait_s = self._scan_step()
            found = self.source.waiting(self._given, max(1, items_max // 2))
        changes: list[Change] = []
        size = 0
        given = self._given
        for change in found:
            if size >= _BATCH_BYTES:
                break
            try:
                made = self._items(change)
            except StoreUnavailable:
                if given == self._given:
                    raise
                break  # those before it need not wait for it
            size += sum(item.size_bytes for item in made)
            changes += made
            given = change.seq
        self._given = given
        self._counts["given"] += len(changes)
        return SourceBatch(
            changes=changes, token=str(given).encode(), wait_s=0.0 if found else wait_s
        )

    def ack(self, token: bytes) -> None:
        """Remember that everything up to the token was taken."""
        self.source.ack(int(token))

    def progress(self) -> Mapping[str, float]:
        """Return counters of the scan and of this feed. Never blocks; any thread."""
        return {**self.source.progress(), **self._counts}

    def close(self) -> None:
        """Close state and connections."""
        self.source.close()
        self._scanning = False

    def _scan_step(self) -> float:
        """List one page, or tell how long that can wait."""
        now = self._now()
        if not self._scanning:
            if now < self._next_scan_s:
                return self._next_scan_s - now
            self._scanning, self._scan_began_s = True, now
        try:
            ended = self.source.step()
        except TooManyDeletions as exc:
            self._counts["refused_scans"] += 1
            _log.error("s3_listing_refused", source=self.name, reason=exc.hint)
            ended = True
        if not ended:
            return 0.0
        self._scanning = False
        self._next_scan_s = self._scan_began_s + self._interval_s
        return max(0.0, self._next_scan_s - self._now())

    # -- items ------------------------------------------------------------------------------------

    def _id(self, key: str) -> str:
        address = self.source.address
        return self._template.format(
            key=key, bucket=address.bucket, name=key.removeprefix(address.prefix)
        )

    def _items(self, change: S3Change) -> list[Change]:
        made = []
        if isinstance(change, Deleted | Renamed):
            made += self._gone(change.old)
        if not isinstance(change, Deleted):
            made += self._there(change.new)
        return made

    def _gone(self, old: S3Object) -> list[Change]:
        self.source.state.unpark(old.key)
        try:
            return [Change(check_id(self._id(old.key)), 0, None)]
        except InvalidItem:
            return []  # it never was an item

    def _there(self, new: S3Object) -> list[Change]:
        try:
            id = check_id(self._id(new.key))
            content = self._content_of(new)
        except (InvalidItem, StoreRejected, CorruptData, StoreUnavailable) as exc:
            if isinstance(exc, StoreUnavailable) and not self._is_to_blame(new):
                raise
            self._park(new, str(exc))
            if not isinstance(exc, InvalidItem) and new.size <= self._bytes_max:
                self.source.state.doubt(new.key)  # access may be granted, and wires be mended
            return []
        self.source.state.unpark(new.key)
        if content is None:
            # Gone since it was listed. The next scan tells its deletion, or, where it is back by
            # then, tells it anew: it may be just what the state remembers.
            self._counts["vanished"] += 1
            self.source.state.doubt(new.key)
            return []
        kind = ContentType.JSON if self._content == "metadata" else ContentType.BINARY
        return [Change(id, 0, content, int(kind))]

    def _is_to_blame(self, failed: S3Object) -> bool:
        """Tell whether others need not wait any longer for an object that could not be read.

        Raises:
            StoreUnavailable: The bucket cannot be asked either: it is not this object.
        """
        address = self.source.address
        self.source.client.list_page(address.bucket, address.prefix, max_keys=1)
        before, tries = self._failing
        tries = tries + 1 if before == failed else 1
        self._failing = (failed, tries)
        return tries >= _TRIES_MAX or self.source.state.is_parked(failed)

    def _content_of(self, found: S3Object) -> bytes | None:
        """Return what the item holds; None where the object is gone."""
        if self._content == "metadata":
            fields = {
                "bucket": self.source.address.bucket,
                "key": found.key,
                "etag": found.etag.partition(";")[0],
                "size": found.size,
                "modified_ms": found.modified_ms,
            }
            return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()
        got = self.source.client.get_bytes(
            self.source.address.bucket, found.key, bytes_max=self._bytes_max
        )
        return None if got is None else got[0]

    def _park(self, found: S3Object, reason: str) -> None:
        if not self.source.state.park(found, reason):
            return
        self._counts["parked"] += 1
        _log.warning("s3_object_parked", source=self.name, key=found.key, reason=reason)


def from_settings(context: AdapterContext, **settings: Any) -> S3ListingFeed:
    """Make the feed from settings, as a pipeline names them.

    Args:
        context: Name, runtime, directory for the state file.
        settings: ``url`` (``s3://bucket/prefix``) or ``bucket`` and ``prefix``; those of
            `S3Settings`; ``state`` (None is a file in the data directory); those of
            `S3ListingSource`; ``content``, ``id_template``, ``bytes_max``, ``interval_s``.

    Raises:
        ConfigError: A setting is unknown, missing or out of range.
    """
    given = dict(settings)
    url = given.pop("url", None)
    if url is not None:
        if "bucket" in given:
            raise ConfigError(f"source {context.name}: give url or bucket, not both")
        s3_names = {name: given.pop(name) for name in S3Settings.names() & given.keys()}
        address, s3 = S3Settings.from_url(str(url), **s3_names)
        given.setdefault("prefix", address.prefix)
        bucket = address.bucket
    else:
        s3, given = S3Settings.taken_from(given)
        bucket = given.pop("bucket", "")
        if not bucket:
            raise ConfigError(f"source {context.name}: needs url = 's3://bucket/prefix'")
    state = given.pop("state", None) or context.data_dir / f"{context.name}.s3-listing.db"
    own = {name: given.pop(name) for name in _OWN & given.keys()}
    feed = {
        name: given.pop(name)
        for name in ("content", "id_template", "bytes_max", "interval_s")
        if name in given
    }
    if given:
        known = sorted(_OWN | {"url", "state", "content", "id_template", "bytes_max", "interval_s"})
        raise ConfigError(
            f"source {context.name}: unknown settings {', '.join(sorted(given))}; there are "
            f"{', '.join(known)} and those of S3"
        )
    S3Address(bucket, str(own.get("prefix", "")))
    try:
        source = S3ListingSource(
            bucket,
            context.runtime,
            state=state,
            client=None,
            settings=s3,
            **own,
        )
    except TypeError as exc:
        raise ConfigError(f"source {context.name}: {exc}") from exc
    return S3ListingFeed(context.name, source, now=context.runtime.clock.monotonic, **feed)
