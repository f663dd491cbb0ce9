"""What comes before what: promises that hang on the order of two lines, each seen from outside.

The engine's jobs run only when told to, so every moment can be looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from sync_engine import (
    Change,
    DeadLettered,
    StoreUnavailable,
    SubmitOptions,
    SyncEngine,
    SyncEngineConfig,
    SyncItem,
)
from sync_engine.core import failpoints
from sync_engine.core.version import version_of_ms
from sync_engine.house import Stores
from sync_engine.testing import (
    FlakyStore,
    ManualClock,
    ManualRuntime,
    MemoryArchive,
    MemoryCacheStore,
)

LEASE_S = 3.0


class Place:
    """An engine on stores in memory; it can die and be opened again."""

    def __init__(self, path: Path) -> None:
        self.clock = ManualClock()
        self.rows = MemoryArchive(clock=self.clock)
        self.cache = MemoryCacheStore(clock=self.clock)
        self.l2 = FlakyStore(self.cache)
        self.l3 = FlakyStore(self.rows.client(), clock=self.clock)
        self._path = path
        self._opened: list[Any] = []

    def open(self, *, with_l2: bool = True, **settings: Any) -> SyncEngine:
        self.runtime = ManualRuntime(clock=self.clock)
        config = SyncEngineConfig(data_dir=self._path, lease_ttl_s=LEASE_S, **settings)
        stores = Stores(self.l2 if with_l2 else None, self.l3)
        engine = SyncEngine(config, runtime=self.runtime, stores=stores).start()
        self._opened.append(engine)
        return engine

    def die(self) -> None:
        """Nothing is saved on the way out."""
        engine = self._opened.pop()
        engine._house.log._file.close()
        engine._house.owner.release()
        engine._state = type(engine._state).CLOSED

    def run(self, *jobs: str) -> None:
        """Run jobs until they have nothing to do."""
        for job in jobs:
            for _ in range(100):
                if self.runtime.step(job) > 0:
                    break

    def deliver(self, *jobs: str) -> None:
        """Let batches grow old enough, and deliver them."""
        self.run(*jobs)
        self.clock.advance(1)
        self.run(*jobs)

    def end(self) -> None:
        while self._opened:
            self.die()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    yield place
    place.end()


def house(engine: SyncEngine) -> Any:
    return engine._house


def cold(engine: SyncEngine) -> None:
    house(engine).l1.clear()


def after_call(store: FlakyStore, operation: str, then: Callable[[], object]) -> None:
    """Let something happen once between a store's answer and its arrival."""
    answer = getattr(store.store, operation)

    def once(*args: Any, **options: Any) -> Any:
        setattr(store.store, operation, answer)
        found = answer(*args, **options)
        then()
        return found

    setattr(store.store, operation, once)


def test_an_acknowledgement_comes_after_the_commit(place: Place) -> None:
    engine = place.open()
    engine.submit("a", b"1")
    place.die()

    assert place.open().get("a").content == b"1"  # type: ignore[union-attr]


def test_the_filter_is_told_before_the_log(place: Place) -> None:
    engine = place.open()
    place.run("keeper")
    filters = house(engine).filters
    assert filters.definitely_absent("a")
    seen: list[bool] = []

    with failpoints.during("writer.filtered", lambda: seen.append(filters.definitely_absent("a"))):
        engine.submit("a", b"1")

    assert seen == [False]


def test_a_cursor_moves_after_the_destination_has_accepted(place: Place) -> None:
    engine = place.open()
    engine.submit("a", b"1")
    cursors: list[int] = []
    place.l3.on_call = lambda operation: (
        cursors.append(house(engine).log.cursor("l3")) if operation == "apply" else None
    )
    place.l3.fail("apply")
    place.deliver("l3")
    place.clock.advance(60)
    place.deliver("l3")

    assert set(cursors) == {0}
    assert len(cursors) >= 2
    assert house(engine).log.cursor("l3") == 1


def test_a_dead_letter_is_written_before_its_follower_passes_it(place: Place) -> None:
    engine = place.open()
    place.l3.reject = {"poison"}
    receipt = engine.submit("poison", b"1")
    place.clock.advance(1)
    with (
        failpoints.during("l3.delivered", _interrupt),
        pytest.raises(KeyboardInterrupt),
    ):
        place.deliver("l3")
    place.die()

    engine = place.open()
    assert [letter.change.id for letter in engine.dead_letters()] == ["poison"]
    place.deliver("l3", "l2")
    assert engine.get("poison").content == b"1"  # type: ignore[union-attr]
    assert house(engine).log.cursor("l3") == 1
    with pytest.raises(DeadLettered):
        house(engine).writer.raise_if_dead(receipt.position)


def _interrupt() -> None:
    raise KeyboardInterrupt


def test_a_late_answer_of_the_archive_does_not_hide_a_newer_write(place: Place) -> None:
    engine = place.open(with_l2=False)
    engine.submit("a", b"old")
    place.deliver("l3")
    cold(engine)

    def write_and_deliver() -> None:
        engine.submit("a", b"new")
        place.deliver("l3")
        cold(engine)  # as if the new value had been evicted at once

    after_call(place.l3, "get_many", write_and_deliver)
    engine.get("a")

    assert engine.get("a").content == b"new"  # type: ignore[union-attr]


def test_a_late_copy_does_not_bring_a_deleted_item_back_to_l2(place: Place) -> None:
    engine = place.open()
    engine.submit("a", b"old")
    place.deliver("l3", "l2")
    cold(engine)
    place.cache.clear()

    def delete_and_deliver() -> None:
        engine.delete("a")
        place.deliver("l3", "l2")
        place.cache.clear()  # the mark of the delete is evicted as well
        cold(engine)

    after_call(place.l3, "get_many", delete_and_deliver)
    engine.get("a")
    place.deliver("l2")

    assert place.cache.get_many(["a"]) == {}
    cold(engine)
    assert engine.get("a") is None


def test_the_overlay_answers_until_l2_too_has_passed(place: Place) -> None:
    engine = place.open()
    engine.submit("a", b"old")
    place.deliver("l3", "l2")
    engine.submit("a", b"new")
    place.deliver("l3")
    cold(engine)

    assert engine.get("a").content == b"new"  # type: ignore[union-attr]


def test_l2_is_not_read_before_its_keys_are_abandoned_even_over_a_crash(place: Place) -> None:
    engine = place.open(l2_lag_items_max=5)
    engine.submit("a", b"old")
    place.deliver("l3", "l2")
    engine.submit("a", b"new")
    for n in range(10):
        engine.submit(f"i{n}", b"v")
    place.l2.down = True
    place.deliver("l2", "l3")
    place.deliver("log")
    place.die()
    place.l2.down = False

    engine = place.open(l2_lag_items_max=5)
    cold(engine)
    assert engine.get("a").content == b"new"  # type: ignore[union-attr]
    place.deliver("l2", "l3")
    cold(engine)
    assert engine.get("a").content == b"new"  # type: ignore[union-attr]


def test_a_write_while_l2_was_not_configured_is_not_hidden_by_what_l2_kept(place: Place) -> None:
    engine = place.open()
    engine.submit("a", b"old")
    place.deliver("l3", "l2")
    place.deliver("log")
    place.die()
    engine = place.open(with_l2=False)
    engine.submit("a", b"new")
    place.deliver("l3", "log")
    place.die()

    engine = place.open()
    cold(engine)

    assert engine.get("a").content == b"new"  # type: ignore[union-attr]


def test_a_decision_is_not_written_over_a_change_it_did_not_see(place: Place) -> None:
    engine = place.open()
    engine.submit("a", b"1")
    meddled: list[int] = []

    def add(item: Any) -> bytes:
        if not meddled:
            meddled.append(1)
            engine.submit("a", b"10")
        return b"%d" % (int(item.content) + 1)

    engine.update("a", add)

    assert engine.get("a").content == b"11"  # type: ignore[union-attr]


def test_the_lease_is_counted_from_before_it_was_asked_for(place: Place) -> None:
    engine = place.open()
    place.run("keeper")
    assert house(engine).keeper.covered()
    place.clock.advance(LEASE_S / 2)
    place.l3.latency_s = LEASE_S / 2
    place.runtime.step("keeper")
    place.l3.latency_s = 0.0

    place.clock.advance(LEASE_S / 2 + 0.01)

    assert not house(engine).keeper.covered()


def test_a_new_lease_makes_the_filter_doubt_itself(place: Place) -> None:
    """Somebody may have written between two leases."""
    engine = place.open()
    place.run("keeper")
    assert engine.definitely_missing("theirs")
    place.clock.advance(LEASE_S * 2)  # it was frozen
    other = place.rows.client()
    for _ in range(4):
        try:
            other.lease("other", LEASE_S)
            other.apply([Change("theirs", 5, b"v")])
        except StoreUnavailable:
            place.clock.advance(LEASE_S)
    assert place.rows.get_many(["theirs"])
    other.release_lease("other")
    other.close()

    for _ in range(20):
        place.runtime.step("keeper")
        assert not engine.definitely_missing("theirs")
        place.clock.advance(LEASE_S / 2)


def test_tombstones_are_kept_while_an_older_change_waits(place: Place) -> None:
    """Else the change that waits would find nothing that is newer, and come back to life."""
    engine = place.open(tombstone_retention_s=10)
    engine.pause("l3")
    engine.submit("waits", b"v")
    bounds: list[int] = []
    purge = place.l3.store.purge_tombstones

    def listen(*, below_version: int, limit: int) -> int:
        bounds.append(below_version)
        return int(purge(below_version=below_version, limit=limit))

    place.l3.store.purge_tombstones = listen
    begun_ms = place.clock.now_ms()
    for _ in range(10):
        place.clock.advance(61)
        place.run("keeper")

    assert bounds
    assert max(bounds) <= version_of_ms(begun_ms)


def test_a_delete_overtakes_the_put_that_waits_beside_it(place: Place) -> None:
    engine = place.open()
    engine.submit("a", b"1")
    engine.delete("a")
    delivered: list[Sequence[Change]] = []
    apply = place.l3.store.apply
    place.l3.store.apply = lambda changes: (delivered.append(list(changes)), apply(changes))[1]
    place.deliver("l3", "l2")

    assert [[change.content for change in batch] for batch in delivered] == [[None]]
    cold(engine)
    assert engine.get("a") is None


def test_a_refused_batch_is_halved_and_every_neighbour_arrives(place: Place) -> None:
    engine = place.open()
    place.l3.reject = {"i3"}
    for n in range(9):
        engine.submit(f"i{n}", b"v")
    place.deliver("l3")

    assert set(place.rows.get_many([f"i{n}" for n in range(9)])) == {
        f"i{n}" for n in range(9) if n != 3
    }


def test_limits_are_checked_before_anything_is_written(place: Place) -> None:
    engine = place.open(pending_items_max=10, submit_timeout_s=0)
    accepted = 0
    for n in range(30):
        try:
            engine.submit(f"i{n}", b"v", SubmitOptions(timeout=0))
        except Exception:
            break
        accepted += 1

    assert accepted <= 10
    assert house(engine).log.head() == accepted


@pytest.mark.parametrize("times", [1, 100])
def test_a_count_holds_while_what_is_pending_is_delivered(place: Place, times: int) -> None:
    """Between the server's number and the rows that it is corrected by."""
    engine = place.open()
    engine.submit(SyncItem("a", b"v", state="base"))
    engine.submit(SyncItem("b", b"v", state="delta"))
    place.deliver("l3")
    left, counted = [times], [False]

    def deliver(operation: str) -> None:
        if operation == "get_many" and counted[0] and left[0]:
            left[0] -= 1
            counted[0] = False
            place.l3.on_call = None
            place.deliver("l3")
            state = "base" if left[0] % 2 else "delta"
            engine.submit(SyncItem("a", b"%d" % left[0], state=state))
            place.l3.on_call = deliver
        counted[0] = counted[0] or operation == "count"

    engine.submit(SyncItem("a", b"w", state="delta"))
    place.l3.on_call = deliver

    total = engine.count_by_state("delta")

    place.l3.on_call = None
    assert total == engine.count_by_state("delta") == len(list(engine.get_by_state("delta")))
