"""Which entry of a bounded cache goes next: eviction policies without locks or clocks.

A policy keeps the order of entries; the cache that owns it keeps the bytes and holds its own lock
around every call. A hit only raises `Entry.mark` (and calls `touch`, where a policy has one), so
that readers need no lock; everything else happens when something is written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from sync_engine.core.eviction.base import Entry, EvictionPolicy
from sync_engine.core.eviction.queues import Lru, S3Fifo, Sieve
from sync_engine.core.eviction.tan_curve import TanCurve, tan_curve_multiplier, tan_curve_score
from sync_engine.errors import ConfigError

__all__ = [
    "DEFAULT_POLICY",
    "POLICIES",
    "Entry",
    "EvictionPolicy",
    "Lru",
    "S3Fifo",
    "Sieve",
    "TanCurve",
    "eviction_policy",
    "tan_curve_multiplier",
    "tan_curve_score",
]

POLICIES: Mapping[str, Callable[[int], EvictionPolicy]] = {
    "s3-fifo": S3Fifo,
    "sieve": lambda _: Sieve(),
    "lru": lambda _: Lru(),
    "tan-curve": lambda _: TanCurve(),
}
DEFAULT_POLICY = "s3-fifo"


def eviction_policy(name: str, bytes_max: int) -> EvictionPolicy:
    """Make the policy of a name, for a cache of so many bytes.

    Raises:
        ConfigError: There is no policy of that name.
    """
    make = POLICIES.get(name)
    if make is None:
        raise ConfigError(f"l1_policy must be one of {', '.join(POLICIES)}, got {name!r}")
    return make(bytes_max)
