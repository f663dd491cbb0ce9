"""Versions: hybrid logical clock values in 63 bits.

Layout, high to low: 43 bits of wall-clock milliseconds, 10 bits of counter, 10 bits of engine
number. Values of one engine only grow, whatever the wall clock does.

Source: Kulkarni, Demirbas et al., "Logical Physical Clocks", OPODIS 2014.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sync_engine.core.item import VERSION_MAX

__all__ = [
    "ENGINE_NUMBER_MAX",
    "VersionClock",
    "free_number",
    "ms_of_version",
    "number_of_log",
    "version_of_ms",
]

_STEP = 1 << 10
_MS_SHIFT = 20
ENGINE_NUMBER_MAX = _STEP - 1


def version_of_ms(now_ms: int) -> int:
    """Return the smallest version of a millisecond."""
    return now_ms << _MS_SHIFT


def ms_of_version(version: int) -> int:
    """Return the wall-clock milliseconds of a version."""
    return version >> _MS_SHIFT


def number_of_log(log_uuid: str) -> int:
    """Return the engine number of a log that has not claimed one yet."""
    return int(log_uuid[:8], 16) & ENGINE_NUMBER_MAX


def free_number(wanted: int, held: Sequence[int]) -> int:
    """Choose an engine number.

    Args:
        wanted: Taken if nobody holds it.
        held: Numbers that others hold, the one seen last the longest ago first.

    Returns:
        A number that nobody holds; where all are held, the first of them, for its holder has most
        likely gone for ever.
    """
    taken = set(held)
    if wanted not in taken:
        return wanted
    free = (number for number in range(ENGINE_NUMBER_MAX + 1) if number not in taken)
    return next(free, held[0])


class VersionClock:
    """Issues versions; the owner's lock guards `next`.

    Args:
        now_ms: Wall-clock milliseconds.
        engine_number: 0 to 1023, the low bits of every version issued.
        floor: Nothing at or below this version is issued.
    """

    def __init__(self, now_ms: Callable[[], int], engine_number: int, floor: int = 0) -> None:
        self._now_ms = now_ms
        self._number = engine_number & ENGINE_NUMBER_MAX
        self._last = 0
        self.observe(floor)

    @property
    def number(self) -> int:
        """The engine number in the versions issued."""
        return self._number

    def renumber(self, number: int) -> None:
        """Issue versions of another engine number from now on; they go on growing."""
        self._number = number & ENGINE_NUMBER_MAX

    @property
    def last(self) -> int:
        """The largest version issued or observed."""
        return self._last

    def next(self) -> int:
        """Return a version larger than all issued and observed before."""
        version = (self._now_ms() << _MS_SHIFT) | self._number
        if version <= self._last:
            version = (self._last & ~ENGINE_NUMBER_MAX) + _STEP | self._number
        self._last = version
        return version

    def next_many(self, count: int) -> range:
        """Return so many versions, growing, each larger than all issued and observed before."""
        first = self.next()
        versions = range(first, first + count * _STEP, _STEP)
        self._last = versions[-1]
        return versions

    def observe(self, version: int) -> None:
        """Move past a version that was read or replicated."""
        if self._last < version <= VERSION_MAX - (_STEP << 10):
            self._last = version
