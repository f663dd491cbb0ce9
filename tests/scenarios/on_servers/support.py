"""Engines on real servers, and looks into their tiers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sync_engine import (
    SyncEngine,
)
from sync_engine.stores.redis.keys import bucket_of
from sync_engine.testing import SystemClock

Start = Callable[..., SyncEngine]


FAST = {
    "l2_timeout_s": 0.3,
    "l2_connect_timeout_s": 0.3,
    "l2_circuit_open_s": 0.1,
    "l3_timeout_s": 1.0,
    "l3_connect_timeout_s": 1.0,
    "l3_circuit_open_s": 0.1,
    "delivery_delay_s_max": 0.2,
    "read_timeout_s": 1.0,
}


def cold(engine: SyncEngine) -> None:
    house: Any = engine._house
    house.l1.clear()


def stores(engine: SyncEngine) -> Any:
    house: Any = engine._house
    return house.stores


def until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """Wait for something that other threads do."""
    clock = SystemClock()
    deadline = clock.monotonic() + timeout_s
    while not condition():
        assert clock.monotonic() < deadline, "it did not happen in time"
        clock.sleep(0.01)


def value_key(server: Any, change_id: str) -> bytes:
    """Return the key under which Redis holds a value."""
    head = b"se:{%02x}:" % bucket_of(change_id.encode())
    (key,) = [
        key
        for key in server.execute("KEYS", "*")
        if key.startswith(head) and key.endswith(b":" + change_id.encode())
    ]
    return bytes(key)
