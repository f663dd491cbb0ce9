"""What a caller may ask of one write."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import timedelta

from sync_engine.core.item import VERSION_MAX, Route, check_state
from sync_engine.errors import InvalidItem

__all__ = ["TTL_S_MAX", "CacheTtl", "Durability", "OptionsKey", "SubmitOptions", "ttl_ms"]

TTL_S_MAX = 10 * 365 * 86_400
_L2, _L3 = int(Route.L2), int(Route.L3)  # plain numbers: flags are slow on hot paths


class Durability(enum.StrEnum):
    """What an acknowledgement means; see the loss contract."""

    MEMORY = "memory"
    LOG = "log"
    FSYNC = "fsync"
    ARCHIVE = "archive"


class CacheTtl(enum.IntEnum):
    """Common times to live, in seconds. Any positive number or timedelta is as good."""

    MINUTE = 60
    SHORT = 300
    MEDIUM = 900
    HOUR = 3_600
    DAY = 86_400
    WEEK = 604_800


def ttl_ms(ttl: float | timedelta) -> int:
    """Return a time to live in whole milliseconds, rounded up.

    Raises:
        InvalidItem: It is no number or timedelta, not positive, or above ten years.
    """
    seconds = ttl.total_seconds() if isinstance(ttl, timedelta) else ttl
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise InvalidItem(f"ttl must be seconds or a timedelta, not {type(ttl).__name__}")
    if not 0 < seconds <= TTL_S_MAX:
        raise InvalidItem(f"ttl must be above 0 and at most {TTL_S_MAX} seconds, got {ttl!r}")
    return -int(-seconds * 1000 // 1)


@dataclass(frozen=True, slots=True)
class OptionsKey:
    """The part of the options that decides where a change goes."""

    l2: bool
    l3: bool
    ttl_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmitOptions:
    """Options of one write.

    Attributes:
        l2: Keep the value in L2.
        l3: Keep the value in L3, the archive.
        ttl: Seconds or timedelta until the item expires in every tier; None is never.
        state: Overrides the item's state label.
        durability: What to wait for; None is the engine's default.
        if_version: Write only over this version, else `Conflict`.
        if_absent: Write only where no item is, else `Conflict`.
        timeout: Seconds this call may wait for room or an acknowledgement; None is the engine's.

    Raises:
        InvalidItem: An option is out of range, or two contradict each other.
    """

    l2: bool = True
    l3: bool = True
    ttl: float | timedelta | None = None
    state: str | None = None
    durability: Durability | None = None
    if_version: int | None = None
    if_absent: bool = False
    timeout: float | None = None

    def __post_init__(self) -> None:
        if not (self.l2 or self.l3):
            raise InvalidItem("an item has to be kept somewhere: l2 and l3 are both off")
        if self.ttl is not None:
            ttl_ms(self.ttl)
        if self.state is not None:
            check_state(self.state)
        if self.durability is not None and not isinstance(self.durability, Durability):
            levels = ", ".join(Durability)
            try:
                object.__setattr__(self, "durability", Durability(self.durability))
            except ValueError:
                raise InvalidItem(f"durability must be one of {levels}") from None
        if self.if_version is not None:
            if self.if_absent:
                raise InvalidItem("if_version and if_absent exclude each other")
            if type(self.if_version) is not int or not 0 <= self.if_version <= VERSION_MAX:
                raise InvalidItem(f"if_version must be a version, got {self.if_version!r}")
        if self.durability is Durability.ARCHIVE and not self.l3:
            raise InvalidItem("durability 'archive' needs l3")

    @classmethod
    def cache(cls, ttl: float | timedelta) -> SubmitOptions:
        """Keep the item in the cache tiers only, for a while."""
        return cls(l3=False, ttl=ttl)

    @classmethod
    def durable(cls) -> SubmitOptions:
        """Keep the item in the archive only; an older value in L2 is invalidated."""
        return cls(l2=False)

    @property
    def routes(self) -> int:
        """The tiers that keep the value, as bits of `Route`."""
        return (_L2 if self.l2 else 0) | (_L3 if self.l3 else 0)

    @property
    def expected(self) -> int | None:
        """The version that has to be there before the write: 0 is absent, None is any."""
        return 0 if self.if_absent else self.if_version

    @property
    def key(self) -> OptionsKey:
        """The part that decides where a change goes."""
        return OptionsKey(self.l2, self.l3, 0 if self.ttl is None else ttl_ms(self.ttl))
