"""redis-py's errors become ours, by what the caller should do about them."""

from __future__ import annotations

import pytest
from redis import exceptions as driver

from sync_engine.errors import StorageError, StoreRejected, StoreUnavailable
from sync_engine.redis_link.errors import translated

SEEN = [
    (driver.OutOfMemoryError("command not allowed when used memory > 'maxmemory'."), "full"),
    (driver.ResponseError("OOM command not allowed, script: f_0"), "full"),
    (driver.BusyLoadingError("Redis is loading the dataset in memory"), "loading"),
    (driver.ReadOnlyError("You can't write against a read only replica."), "replica"),
    (driver.ResponseError("MISCONF Redis is configured to save RDB snapshots"), "save to disk"),
    (driver.ClusterDownError("The cluster is down"), "all slots"),
    (driver.TryAgainError("Multiple keys request during rehashing of slot"), "moving slots"),
    (driver.ResponseError("BUSY Redis is busy running a script."), "script"),
    (driver.ResponseError("NOREPLICAS Not enough good replicas to write."), "replicas"),
    (driver.ConnectionError("max number of clients reached"), "maxclients"),
    (driver.TimeoutError("Timeout reading from socket"), "in time"),
    (driver.ConnectionError("Connection refused"), "ConnectionError"),
    (ConnectionResetError("reset"), "ConnectionResetError"),
    (driver.ResponseError("something new"), "ResponseError"),
]
DENIED = [
    (driver.AuthenticationError("invalid username-password pair or user is disabled."), "password"),
    (driver.ResponseError("WRONGPASS invalid username-password pair"), "password"),
    (driver.ResponseError("NOAUTH Authentication required."), "asks for a password"),
    (driver.NoPermissionError("this user has no permissions to run the 'set' command"), "ACL"),
    (driver.ResponseError("DB index is out of range"), "database"),
    (driver.ResponseError("Protocol error: invalid bulk length"), "proto-max-bulk-len"),
    (driver.DataError("Invalid input of type"), "cannot be sent"),
]


@pytest.mark.parametrize(("error", "hint"), SEEN)
def test_what_may_pass_is_unavailable(error: Exception, hint: str) -> None:
    with pytest.raises(StoreUnavailable, match=hint) as caught, translated("apply"):
        raise error
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(("error", "hint"), DENIED)
def test_what_can_never_work_is_rejected(error: Exception, hint: str) -> None:
    with pytest.raises(StoreRejected, match=hint) as caught, translated("apply"):
        raise error
    assert caught.value.__cause__ is error


def test_our_own_errors_and_foreign_ones_pass_as_they_are() -> None:
    ours = StoreUnavailable("redis", "apply")
    with pytest.raises(StorageError) as caught, translated("apply"):
        raise ours
    assert caught.value is ours
    with pytest.raises(KeyError), translated("apply"):
        raise KeyError
