"""`sync-engine s3-changes`: what happened in a bucket since the last time."""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from sync_engine.cli.command import Command, ExitCode, UsageError
from sync_engine.cli.context import Context
from sync_engine.cli.output import Advance, count, duration
from sync_engine.errors import ConfigError
from sync_engine.runtime import SystemRuntime
from sync_engine.s3.address import S3Address, S3Settings
from sync_engine.sources.s3_listing.changes import (
    Deleted,
    Identity,
    Modified,
    Renamed,
    S3Change,
    S3Object,
    TooManyDeletions,
)
from sync_engine.sources.s3_listing.check import check
from sync_engine.sources.s3_listing.source import S3ListingSource

__all__ = ["S3_CHANGES"]

_GROUP: Final = 500
_PAGE: Final = 1000
_SIGNS: Final = {"added": "+", "modified": "*", "deleted": "-", "renamed": ">"}


def _arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("url", metavar="s3://BUCKET/PREFIX", help="what to list; the prefix may be empty")
    add("--state", metavar="FILE", help="what was seen before (default: a file in data_dir)")
    add("--check", action="store_true", help="compare bucket and state; change nothing")
    group = parser.add_argument_group("which S3")
    add = group.add_argument
    add("--endpoint", metavar="URL", help="another S3 than AWS, as in http://127.0.0.1:9000")
    add("--region", metavar="NAME", help="of the bucket")
    add("--profile", metavar="NAME", help="of the AWS configuration files")
    add("--addressing", choices=("auto", "path", "virtual"), default="auto", help="of buckets")
    add("--page-size", type=int, default=1000, metavar="N", help="keys a request, up to 1000")
    add("--deadline", type=float, default=120.0, metavar="SECONDS", help="of a request, retried")
    group = parser.add_argument_group("what is told")
    add = group.add_argument
    add("--include", action="append", default=[], metavar="GLOB", help="only such keys")
    add("--exclude", action="append", default=[], metavar="GLOB", help="no such keys")
    add("--identity", choices=[str(i) for i in Identity], default="etag", help="of objects")
    add("--renames", action="store_true", help="tell renames, where they are certain")
    add("--versions", action="store_true", help="list versions and delete markers")
    add("--baseline", action="store_true", help="a first scan tells nothing")
    add("--workers", type=int, default=1, metavar="N", help="ranges listed at a time, up to 8")
    add("--max-delete", type=int, metavar="N", help="refuse more deletions (default: half)")
    add("--force-delete", action="store_true", help="tell any number of deletions")
    add("--rebase", action="store_true", help="take over a state of another listing")


def _run(context: Context) -> int:
    args, output = context.args, context.output
    if not args.url.startswith("s3://"):
        raise UsageError(f"{args.url}: must be s3://bucket/prefix")
    if args.check and args.rebase:
        raise UsageError("--check changes nothing, and --rebase does: give one of them")
    with _source(context) as source:
        if args.check:
            return _check(context, source)
        refused: TooManyDeletions | None = None
        with output.progress("listing", source.state.scan.objects or None) as advance:
            try:
                _tell_all(context, source, advance)
            except TooManyDeletions as exc:
                refused = exc
        _summary(context, source)
        if refused is not None:
            output.error(str(refused), "--max-delete N or --force-delete tells them")
            return ExitCode.PARTLY
        return ExitCode.OK


@contextmanager
def _source(context: Context) -> Iterator[S3ListingSource]:
    args = context.args
    address, settings = S3Settings.from_url(
        args.url,
        endpoint_url=args.endpoint,
        region=args.region,
        profile=args.profile,
        addressing=args.addressing,
        page_size=args.page_size,
        deadline_s=args.deadline,
    )
    runtime = SystemRuntime("s3-changes")
    source = S3ListingSource(
        address.bucket,
        runtime,
        state=args.state or _default_state(context, address, settings),
        prefix=address.prefix,
        settings=settings,
        include=args.include,
        exclude=args.exclude,
        identity=args.identity,
        renames=args.renames,
        baseline=args.baseline,
        versions=args.versions,
        workers=args.workers,
        max_delete=args.max_delete,
        force_delete=args.force_delete,
        rebase=args.rebase,
    )
    if args.check and not source.path.exists():
        raise ConfigError(f"--state {source.path}: there is no such file to compare with")
    try:
        with source:
            yield source
    finally:
        runtime.close(1.0)


def _default_state(context: Context, address: S3Address, settings: S3Settings) -> Path:
    about = f"{settings.endpoint} {address}".encode()
    mark = hashlib.sha256(about).hexdigest()[:12]
    return context.config.data_dir / "s3-changes" / f"{address.bucket[:40]}-{mark}.db"


def _tell_all(context: Context, source: S3ListingSource, advance: Advance) -> None:
    """Print changes; acknowledge each group once it is with whoever reads us."""
    output, given, listed, ended = context.output, source.state.acked, 0.0, False
    lines = output.json or not output.out.is_terminal
    while True:
        with context.stop.deferred():
            found = source.waiting(given, _GROUP)
            for change in found:
                if lines:
                    output.line(_fields(change))
                else:
                    output.text(_shown(change))
            if found:
                sys.stdout.flush()
                given = found[-1].seq
                source.ack(given)
        if found:
            continue
        if ended:
            return
        ended = source.step()
        now = source.progress()["listed"]
        advance(int(max(0.0, now - listed)))
        listed = now


def _fields(change: S3Change) -> dict[str, Any]:
    fields: dict[str, Any] = {"seq": change.seq, "op": change.op, "key": change.key}
    if isinstance(change, Modified | Renamed | Deleted):
        fields["old"] = _object(change.old)
    if not isinstance(change, Deleted):
        fields["new"] = _object(change.new)
    elif change.marker:
        fields["marker"] = change.marker
    return fields


def _object(found: S3Object) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "key": found.key,
        "etag": found.etag.partition(";")[0],
        "size": found.size,
        "modified_ms": found.modified_ms,
    }
    return fields | ({"version": found.version} if found.version else {})


def _shown(change: S3Change) -> str:
    sign = _SIGNS[change.op]
    if isinstance(change, Renamed):
        return f"{sign} {change.old.key} -> {change.new.key}"
    return f"{sign} {change.key}"


def _summary(context: Context, source: S3ListingSource) -> None:
    output, found = context.output, source.statistics()
    if output.json or not output.out.is_terminal:
        output.line({"op": "summary", **{n: getattr(found, n) for n in _SUMMARY}})
        return
    told = ", ".join(f"{getattr(found, name):,} {name}" for name in _SUMMARY[:5])
    rate = found.listed / found.seconds if found.seconds else 0.0
    pages = count(found.pages, "page")
    output.report(f"{told}; {pages} in {duration(found.seconds)}, {rate:,.0f} keys/s")


_SUMMARY: Final = (
    "added", "modified", "deleted", "renamed", "unchanged", "pages", "objects", "seconds",
    "retries", "waiting",
)  # fmt: skip


def _check(context: Context, source: S3ListingSource) -> int:
    output = context.output
    counts = dict.fromkeys("=+-*!", 0)
    with output.progress("comparing", source.state.scan.objects or None) as advance:
        for number, difference in enumerate(check(source), 1):
            counts[difference.sign] += 1
            if number % _PAGE == 0:
                advance(_PAGE)
            if difference.sign == "=":
                continue
            if output.json:
                output.line({"sign": difference.sign, "key": difference.key})
            else:
                output.text(f"{difference.sign} {difference.key}")
    if output.json:
        output.line({"sign": "summary", "counts": counts})
    else:
        output.report(
            f"{counts['=']:,} the same, {counts['+']:,} only in the bucket, {counts['-']:,} only "
            f"in the state, {counts['*']:,} changed, {counts['!']:,} not comparable"
        )
    return ExitCode.OK if counts["="] == sum(counts.values()) else ExitCode.FAILED


S3_CHANGES = Command(
    name="s3-changes",
    summary="tell what was added, modified and deleted in a bucket since the last time",
    details="""\
Lists the bucket (s3:ListBucket is the only permission needed) and compares it with a state file,
page by page. A line is printed for each change: + added, * modified, - deleted, > renamed; JSON
lines with --json or where standard output is no terminal. What was printed is acknowledged; after a
crash the next run goes on where this one was, and repeats only what may not have arrived.

Deletions are told after a listing that ended without an error, and only if no more than half of the
known keys are gone (see --max-delete); else the exit code is 3. With --check it is 1 if bucket and
state differ: + only in the bucket, - only in the state, * another object.

Credentials come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or the machine's
role. Mistakes in bucket, region, credentials or clock end with 2, a permission that is missing with
1, a server that cannot be reached within the deadline with 4.""",
    example="""\
sync-engine s3-changes s3://photos/2026/ --state photos.db
sync-engine s3-changes s3://photos --endpoint http://127.0.0.1:9000 --json
sync-engine s3-changes s3://photos --check""",
    arguments=_arguments,
    run=_run,
)
