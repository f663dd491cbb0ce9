"""Sources on an engine: poll, write, wait for the disk, acknowledge; over every crash."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.killed import Killed

from sync_engine.core import failpoints
from sync_engine.core.item import Change, Route, SyncItem
from sync_engine.errors import ConfigError, StoreBusy, StoreUnavailable
from sync_engine.ports import SourceBatch
from sync_engine.testing import ListSource
from tests.flow.support_ends import Bench


def puts(count: int, prefix: str = "id") -> list[Change]:
    return [Change(f"{prefix}.{n:04}", 0, b"%d" % n) for n in range(count)]


def source_of(bench: Bench, name: str = "list") -> dict[str, object]:
    return dict(bench.engine.stats()["sources"][name])


def test_what_a_source_gives_is_archived_and_acknowledged(bench: Bench) -> None:
    source = ListSource(puts(2500))
    bench.engine.add_source("list", source)
    bench.run()
    assert bench.engine.flush(60).complete
    assert source.acknowledged == 2500
    assert bench.engine.count_prefix("id.") == 2500
    assert source_of(bench)["taken"] == 2500
    assert source_of(bench)["progress"] == {"given": 2500, "acknowledged": 2500, "all": 2500}


def test_puts_and_deletes_of_one_batch_happen_in_their_order(bench: Bench) -> None:
    changes = [
        Change("a", 0, None),
        Change("a", 0, b"1"),
        Change("b", 0, b"1"),
        Change("b", 0, None),
        Change("a", 0, b"2"),
    ]
    bench.engine.add_source("list", ListSource(changes))
    bench.run()
    item = bench.engine.get("a")
    assert item is not None
    assert item.content == b"2"
    assert bench.engine.get("b") is None
    assert not bench.engine.definitely_missing("a")


def test_a_batch_that_begins_with_a_deletion_is_in_the_filter(bench: Bench) -> None:
    """A new engine on the archive must not deny what came with it."""
    bench.engine.add_source("list", ListSource([Change("x", 0, None), *puts(50)]))
    bench.run()
    bench.engine.flush(60)
    assert all(bench.engine.might_exist(f"id.{n:04}") for n in range(50))
    assert bench.engine.contains("id.0007")


def test_versions_given_elsewhere_are_kept_and_older_ones_ignored(bench: Bench) -> None:
    bench.engine.submit("mine", b"new")
    mine = bench.engine.get("mine")
    assert mine is not None
    version = mine.version
    source = ListSource(
        [
            Change("mine", version - 1, b"old"),
            Change("theirs", 12345 << 20, b"kept"),
            Change("theirs", 12344 << 20, b"older"),
        ]
    )
    bench.engine.add_source("list", source)
    bench.run()
    bench.engine.flush(60)
    theirs = bench.engine.get("theirs")
    assert theirs is not None
    assert (theirs.version, theirs.content) == (12345 << 20, b"kept")
    mine = bench.engine.get("mine")
    assert mine is not None
    assert mine.content == b"new"
    assert source_of(bench)["skipped"] >= 1


def test_a_version_beyond_reason_is_refused(bench: Bench) -> None:
    """It would win against every later write."""
    source = ListSource([Change("a", (1 << 63) - 1, b"forever"), Change("a", 0, b"now")])
    bench.engine.add_source("list", source)
    bench.run()
    assert source_of(bench)["refused"] == 1
    bench.engine.submit("a", b"later")
    item = bench.engine.get("a")
    assert item is not None
    assert item.content == b"later"


def test_what_is_outside_the_limits_is_put_aside_and_its_neighbours_flow(tmp_path: Path) -> None:
    bench = Bench(tmp_path, max_payload_bytes=100)
    source = ListSource(
        [
            Change("good.1", 0, b""),
            Change("large", 0, bytes(101)),
            Change("", 0, b""),
            Change("\ud800", 0, b""),
            Change("x" * 513, 0, b""),
            Change("text", 0, "no bytes"),  # type: ignore[arg-type]
            Change("good.2", 0, b""),
        ]
    )
    bench.engine.add_source("list", source)
    bench.run()
    bench.engine.flush(60)
    assert [item.id for item in bench.engine.scan_prefix()] == ["good.1", "good.2"]
    assert source.acknowledged == 7
    assert source_of(bench)["refused"] == 5
    letters = {letter.change.id: letter for letter in bench.engine.dead_letters()}
    assert "large" in letters
    assert "max_payload_bytes" in letters["large"].error
    assert letters["large"].follower == "source:list"
    bench.engine.close()


def test_what_is_for_the_cache_alone_is_archived_where_there_is_none(bench: Bench) -> None:
    source = ListSource([Change("a", 0, b"1", routes=int(Route.L2))])
    bench.engine.add_source("list", source)
    bench.run()
    bench.engine.flush(60)
    assert bench.rows.get_many(["a"])["a"].content == b"1"


def test_a_deletion_of_the_caches_alone_ends_an_older_row_and_makes_none(bench: Bench) -> None:
    """Where it comes from, the archive has no row of it either: the two stay equal."""
    version = bench.engine.submit("old", b"1").version
    bench.engine.flush(60)
    deletions = [Change(id, version + 1, None, routes=int(Route.L2)) for id in ("old", "unknown")]
    bench.engine.add_source("list", ListSource(deletions))
    bench.run()
    assert bench.engine.flush(60).complete
    assert bench.engine.get("old") is None
    rows = bench.rows.get_many(["old", "unknown"])
    assert {id: (row.version, row.content) for id, row in rows.items()} == {
        "old": (version + 1, None)
    }


def test_a_full_engine_slows_the_source_down_and_loses_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path, pending_items_max=200)
    bench.archive.down = True
    source = ListSource(puts(1000))
    bench.engine.add_source("list", source, items_max=50)
    bench.run(30)
    assert source.acknowledged < 300
    assert source.polls < 10
    status = source_of(bench)
    assert status["waits_for"] == "room"
    assert status["held"] == 50

    bench.archive.down = False
    bench.run(120)
    assert bench.engine.flush(60).complete
    assert source.acknowledged == 1000
    assert bench.engine.count_prefix("id.") == 1000
    bench.engine.close()


def test_a_batch_larger_than_all_the_room_there_is_goes_in_by_parts(tmp_path: Path) -> None:
    bench = Bench(tmp_path, pending_items_max=100)
    source = ListSource(puts(1000))
    bench.engine.add_source("list", source, items_max=1000)
    bench.run(120)
    assert source.acknowledged == 1000
    assert source_of(bench)["taken"] == 1000
    assert bench.engine.flush(60).complete
    bench.engine.close()


POINTS = [
    "intake.polled",
    "writer.filtered",
    "log.append",
    "log.committed",
    "log.sync",
    "intake.written",
    "intake.acked",
]


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("at", [1, 3])
def test_a_crash_anywhere_repeats_and_never_loses(bench: Bench, point: str, at: int) -> None:
    source = ListSource(puts(500))
    left = [at]

    def kill_at() -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Killed

    with pytest.raises(Killed):  # noqa: SIM117
        with failpoints.during(point, kill_at):
            bench.engine.add_source("list", source, items_max=100)
            bench.run(10)
    acknowledged = source.acknowledged
    bench.crash()
    taken = {item.id for item in bench.engine.scan_prefix()}
    assert taken >= {f"id.{n:04}" for n in range(acknowledged)}

    bench.engine.add_source("list", source, items_max=100)
    bench.run(10)
    assert bench.engine.flush(60).complete
    assert bench.engine.count_prefix("id.") == 500
    assert source.acknowledged == 500


def test_a_source_that_is_down_is_asked_less_and_less_often(bench: Bench) -> None:
    source = ListSource(puts(10))

    def down() -> None:
        raise StoreUnavailable("list", "poll", "no route to host")

    source.on_poll = down
    bench.engine.add_source("list", source)
    bench.run(100)
    assert 5 < source.polls < 60
    assert source.attached > 1
    assert any("no route to host" in told for told in bench.engine.health().degraded)

    source.on_poll = None
    bench.run(60)
    assert source.acknowledged == 10
    assert source_of(bench)["error"] == ""


def test_a_source_with_a_mistake_in_it_is_asked_again(bench: Bench) -> None:
    source = ListSource(puts(10))
    failures = [KeyError("page"), OSError(5, "Input/output error")]

    def stumble() -> None:
        if failures:
            raise failures.pop()

    source.on_poll = stumble
    bench.engine.add_source("list", source)
    bench.run(60)
    assert source.acknowledged == 10


def test_an_acknowledgement_that_fails_is_repeated_and_not_the_write(bench: Bench) -> None:
    class Forgetful(ListSource):
        fails = 3

        def ack(self, token: bytes) -> None:
            if self.fails:
                self.fails -= 1
                raise StoreBusy("list", "ack", "slow down", 0.5)
            super().ack(token)

    source = Forgetful(puts(10))
    bench.engine.add_source("list", source)
    bench.run(60)
    assert source.acknowledged == 10
    assert source_of(bench)["taken"] == 10


def test_a_setting_that_cannot_be_used_stops_the_source_until_resumed(bench: Bench) -> None:
    class Misfit(ListSource):
        broken = True

        def attach(self) -> None:
            if self.broken:
                raise ConfigError("bucket 'x' does not exist: create it, or name another")
            super().attach()

    source = Misfit(puts(10))
    bench.engine.add_source("list", source)
    bench.run(100)
    assert source.polls == 0
    assert any("is stopped: bucket" in told for told in bench.engine.health().degraded)

    source.broken = False
    bench.engine.resume("list")
    bench.run(1)
    assert source.acknowledged == 10


def test_a_source_with_nothing_to_give_is_not_asked_in_circles(bench: Bench) -> None:
    class Eager(ListSource):
        def poll(self, items_max: int) -> SourceBatch:
            self.polls += 1
            return SourceBatch(changes=[], token=b"")

    source = Eager()
    bench.engine.add_source("list", source)
    bench.run(1)
    assert source.polls < 150


def test_a_source_is_woken_by_what_happens(bench: Bench) -> None:
    context = bench.engine.adapter_context("source", "list")
    source = ListSource(wake=context.wake)
    bench.engine.add_source("list", source)
    bench.run(50)
    assert source.polls == 1
    source.add(Change("a", 0, b"1"))
    bench.run(0.001)
    assert bench.engine.contains("a")


def test_a_paused_source_keeps_what_it_has(bench: Bench) -> None:
    source = ListSource(puts(10))
    bench.engine.add_source("list", source)
    bench.engine.pause("list")
    bench.run(10)
    assert source.polls == 0
    bench.engine.resume("list")
    bench.run(1)
    assert source.acknowledged == 10


def test_a_removed_source_is_closed_and_goes_on_when_added_again(bench: Bench) -> None:
    source = ListSource(puts(10))
    bench.engine.add_source("list", source)
    bench.run(1)
    assert bench.engine.remove_source("list")
    assert not bench.engine.remove_source("list")
    source.add(*puts(5, "later"))
    bench.run(1)
    assert not bench.engine.contains("later.0000")

    bench.engine.add_source("list", source)
    bench.run(1)
    assert bench.engine.contains("later.0000")
    assert source_of(bench)["taken"] == 5


def test_a_passive_engine_has_no_ends(tmp_path: Path) -> None:
    Bench(tmp_path).engine.close()
    looking = Bench(tmp_path, passive=True)
    with pytest.raises(ConfigError, match="passive"):
        looking.engine.add_source("list", ListSource())
    looking.engine.close()


def test_sources_and_users_write_side_by_side(bench: Bench) -> None:
    bench.engine.add_source("list", ListSource(puts(300)), items_max=10)
    for n in range(30):
        bench.engine.submit(SyncItem(f"user.{n}", b""))
        bench.run(0.01)
    bench.run(1)
    assert bench.engine.flush(60).complete
    assert bench.engine.count_prefix() == 330
