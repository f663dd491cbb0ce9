"""The sole-writer lease: an *absent* is never said beside a foreign write."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from sync_engine.core.item import Change
from sync_engine.errors import StoreUnavailable
from sync_engine.stores.sql import NotAdmitted, SqlArchive, open_archive
from sync_engine.testing import ManualClock

TTL_S = 6.0


@contextmanager
def open_archive_closing(url: str, clock: ManualClock) -> Iterator[SqlArchive]:
    archive = open_archive(url, clock=clock)
    yield archive
    archive.close()


class LostReplies:
    """Now and then, lets a commit happen and hides that it did."""

    def __init__(self, archive: SqlArchive, rng: random.Random, rate: float) -> None:
        self._execute = archive._dialect.execute
        self._rng = rng
        self.rate = rate
        archive._dialect.execute = self  # type: ignore[method-assign]

    def __call__(self, connection: Any, template: str, args: Any = ()) -> int:
        rows = self._execute(connection, template, args)
        if template == "COMMIT" and self._rng.random() < self.rate:
            raise ConnectionResetError("the reply was lost")
        return rows


class Engine:
    """What an engine does with its archive: it keeps the lease and trusts its filter meanwhile."""

    def __init__(
        self, name: str, url: str, table: str, clock: ManualClock, rng: random.Random
    ) -> None:
        self.name = name
        self.clock = clock
        self.archive = open_archive(url, clock=clock, table=table, writer_ttl_s=TTL_S)
        self.replies = LostReplies(self.archive, rng, 0.05)
        self.until = -math.inf
        self.epoch = 0
        self.filter: set[str] | None = None  # every id that the archive may hold
        self.told = False

    def covered(self) -> bool:
        return self.filter is not None and self.clock.monotonic() < self.until

    def keep_lease(self) -> None:
        asked = self.clock.monotonic()
        if self.told:
            self.archive.release_lease(self.name)
            self.told = False
        epoch = self.archive.lease(self.name, TTL_S)
        if epoch != self.epoch:
            self.filter = None
        self.epoch = epoch
        if not epoch:
            self.until, self.told = -math.inf, True
            return
        self.until = asked + TTL_S
        if self.filter is None:
            self.filter = {change.id for change in self.archive.scan(keys_only=True)}

    def write(self, change: Change) -> None:
        if self.filter is not None:
            self.filter.add(change.id)  # before the append, whatever becomes of it
        self.archive.apply([change])

    def release(self) -> None:
        self.until, self.filter, self.epoch = -math.inf, None, 0
        self.archive.release_lease(self.name)

    def reopen(self) -> None:
        """Die and come back, or be parked: the connections go, the promise is not taken back."""
        self.archive.close()
        self.archive.attach()


def schedule(url: str, clock: ManualClock, seed: int, steps: int = 400) -> tuple[int, int, int]:
    """Run engines at random; return how often one was covered, wrote, and was not admitted."""
    rng = random.Random(seed)
    table = f"items_{seed}"
    oracle = open_archive(url, clock=clock, table=table)
    engines = [Engine(f"engine-{n}", url, table, clock, rng) for n in range(3)]
    actions = ["lease"] * 60 + ["write"] * 50 + ["time"] * 50 + ["release"] * 5 + ["reopen"] * 3
    covered = written = refused = 0
    awake = engines
    for step in range(steps):
        if step % 40 == 0:  # the others are frozen; alone, an engine gets the lease
            awake = rng.sample(engines, rng.choice([1, 1, 2, 3]))
        engine = rng.choice(awake)
        try:
            match rng.choice(actions):
                case "lease":
                    engine.keep_lease()
                case "write":
                    engine.write(Change(f"id-{step}", step + 1, b""))
                    written += 1
                case "time":
                    clock.advance(rng.choice([0.1, 0.5, 1.0, 2.0, TTL_S / 2]))
                case "release":
                    engine.release()
                case "reopen":
                    engine.reopen()
        except StoreUnavailable as exc:
            refused += isinstance(exc, NotAdmitted)
        archived = {change.id for change in oracle.scan(keys_only=True)}
        for holder in engines:
            if holder.covered():
                covered += 1
                assert archived <= (holder.filter or set()), f"{seed=} {step=} {holder.name}"
    for engine in engines:
        engine.archive.close()
    oracle.close()
    return covered, written, refused


def test_no_absent_is_said_beside_a_foreign_write(sqlite_url: str, clock: ManualClock) -> None:
    """Engines freeze, lose replies, come and go; a covered filter holds every archived id."""
    totals = [schedule(sqlite_url, clock, seed) for seed in range(20)]

    covered, written, refused = (sum(column) for column in zip(*totals, strict=True))
    assert covered > 1000
    assert written > 1000
    assert refused > 50


def test_a_frozen_transaction_cannot_outlive_its_registration(
    any_sql_url: str, clock: ManualClock
) -> None:
    """The registration is checked in the transaction itself, after its rows are written."""
    frozen, other = (open_archive(any_sql_url, clock=clock, writer_ttl_s=TTL_S) for _ in range(2))
    frozen.apply([Change("a", 1, b"")])
    assert frozen.stats()["admitted"] == 1
    assert not other.lease("other", TTL_S)
    clock.advance(TTL_S + 1)
    assert other.lease("other", TTL_S)

    with pytest.raises(NotAdmitted) as caught:
        frozen.apply([Change("a", 2, b"late")])

    assert 0 < caught.value.retry_after_s <= TTL_S
    assert other.get_many(["a"]) == {"a": Change("a", 1, b"")}
    assert frozen.stats()["fenced"] == 1
    frozen.close()
    other.close()


def test_a_restarted_engine_with_a_name_of_its_own_need_not_wait(
    any_sql_url: str, clock: ManualClock
) -> None:
    """Whoever holds the log's lock knows that its predecessor is dead."""
    killed = open_archive(any_sql_url, clock=clock, owner="engine-7")
    assert killed.lease("engine-7", TTL_S)
    killed.apply([Change("a", 1, b"")])

    restarted = open_archive(any_sql_url, clock=clock, owner="engine-7")

    restarted.apply([Change("a", 2, b"")])
    assert restarted.lease("engine-7", TTL_S)
    with pytest.raises(StoreUnavailable):
        killed.lease("other", TTL_S)
        killed.apply([Change("a", 3, b"")])
    restarted.close()
    killed.close()


def test_a_holder_that_is_closed_and_attached_again_goes_on(
    any_sql_url: str, clock: ManualClock
) -> None:
    """Parking an archive takes no promise back: the lease stays, and so does its holder."""
    archive = open_archive(any_sql_url, clock=clock)
    epoch = archive.lease("one", TTL_S)
    assert archive.stats()["lease_epoch"] == epoch

    archive.close()
    with open_archive_closing(any_sql_url, clock) as newcomer, pytest.raises(NotAdmitted):
        newcomer.apply([Change("b", 1, b"")])
    archive.attach()

    archive.apply([Change("a", 1, b"")])
    assert not archive.lease("one", TTL_S)
    assert archive.stats()["lease_epoch"] == 0
    archive.close()


def test_generation_survives_the_removal_of_writers(any_sql_url: str, clock: ManualClock) -> None:
    """A snapshot that is bound to it must never match again by accident."""
    seen = []
    for number in range(4):
        archive = open_archive(any_sql_url, clock=clock, writer_ttl_s=TTL_S)
        seen.append(archive.info().generation)
        archive.lease(f"engine-{number}", TTL_S)
        clock.advance(TTL_S + 1)
        archive.lease(f"engine-{number}", TTL_S)
        archive.apply([Change("a", number + 1, b"")])
        archive.release_lease(f"engine-{number}")
        archive.close()

    assert seen == [0, 1, 2, 3]
