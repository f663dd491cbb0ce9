"""redis-py's errors, translated at the door."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from redis import exceptions as redis_errors

from sync_engine.errors import StoreRejected, StoreUnavailable

__all__ = ["STORE", "translated"]

STORE = "redis"
_DENIED = (
    redis_errors.AuthenticationError,
    redis_errors.AuthorizationError,
    redis_errors.NoPermissionError,
)
_HINTS = (
    (
        "OutOfMemory",
        "Redis is full: raise maxmemory, or let it evict (maxmemory-policy allkeys-lru)",
    ),
    ("MISCONF", "Redis cannot save to disk and refuses writes"),
    ("READONLY", "this server is a replica: point redis_url at the master, or use redis+sentinel"),
    ("LOADING", "Redis is still loading its data"),
    ("CLUSTERDOWN", "the cluster does not cover all slots"),
    ("BUSY", "a script blocks the server"),
    ("max number of clients", "raise maxclients"),
    ("MOVED", "this is a cluster: use redis+cluster://"),
    ("CROSSSLOT", "this is a cluster: use redis+cluster://"),
)
_DENIED_WORDS = ("NOAUTH", "WRONGPASS", "NOPERM", "invalid username-password", "invalid password")


@contextmanager
def translated(operation: str) -> Iterator[None]:
    """Raise the engine's errors in place of redis-py's; unknown ones count as transient."""
    try:
        yield
    except _DENIED as exc:
        raise StoreRejected(STORE, operation, "check the user, its password and its ACL") from exc
    except redis_errors.DataError as exc:
        raise StoreRejected(STORE, operation, "a value cannot be sent") from exc
    except redis_errors.RedisError as exc:
        text = f"{type(exc).__name__} {exc}"
        if any(word in text for word in _DENIED_WORDS):
            hint = "check the user, its password and its ACL"
            raise StoreRejected(STORE, operation, hint) from exc
        known = (hint for word, hint in _HINTS if word in text)
        raise StoreUnavailable(STORE, operation, next(known, type(exc).__name__)) from exc
    except (OSError, TimeoutError) as exc:
        raise StoreUnavailable(STORE, operation, type(exc).__name__) from exc
