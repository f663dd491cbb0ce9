"""The stores that a configuration names."""

from __future__ import annotations

from dataclasses import dataclass

from sync_engine.config import SyncEngineConfig
from sync_engine.ports import ArchiveStore, CacheStore, ChangeFeed, MirrorStore, Runtime

__all__ = ["Stores"]


@dataclass(frozen=True, slots=True)
class Stores:
    """The stores behind the tiers; tests pass their own."""

    l2: CacheStore | None
    l3: ArchiveStore
    feed: ChangeFeed | None = None
    mirror: MirrorStore | None = None

    @classmethod
    def from_config(cls, config: SyncEngineConfig, runtime: Runtime) -> Stores:
        """Build what the configuration names; connects to nothing yet.

        Raises:
            ConfigError: A URL is wrong, or the driver's extra is not installed.
        """
        from sync_engine.stores.sql import SqlArchive

        l2: CacheStore | None = None
        feed: ChangeFeed | None = None
        if config.redis_url is not None:
            from sync_engine.stores.redis import RedisFeed, RedisStore

            l2 = RedisStore(
                config.redis_url,
                prefix=config.redis_prefix,
                clock=runtime.clock,
                connect_timeout_s=config.l2_connect_timeout_s,
                timeout_s=config.l2_timeout_s,
                tombstone_ttl_s=config.l2_tombstone_ttl_s,
                fill_ttl_s=config.l2_fill_ttl_s,
            )
            if config.coherence != "off" and not config.passive:
                feed = RedisFeed(
                    config.redis_url,
                    prefix=config.redis_prefix,
                    clock=runtime.clock,
                    connect_timeout_s=config.l2_connect_timeout_s,
                    timeout_s=config.l2_timeout_s,
                )
        l3 = SqlArchive(
            config.sql_url or f"sqlite:///{config.data_dir.absolute() / 'archive.db'}",
            clock=runtime.clock,
            create_schema=config.create_schema,
            connect_timeout_s=config.l3_connect_timeout_s,
            timeout_s=config.l3_timeout_s,
            merkle=config.merkle,
            merkle_separator=config.merkle_separator,
        )
        mirror: MirrorStore | None = None
        if config.merkle_mirror and config.redis_url is not None:
            from sync_engine.redis_link.stream import StreamLink
            from sync_engine.stores.redis import RedisMerkleStore

            link = StreamLink(
                config.redis_url,
                prefix=config.redis_prefix,
                name="merkle",
                clock=runtime.clock,
                connect_timeout_s=config.l2_connect_timeout_s,
                timeout_s=config.l2_timeout_s,
            )
            mirror = RedisMerkleStore(l3.merkle, link, key=link.keys.stream)
        return cls(l2, l3, feed, mirror)
