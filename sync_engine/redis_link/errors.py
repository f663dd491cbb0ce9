"""redis-py's errors, translated at the door."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from redis import exceptions as redis_errors

from sync_engine.errors import StorageError, StoreRejected, StoreUnavailable

__all__ = ["STORE", "ForeignLayout", "is_redirect", "translated"]

STORE = "redis"
# redis-py cuts known words off an error and makes a class of them: both are looked at.
_PERMANENT = (
    ("NOAUTH", "the server asks for a password: put it into redis_url"),
    ("Authentication required", "the server asks for a password: put it into redis_url"),
    ("WRONGPASS", "check the user and its password"),
    ("invalid username-password", "check the user and its password"),
    ("invalid password", "check the user and its password"),
    ("without any password configured", "the server has no password: take it out of redis_url"),
    ("AuthenticationError", "check the user and its password"),
    ("NOPERM", "the user's ACL lacks a command or the keys of redis_prefix"),
    ("NoPermission", "the user's ACL lacks a command or the keys of redis_prefix"),
    ("AuthorizationError", "the user's ACL lacks a command or the keys of redis_prefix"),
    ("DB index", "the server has no database of this number"),
    ("SELECT is not allowed", "a cluster has database 0 only"),
    ("cluster support disabled", "this server is no cluster: use redis://"),
    ("unknown command", "this server lacks a command that is needed"),
    ("invalid bulk length", "a value is larger than the server's proto-max-bulk-len"),
    ("string exceeds maximum allowed size", "a value is larger than the server takes"),
)
_TRANSIENT = (
    (
        "OutOfMemory",
        "Redis is full: raise maxmemory, or let it evict (maxmemory-policy allkeys-lru)",
    ),
    ("OOM ", "Redis is full: raise maxmemory, or let it evict (maxmemory-policy allkeys-lru)"),
    ("MISCONF", "Redis cannot save to disk and refuses writes"),
    ("ReadOnly", "this server is a replica: point redis_url at the master, or use redis+sentinel"),
    ("READONLY", "this server is a replica: point redis_url at the master, or use redis+sentinel"),
    ("BusyLoading", "Redis is still loading its data"),
    ("LOADING", "Redis is still loading its data"),
    ("MASTERDOWN", "this server is a replica that has lost its master"),
    ("ClusterDown", "the cluster does not cover all slots"),
    ("CLUSTERDOWN", "the cluster does not cover all slots"),
    ("TryAgain", "the cluster is moving slots"),
    ("AskError", "the cluster is moving slots"),
    ("Moved", "the cluster is moving slots"),
    ("MOVED", "this is a cluster: use redis+cluster://"),
    ("CROSSSLOT", "this is a cluster: use redis+cluster://"),
    ("NOREPLICAS", "the server has too few replicas to take writes (min-replicas-to-write)"),
    ("BUSY", "a script blocks the server"),
    ("Redis is busy running", "a script blocks the server"),
    ("max number of clients", "raise the server's maxclients"),
    ("Timeout", "no answer in time"),
)
_REDIRECTS = ("Moved", "MOVED", "AskError", "ASK ", "TryAgain", "TRYAGAIN", "ClusterDown")


class ForeignLayout(StoreUnavailable):
    """The keys of our prefix are kept in a form that this version does not know."""


def _words(exc: BaseException) -> str:
    return f"{type(exc).__name__} {exc}"


def is_redirect(exc: BaseException) -> bool:
    """Tell whether a cluster's node says that a slot is not its own, or not for now."""
    text = _words(exc)
    return any(word in text for word in _REDIRECTS)


@contextmanager
def translated(operation: str) -> Iterator[None]:
    """Raise the engine's errors in place of redis-py's; unknown ones count as transient."""
    try:
        yield
    except StorageError:
        raise
    except redis_errors.DataError as exc:
        raise StoreRejected(STORE, operation, "a value cannot be sent") from exc
    except (redis_errors.RedisError, OSError) as exc:
        text = _words(exc)
        for word, hint in _PERMANENT:
            if word in text:
                raise StoreRejected(STORE, operation, hint) from exc
        hints = (hint for word, hint in _TRANSIENT if word in text)
        raise StoreUnavailable(STORE, operation, next(hints, type(exc).__name__)) from exc
