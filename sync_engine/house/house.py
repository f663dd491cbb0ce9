"""The engine's life: which jobs run the parts, and in which order they start and stop."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

from sync_engine.core.batcher import FlushReason
from sync_engine.errors import StorageError
from sync_engine.flow.arbiter import Arbiter
from sync_engine.flow.coherence import Publisher
from sync_engine.flow.log_upkeep import LogUpkeep
from sync_engine.flow.mirror import Mirror
from sync_engine.flow.sweeper import Sweeper
from sync_engine.flow.tier import Tier
from sync_engine.house.wiring import L2, L3, Parts
from sync_engine.wal.adoption import adopt_orphans

__all__ = ["House"]

_LAST_WORD_S = 1.0


class House(Parts):
    """The parts of one engine, started and stopped.

    Raises:
        ConfigError: A setting cannot be used, or another process owns the log.
        CorruptData: The log file is damaged or foreign.
    """

    def start(self) -> None:
        """Adopt what dead processes left, attach what is there, start the jobs.

        Raises:
            ConfigError: The archive can never serve us as configured.
        """
        jobs: dict[str, Callable[[], float]] = {LogUpkeep.JOB: self.log_upkeep.step}
        if self.config.passive:
            jobs["attach"] = self._step_attach
        else:
            adopt_orphans(self.log, self.runtime, archive=L3)
            self.arbiter.open()
            self.feeds.begin()
            jobs[Arbiter.JOB] = self.arbiter.step
            jobs["keeper"] = self.keeper.step
            if self.trees.kept:
                jobs["merkle"] = self.trees.step
            if self.mirror.tier is not None:
                jobs[Mirror.JOB] = self.mirror.step
            jobs[L3] = self.followers[L3].step
            if self.l2 is not None and self.l2_delivery is not None:
                jobs[L2] = partial(self.l2_delivery.step, self.followers[L2])
                if self.config.l2_sweep_keys_per_s and hasattr(self.l2.store, "sweep"):
                    jobs["sweep"] = self._sweeper(self.l2).step
        jobs.update((part.JOB, part.step) for part in (self.coherence, self.publisher) if part)
        self._step_attach()
        for tier in (self.l3, self.l2):
            if tier is not None and tier.config_error is not None:
                raise tier.config_error
        if not self.config.passive:
            with contextlib.suppress(StorageError):
                self.keeper.step()
        for name, step in jobs.items():
            self.runtime.add_job(name, step)
            self.job_names.append(name)

    def _sweeper(self, l2: Tier[Any]) -> Sweeper:
        return Sweeper(l2, self.clock, keys_per_s=self.config.l2_sweep_keys_per_s)

    def _step_attach(self) -> float:
        """Attach what is there; a job of its own only where no follower does it."""
        for tier in (self.l3, self.l2):
            # To begin a new epoch is a change: a passive engine does without L2 then.
            if tier is not None and not (self.config.passive and tier.renew is not None):
                with contextlib.suppress(StorageError):
                    tier.ready()
        return 1.0

    def flush(
        self, timeout_s: float, reason: FlushReason = FlushReason.MANUAL, *, sinks: bool = False
    ) -> dict[str, int]:
        """Deliver all that was acknowledged before the call; return what is left by follower."""
        target = self.log.appended
        deadline = self.clock.monotonic() + timeout_s
        for follower in self.followers.values():
            follower.hurry(reason)
        left = {}
        for name in self.followers:
            wait_s = max(0.0, deadline - self.clock.monotonic())
            if not self.arrivals.wait(name, target, wait_s):
                left[name] = target - self.log.cursor(name)
        if reason is FlushReason.SHUTDOWN and self.publisher and self.publisher.healthy:
            # Nobody tells the others once we are gone.
            wait_s = min(_LAST_WORD_S, max(0.0, deadline - self.clock.monotonic()))
            self.arrivals.wait(Publisher.JOB, self.log.cursor(L3), wait_s)
        return left | self.doors.left(target, deadline) if sinks else left

    def stop(self, timeout_s: float) -> list[str]:
        """Stop the jobs and close everything; return the jobs that did not stop in time."""
        stuck = self.runtime.close(timeout_s)
        self.job_names.clear()
        self.doors.close(stuck)
        if L3 not in stuck:
            if self.l3.attached and self.filters.trusted and self.keeper.covered():
                self.filter_snapshot.save()
            self.keeper.close()
        self.arbiter.close()
        try:
            self.log.close()
        finally:
            for tier in (self.l2, self.l3, self.mirror.tier):
                if tier is not None and tier.name not in stuck:
                    tier.detach()
            if self.stores.feed is not None:
                self.stores.feed.close()
            self.owner.release()
        return stuck
