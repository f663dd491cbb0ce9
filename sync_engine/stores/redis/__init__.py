"""L2 on Redis, Valkey, Redis Cluster or Sentinel."""

from sync_engine.stores.redis.store import RedisStore

__all__ = ["RedisStore"]
