"""Dead letters, health and figures."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sync_engine.core.pressure import BackpressureLevel
from sync_engine.core.results import (
    Health,
)
from sync_engine.face.life import Face
from sync_engine.flow.inspect import engine_stats, measure_health
from sync_engine.telemetry import Metrics
from sync_engine.wal.records import DeadLetter

__all__ = ["Upkeep"]


class Upkeep(Face):
    """Shows how the engine does, and what it could not deliver."""

    def dead_letters(self) -> list[DeadLetter]:
        """Return what destinations refused for good, in log order."""
        return self._open().log.dead.list()

    def requeue_dead_letters(self, positions: Iterable[int] | None = None) -> int:
        """Send dead letters again, with the versions they have; return how many.

        Args:
            positions: Which; None is all.
        """
        log = self._open().log
        letters = self._letters(positions)
        for letter in letters:
            log.requeue(letter)
        return len(letters)

    def drop_dead_letters(self, positions: Iterable[int] | None = None) -> int:
        """Forget dead letters for good; return how many. The only call that gives data up."""
        log = self._open().log
        return sum(log.dead.drop(letter) for letter in self._letters(positions))

    def _letters(self, positions: Iterable[int] | None) -> list[DeadLetter]:
        letters = self.dead_letters()
        if positions is None:
            return letters
        wanted = set(positions)
        return [letter for letter in letters if letter.position in wanted]

    def backpressure(self) -> BackpressureLevel:
        """Return how much room is left on the way to the archive."""
        return self._open().writer.level()

    def health(self) -> Health:
        """Ask every tier now, and tell what is amiss. Blocking: one round trip a tier."""
        house, state = self._house, self.state
        health = measure_health(house, state)
        if house is None or not health.live or self.config.passive:
            return health
        return house.doors.told_in(health)

    @property
    def metrics(self) -> Metrics:
        """The engine's meters, for the exporters of `sync_engine.telemetry`."""
        return self._open().metrics

    def stats(self) -> dict[str, Any]:
        """Return counters and gauges by name; touches no server."""
        house = self._open()
        return engine_stats(house) | house.doors.stats()
