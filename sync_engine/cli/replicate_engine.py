"""``replicate-engine``: pulls from engines with Redis and SQL of their own, until stopped."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import zip_longest

from sync_engine.cli.command import Command, ExitCode, UsageError, seconds
from sync_engine.cli.context import Context
from sync_engine.cli.output import duration
from sync_engine.cli.signals import Interrupted
from sync_engine.engine import SyncEngine
from sync_engine.errors import ConfigError
from sync_engine.replication import Peer, Replicator
from sync_engine.telemetry import get_logger

__all__ = ["REPLICATE_ENGINE"]

_log = get_logger("replication")
_TICK_S = 0.2
_FEED = "feed"


def _arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--peer-redis",
        action="append",
        default=[],
        metavar="URL",
        help="where a peer's feed is; repeat it for more peers ('' for one without)",
    )
    add(
        "--peer-sql",
        action="append",
        default=[],
        metavar="URL",
        help="where that peer's archive is, in the same order ('' for one without)",
    )
    add("--peer-name", action="append", default=[], metavar="NAME", help="default: peer1, peer2 …")
    add("--peer-prefix", default="se", metavar="TEXT", help="redis_prefix of the peers' feeds")
    add("--peer-stream", default="changes", metavar="NAME", help="stream of the peers' feeds")
    add("--only", action="append", default=[], metavar="PREFIX", help="pull these ids only")
    add(
        "--interval",
        type=seconds,
        default=60.0,
        metavar="TIME",
        help="from one comparison of the archives to the next (default: 60s)",
    )
    add("--items-per-s", type=float, default=0.0, metavar="N", help="bound of each path")
    add("--bytes-per-s", type=float, default=0.0, metavar="N", help="bound of each path")
    add(
        "--accept-old",
        action="store_true",
        help="take what is older than tombstone_retention_s, though it may have been deleted here",
    )
    add("--publish", action="store_true", help="publish a feed of one's own to --redis-url")
    add("--once", action="store_true", help="compare with every peer once, take it, and end")
    add("--report", type=seconds, default=30.0, metavar="TIME", help="between two reports")


def _peers(args: argparse.Namespace) -> list[Peer]:
    urls: Sequence[tuple[str, str]] = list(
        zip_longest(args.peer_redis, args.peer_sql, fillvalue="")
    )
    if not urls:
        raise UsageError("there is no peer", "name one with --peer-redis and --peer-sql")
    if args.peer_name and len(args.peer_name) != len(urls):
        raise UsageError(f"{len(args.peer_name)} names for {len(urls)} peers")
    names = args.peer_name or [f"peer{number}" for number in range(1, len(urls) + 1)]
    return [
        Peer(
            name=name,
            redis_url=redis or None,
            sql_url=sql or None,
            redis_prefix=args.peer_prefix,
            stream=args.peer_stream,
            prefixes=tuple(args.only) or ("",),
            interval_s=args.interval,
            items_per_s=args.items_per_s,
            bytes_per_s=args.bytes_per_s,
            accept_old=args.accept_old,
        )
        for name, (redis, sql) in zip(names, urls, strict=True)
    ]


def _publish(engine: SyncEngine) -> None:
    from sync_engine import adapters

    url = engine.config.redis_url
    if url is None:
        raise ConfigError("--publish: redis_url is missing: there is nowhere to publish to")
    context = engine.adapter_context("sink", _FEED)
    settings = {"url": url, "prefix": engine.config.redis_prefix}
    engine.add_sink(_FEED, adapters.build("sink", "redis_stream", context, settings))


def _run(context: Context) -> int:
    args = context.args
    peers = _peers(args)
    if args.once and any(peer.sql_url is None for peer in peers):
        raise UsageError("--once compares: every peer needs its --peer-sql")
    with context.writing() as engine:
        if args.publish:
            _publish(engine)
        with Replicator(engine, peers) as replicator:
            try:
                _loop(context, replicator)
            except Interrupted:
                _report(context, replicator)
    return ExitCode.OK


def _loop(context: Context, replicator: Replicator) -> None:
    clock = context.clock
    reported = started = clock.monotonic()
    while True:
        clock.sleep(_TICK_S)
        now = clock.monotonic()
        if context.args.once:
            done = replicator.status().values()
            if all(0 <= one.compared_s_ago <= now - started + _TICK_S for one in done):
                _report(context, replicator)
                return
        if now - reported >= context.args.report:
            reported = now
            _report(context, replicator)


def _report(context: Context, replicator: Replicator) -> None:
    output = context.output
    for name, one in replicator.status().items():
        if output.json:
            output.line(
                {
                    "peer": name,
                    "connected": one.connected,
                    "lag_s": one.lag_s,
                    "compared_s_ago": one.compared_s_ago,
                    "held": one.held,
                    "gap": one.gap,
                    "errors": list(one.errors),
                }
            )
            continue
        told = [
            "connected" if one.connected else "not connected",
            f"feed {duration(one.lag_s)} behind",
            "not yet compared"
            if one.compared_s_ago < 0
            else f"compared {duration(one.compared_s_ago)} ago",
        ]
        if one.held:
            told.append(f"{one.held} held back, older than deletions are kept")
        told += [text for text in (one.gap, *one.errors) if text]
        output.report(f"{name}: {'; '.join(told)}")
    output.flush()


REPLICATE_ENGINE = Command(
    name="replicate-engine",
    summary="pull from other engines that have Redis and SQL of their own, until stopped",
    details="""\
Follows each peer's feed, compares archives now and then, and takes what is newer there. Nothing is
changed at a peer; run the same command there for the other direction. Where a gap is found in a
feed, the archives are compared at once.""",
    example="""\
sync-engine replicate-engine --peer-redis redis://b/0 --peer-sql mysql://ro@b/items --publish
sync-engine replicate-engine --peer-sql postgresql://ro@b/items --once""",
    arguments=_arguments,
    run=_run,
)
