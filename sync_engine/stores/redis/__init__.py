"""L2 on Redis, Valkey, Redis Cluster or Sentinel."""

try:
    import redis as _driver  # noqa: F401
except ModuleNotFoundError as exc:
    from sync_engine.errors import ConfigError

    raise ConfigError("redis_url: install the driver: pip install 'sync-engine[redis]'") from exc

from sync_engine.stores.redis.feed import RedisFeed
from sync_engine.stores.redis.merkle import RedisMerkleStore
from sync_engine.stores.redis.store import RedisStore

__all__ = ["RedisFeed", "RedisMerkleStore", "RedisStore"]
