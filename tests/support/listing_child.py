"""Runs one scan and notes what it delivered and acknowledged, until it is killed.

``python listing_child.py ENDPOINT KEY SECRET BUCKET STATE NOTES RENAMES [FAILPOINT COUNT]``
"""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import nullcontext
from dataclasses import astuple

from sync_engine.core import failpoints
from sync_engine.runtime import SystemRuntime
from sync_engine.s3 import S3Settings
from sync_engine.sources.s3_listing import S3ListingSource


def main() -> None:
    endpoint, key, secret, bucket, state, notes, renames, *point = sys.argv[1:]
    out = os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(*words: object) -> None:
        os.write(out, (json.dumps(words) + "\n").encode())

    left = int(point[1]) if point else 0

    def kill() -> None:
        nonlocal left
        left -= 1
        if left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)

    settings = S3Settings(
        endpoint_url=endpoint, access_key_id=key, secret_access_key=secret, page_size=10
    )
    source = S3ListingSource(
        bucket, SystemRuntime("child"), state=state, settings=settings,
        max_delete=10**9, renames=renames == "yes",
    )  # fmt: skip
    with failpoints.during(point[0], kill) if point else nullcontext():
        source.open()
        source.client.head_bucket(bucket)
        note("ready")
        for change in source.changes():
            fields = [astuple(part)[:2] if part else None for part in (
                getattr(change, "old", None), getattr(change, "new", None)
            )]  # fmt: skip
            note("given", change.seq, str(change.op), *fields)
            source.ack(change.seq)
            note("acked", change.seq)
        source.close()
        note("ended")


if __name__ == "__main__":
    main()
