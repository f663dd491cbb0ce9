"""Sinks on an engine: a copy, then the log, in order, over every crash."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from support.killed import Killed

from sync_engine.core import failpoints
from sync_engine.core.batcher import BatchConfig
from sync_engine.core.item import Change, SyncItem
from sync_engine.core.options import Durability, SubmitOptions
from sync_engine.errors import ConfigError, StoreUnavailable
from sync_engine.ports import Sink
from sync_engine.testing import MemoryCacheStore, MemorySink, PositionedMemorySink
from tests.flow.support_ends import Bench, sink_of

KINDS = [MemorySink, PositionedMemorySink]


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_sink_gets_what_is_there_and_what_comes(bench: Bench, kind: type[MemorySink]) -> None:
    sink = kind()
    for n in range(300):
        bench.engine.submit(f"old.{n}", b"%d" % n)
    bench.engine.delete("old.3")

    bench.engine.add_sink("copy", sink)
    bench.engine.submit("new", b"1")
    bench.engine.delete("old.4")

    assert bench.engine.flush(60, sinks=True).complete
    assert sink.contents() == bench.expected()
    assert "old.3" not in sink.contents()
    assert sink_of(bench)["stage"] == "follow"


def test_flush_waits_for_sinks_only_if_asked(bench: Bench) -> None:
    sink = MemorySink()
    bench.engine.add_sink("copy", sink)
    bench.engine.flush(60, sinks=True)
    bench.engine.pause("copy")
    bench.engine.submit("a", b"1")

    assert bench.engine.flush(60).complete
    assert bench.engine.flush(1, sinks=True).left == {"sink:copy": 1}
    assert sink.contents() == {}

    bench.engine.resume("sink:copy")
    assert bench.engine.flush(60, sinks=True).complete
    assert sink.contents() == {"a": b"1"}


def test_a_sink_gets_its_prefixes_only(bench: Bench) -> None:
    sink = PositionedMemorySink()
    bench.engine.submit("b.old", b"")
    bench.engine.submit("c.old", b"")
    bench.engine.add_sink("copy", sink, prefix=["a.", "c.", "a.b"])
    for id in ("a.1", "a.b", "b.1", "c.1", "ca"):
        bench.engine.submit(id, b"")

    assert bench.engine.flush(60, sinks=True).complete
    assert set(sink.contents()) == {"a.1", "a.b", "c.1", "c.old"}
    (position,) = sink.positions.values()
    assert position == bench.engine.stats()["log"]["head"]


def test_a_wider_prefix_is_copied_and_a_narrower_one_is_not(bench: Bench) -> None:
    for id in ("a.1", "b.1"):
        bench.engine.submit(id, b"")
    for prefix, copies in (("a.", 1), (["a.", "b."], 2), ("b.", 2), ("", 3)):
        sink = MemorySink()
        bench.engine.add_sink("copy", sink, prefix=prefix)
        assert bench.engine.flush(60, sinks=True).complete
        assert sink_of(bench)["copies"] == copies
        bench.engine.remove_sink("copy")


def test_a_batch_keeps_the_order_of_the_log_and_each_id_once(bench: Bench) -> None:
    sink = MemorySink()
    bench.engine.add_sink("copy", sink)
    bench.engine.flush(60, sinks=True)
    sink.batches.clear()
    bench.engine.submit_many([SyncItem(id, b"") for id in ("a", "b", "a", "c", "b")])

    assert bench.engine.flush(60, sinks=True).complete
    assert [[change.id for change in batch] for batch in sink.batches] == [["a", "c", "b"]]


def test_a_value_for_the_cache_alone_is_a_deletion_to_a_sink(tmp_path: Path) -> None:
    """It is one to the archive; a sink holds what the archive holds."""
    from sync_engine.config import SyncEngineConfig
    from sync_engine.engine import SyncEngine
    from sync_engine.house import Stores
    from sync_engine.testing import ManualRuntime, MemoryArchive

    runtime = ManualRuntime(waits_run_jobs=True)
    stores = Stores(MemoryCacheStore(runtime.clock), MemoryArchive(runtime.clock))
    config = SyncEngineConfig(data_dir=tmp_path)
    with SyncEngine(config, runtime=runtime, stores=stores) as engine:
        sink = MemorySink()
        engine.add_sink("copy", sink)
        engine.submit("a", b"archived")
        engine.submit("b", b"archived")
        engine.flush(60, sinks=True)
        engine.submit("a", b"cached", SubmitOptions.cache(3600))
        assert engine.flush(60, sinks=True).complete
        assert sink.contents() == {"b": b"archived"}


def test_what_expired_on_the_way_is_not_shown(bench: Bench) -> None:
    sink = MemorySink()
    bench.engine.add_sink("copy", sink)
    bench.engine.flush(60, sinks=True)
    bench.engine.pause("copy")
    bench.engine.submit("a", b"short", SubmitOptions(ttl=5))
    bench.engine.submit("b", b"long", SubmitOptions(ttl=5000))
    bench.runtime.clock.advance(10)
    bench.engine.resume("copy")
    assert bench.engine.flush(60, sinks=True).complete
    assert sink.contents() == {"b": b"long"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_sink_that_was_down_catches_up(bench: Bench, kind: type[MemorySink]) -> None:
    sink = kind()
    bench.engine.add_sink("copy", sink)
    bench.engine.flush(60, sinks=True)

    def down(changes: Sequence[Change]) -> None:
        raise StoreUnavailable("memory", "apply", "switched off")

    sink.on_apply = down
    for n in range(50):
        bench.engine.submit(f"id.{n}", b"%d" % n)
    bench.run(120)
    assert bench.engine.flush(1).complete  # nobody else waits for it
    status = sink_of(bench)
    assert status["lag_items"] == 50
    assert status["lag_bytes"] >= 50 * 128
    assert status["lag_s"] > 100
    assert "switched off" in str(status["error"])
    assert any("sink copy" in told for told in bench.engine.health().degraded)

    sink.on_apply = None
    assert bench.engine.flush(120, sinks=True).complete
    assert sink.contents() == bench.expected()
    assert sink_of(bench)["error"] == ""


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_that_is_refused_is_put_aside_and_its_neighbours_flow(
    bench: Bench, kind: type[MemorySink]
) -> None:
    sink = kind(reject=["id.13", "old.3"])
    for n in range(10):
        bench.engine.submit(f"old.{n}", b"")
    bench.engine.add_sink("copy", sink)
    for n in range(100):
        bench.engine.submit(f"id.{n}", b"")

    assert bench.engine.flush(60, sinks=True).complete
    assert set(bench.expected()) - set(sink.contents()) == {"id.13", "old.3"}
    letters = bench.engine.dead_letters()
    assert {(letter.follower, letter.change.id) for letter in letters} == {
        ("sink:copy", "id.13"),
        ("sink:copy", "old.3"),
    }

    sink.reject.clear()
    bench.engine.requeue_dead_letters()
    assert bench.engine.flush(60, sinks=True).complete
    assert sink.contents() == bench.expected()


@pytest.mark.parametrize("kind", KINDS)
def test_a_sink_with_a_mistake_in_it_passes_the_item_it_stumbles_over(
    bench: Bench, kind: type[MemorySink]
) -> None:
    """It raises what no sink should; after ten attempts the culprit is put aside."""
    sink = kind()
    bench.engine.add_sink("copy", sink)
    bench.engine.flush(60, sinks=True)

    def stumble(changes: Sequence[Change]) -> None:
        if any(change.id == "bad" for change in changes):
            raise KeyError("column")

    sink.on_apply = stumble
    for id in ("a", "bad", "b", "c"):
        bench.engine.submit(id, b"")

    assert bench.engine.flush(3000, sinks=True).complete
    assert set(sink.contents()) == {"a", "b", "c"}
    (letter,) = bench.engine.dead_letters()
    assert "KeyError" in letter.error


def test_positions_are_never_ahead_of_what_was_delivered(bench: Bench) -> None:
    """Also where a batch is halved, and where a later item was tried out of turn."""
    sink = PositionedMemorySink(reject=["id.5"])
    bench.engine.add_sink("copy", sink)
    bench.engine.flush(60, sinks=True)
    failing = ["id.7", "id.8"]

    def check(changes: Sequence[Change]) -> None:
        if any(change.id in failing for change in changes):
            raise StoreUnavailable("memory", "apply", "not this one")

    sink.on_apply = check
    for n in range(20):
        bench.engine.submit(f"id.{n}", b"")
    bench.run(2)
    assert not set(sink.contents()) & set(failing)
    failing.clear()
    assert bench.engine.flush(3000, sinks=True).complete
    assert set(sink.contents()) | {"id.5"} >= {f"id.{n}" for n in range(20)}


def test_an_effect_whose_answer_was_lost_is_not_repeated(bench: Bench) -> None:
    class Once(PositionedMemorySink):
        lose = False

        def apply_at(self, changes: Sequence[Change], log_uuid: str, position: int) -> None:
            super().apply_at(changes, log_uuid, position)
            if self.lose:
                self.lose = False
                raise StoreUnavailable("memory", "apply", "connection lost")

    sink = Once()
    bench.engine.add_sink("copy", sink)
    bench.engine.flush(60, sinks=True)
    sink.batches.clear()
    sink.lose = True
    bench.engine.submit("a", b"")
    bench.run(0.06)
    bench.engine.submit("b", b"")

    assert bench.engine.flush(60, sinks=True).complete
    assert [change.id for batch in sink.batches for change in batch] == ["a", "b"]


# -- crashes -----------------------------------------------------------------------------------

POINTS = [
    "backfill.delivered",
    "backfill.saved",
    "backfill.placed",
    "sink:copy.delivered",
    "log.advance",
    "log.save",
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("at", [1, 2, 3])
@pytest.mark.parametrize("point", POINTS)
def test_a_crash_anywhere_repeats_and_never_skips(
    bench: Bench, kind: type[MemorySink], point: str, at: int
) -> None:
    sink = kind()
    for n in range(200):
        bench.engine.submit(f"old.{n:03}", b"%d" % n)
    bench.engine.flush(60)
    left = [at]

    def kill_at() -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Killed

    try:
        with failpoints.during(point, kill_at):
            bench.engine.add_sink("copy", sink, batch=BatchConfig(items_max=20, age_s_max=0))
            for n in range(60):
                bench.engine.submit(f"new.{n:03}", b"%d" % n)
                if n % 20 == 0:
                    bench.run(0.2)
            bench.engine.delete("old.150")
            bench.engine.flush(5, sinks=True)
    except Killed:
        bench.crash()
        bench.engine.add_sink("copy", sink)
    bench.engine.delete("old.001")
    bench.engine.submit("last", b"")
    assert bench.engine.flush(60, sinks=True).complete
    assert sink.contents() == bench.expected()


def test_a_copy_goes_on_where_it_was(bench: Bench) -> None:
    sink = MemorySink()
    for n in range(1000):
        bench.engine.submit(f"old.{n:04}", b"")
    bench.engine.flush(60)
    with pytest.raises(Killed):  # noqa: SIM117
        with failpoints.during("backfill.saved", lambda: _after(sink, 400)):
            bench.engine.add_sink("copy", sink)
            bench.engine.flush(60, sinks=True)
    before = sum(map(len, sink.batches))
    sink.batches.clear()

    bench.crash()
    bench.engine.add_sink("copy", sink)
    assert bench.engine.flush(60, sinks=True).complete
    assert sum(map(len, sink.batches)) == 1000 - before
    assert sink.contents() == bench.expected()


def _after(sink: MemorySink, rows: int) -> None:
    if len(sink.rows) >= rows:
        raise Killed


def test_nothing_is_delivered_that_a_power_cut_could_take_back(bench: Bench) -> None:
    """Also where the sink's job is quicker than the log's, which syncs now and then."""
    sink = MemorySink()
    house = bench.engine._house
    assert house is not None
    unsafe: list[int] = []
    bench.engine.add_sink("copy", sink, batch=BatchConfig(age_s_max=0))
    bench.engine.flush(60, sinks=True)
    sink.on_apply = lambda changes: unsafe.append(house.log.head() - house.log.synced)
    for durability in (Durability.MEMORY, Durability.LOG):
        bench.engine.submit(durability.value, b"", SubmitOptions(durability=durability))
        bench.runtime.step("sink:copy")
    assert unsafe == [0, 0]
    assert set(sink.contents()) == {"memory", "log"}


def test_an_item_tried_out_of_turn_does_not_move_the_position(bench: Bench) -> None:
    """Else what lies between the culprit and its witness would look delivered."""
    sink = PositionedMemorySink()
    bench.engine.add_sink("copy", sink)
    bench.engine.flush(60, sinks=True)

    def stumble(changes: Sequence[Change]) -> None:
        ids = {change.id for change in changes}
        if "bad" in ids or ("between" in ids and not bench.engine.dead_letters()):
            raise StoreUnavailable("memory", "apply", "not now")

    sink.on_apply = stumble
    for id in ("bad", "between", "witness"):
        bench.engine.submit(id, b"")
    assert bench.engine.flush(3000, sinks=True).complete
    assert set(sink.contents()) == {"between", "witness"}
    assert [letter.change.id for letter in bench.engine.dead_letters()] == ["bad"]


# -- names and ends ----------------------------------------------------------------------------


def test_names_are_unique_and_plain(bench: Bench) -> None:
    bench.engine.add_sink("copy", MemorySink())
    with pytest.raises(ConfigError, match="already"):
        bench.engine.add_sink("copy", MemorySink())
    with pytest.raises(ConfigError, match="letters"):
        bench.engine.add_sink("a:b", MemorySink())
    with pytest.raises(ConfigError, match="on_full"):
        bench.engine.add_sink("other", MemorySink(), on_full="drop")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="sink:copy"):
        bench.engine.pause("nothing")


def test_a_sink_that_can_never_serve_is_told(bench: Bench) -> None:
    class Misfit(MemorySink):
        def attach(self) -> None:
            raise ConfigError("table 'items' has no column 'id'")

    bench.engine.add_sink("copy", Misfit())
    bench.engine.submit("a", b"")
    assert bench.engine.flush(5, sinks=True).left
    assert any("no column" in told for told in bench.engine.health().degraded)


def test_a_sink_that_cannot_be_closed_is_forgotten_all_the_same(bench: Bench) -> None:
    class Stubborn(MemorySink):
        def close(self) -> None:
            raise OSError(5, "Input/output error")

    bench.engine.add_sink("copy", Stubborn())
    bench.engine.flush(60, sinks=True)
    assert bench.engine.remove_sink("copy", forget=True)
    assert "sink:copy" not in bench.engine.stats()["cursors"]


def test_sinks_are_closed_with_the_engine(tmp_path: Path) -> None:
    closed: list[str] = []

    class Closing(MemorySink):
        def close(self) -> None:
            closed.append(self.name)

    bench = Bench(tmp_path)
    sink: Sink = Closing("one")
    bench.engine.add_sink("one", sink)
    bench.engine.close()
    assert "one" in closed
