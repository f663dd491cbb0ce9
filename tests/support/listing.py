"""Helpers for tests of the listing source."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sync_engine.sources.s3_listing import (
    Added,
    Deleted,
    Modified,
    Renamed,
    S3Change,
    S3ListingSource,
)

__all__ = ["OPERATIONS", "listing", "make", "replay", "run", "told"]

OPERATIONS = int(os.environ.get("S3_OPERATIONS", "300"))


def make(server: Any, bucket: str, state: Path, runtime: Any, **given: Any) -> S3ListingSource:
    """Make a source on a test server; settings of S3 stand under ``s3``."""
    settings = server.settings(**{"deadline_s": 20.0} | given.pop("s3", {}))
    return S3ListingSource(bucket, runtime, state=state, settings=settings, **given)


def run(source: S3ListingSource) -> list[S3Change]:
    """Run one scan, acknowledge all, close."""
    with source:
        changes = []
        for change in source.changes():
            changes.append(change)
            source.ack(change.seq)
        return changes


def replay(changes: Iterable[S3Change], onto: dict[str, str]) -> dict[str, str]:
    """Apply changes to a dict of key to ETag, refusing what cannot be."""
    for change in changes:
        match change:
            case Added(new=new):
                assert new.key not in onto, change
                onto[new.key] = new.etag
            case Modified(old=old, new=new):
                assert onto[new.key] == old.etag, change
                onto[new.key] = new.etag
            case Deleted(old=old):
                assert onto.pop(old.key) == old.etag, change
            case Renamed(old=old, new=new):
                assert onto.pop(old.key) == old.etag, change
                assert new.key not in onto
                onto[new.key] = new.etag
    return onto


def told(changes: Iterable[S3Change]) -> list[tuple[str, str]]:
    """Return what was told, shortly."""
    return [(str(change.op), change.key) for change in changes]


def listing(server: Any, bucket: str, prefix: str = "") -> dict[str, str]:
    """Return key and ETag of every object, asked with a stock boto3."""
    client = server.boto()
    found: dict[str, str] = {}
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for each in page.get("Contents", ()):
            found[each["Key"]] = each["ETag"].strip('"')
    client.close()
    return found
