"""The Merkle tree of the SQL archive keeps its contract on every database, and in its mirror."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sync_engine.core.item import Change
from sync_engine.core.merkle import MerkleTree
from sync_engine.errors import ConfigError, StoreBusy, StoreUnavailable
from sync_engine.stores.sql import SqlArchive, migrate, open_archive
from sync_engine.stores.sql.merkle import BLOCK_ENTRIES_MAX, SqlMerkle
from sync_engine.testing import ManualClock
from sync_engine.testing.contracts.merkle import MakeTree, MerkleContract, entries_of, model_of


def put(id: str, version: int, content: bytes = b"v") -> Change:
    return Change(id, version, content)


def items(count: int, start: int = 0) -> list[Change]:
    return [put(f"d{n % 3}.{n:06}", n + 1) for n in range(start, start + count)]


def built_anew(archive: SqlArchive, step: int = 1000) -> Any:
    archive.merkle.begin_build()
    while archive.merkle.build_step(step):
        pass
    return archive.merkle.merkle_root()


@pytest.fixture
def make_archive(any_sql_url: str, clock: ManualClock) -> Callable[[], SqlArchive]:
    return lambda: SqlArchive(any_sql_url, clock=clock, timeout_s=10.0)


@pytest.fixture
def make_other(sqlite_url: str, clock: ManualClock) -> Callable[[], SqlArchive]:
    return lambda: SqlArchive(sqlite_url, clock=clock, timeout_s=10.0)


class TestSqlMerkle(MerkleContract):
    @pytest.fixture
    def make_tree(self) -> MakeTree:
        return lambda archive: archive.merkle


@pytest.mark.external
class TestRedisMerkleStore(MerkleContract):
    @pytest.fixture
    def make_archive(self, sqlite_url: str, clock: ManualClock) -> Callable[[], SqlArchive]:
        return lambda: SqlArchive(sqlite_url, clock=clock, timeout_s=10.0)

    @pytest.fixture
    def make_other(
        self, archive_url: Callable[[str], str], clock: ManualClock
    ) -> Callable[[], SqlArchive]:
        url = archive_url("sqlite")
        return lambda: SqlArchive(url, clock=clock, timeout_s=10.0)

    @pytest.fixture
    def make_tree(self, redis_url: str, clock: ManualClock) -> Any:
        from sync_engine.redis_link.stream import StreamLink
        from sync_engine.stores.redis.merkle import RedisMerkleStore

        link = StreamLink(redis_url, prefix="t", name="merkle", clock=clock)
        link.open()
        yield lambda archive: RedisMerkleStore(archive.merkle, link)
        link.close()

    def test_an_answer_names_its_position_and_serves_no_other(
        self, archive: SqlArchive, make_tree: Any
    ) -> None:
        """A mirror with holes, or of another moment, says nothing wrong."""
        mirror = make_tree(archive)
        archive.apply(items(10))
        first = mirror.merkle_root()
        position = mirror.latest()
        assert mirror.merkle_root() == first
        assert mirror.hits == 1

        archive.apply([put("late", 99)])

        assert mirror.merkle_root() != first
        assert mirror.latest() != position == f"{archive.info().uuid}:1"

    def test_an_emptied_or_damaged_mirror_is_only_a_set_of_misses(
        self, archive: SqlArchive, make_tree: Any, redis_server: Any
    ) -> None:
        mirror = make_tree(archive)
        archive.apply(items(10))
        page = mirror.merkle_children("d1")
        places = [bytes(key) for key in redis_server.execute("KEYS", "*:at:*")]
        assert len(places) == 1
        for field in redis_server.execute("HKEYS", places[0]):
            value = bytes(redis_server.execute("HGET", places[0], field))
            redis_server.execute("HSET", places[0], field, value[:-1] + b"?")

        assert mirror.merkle_children("d1") == page
        assert mirror.hits == 0
        redis_server.flush()
        assert mirror.merkle_children("d1") == page
        assert mirror.hits == 0
        assert mirror.merkle_children("d1") == page
        assert mirror.hits == 1


# -- what goes on below ---------------------------------------------------------------------------


def test_folds_in_any_rhythm_leave_the_same_tree(make_archive: Any) -> None:
    """Blocks are cut as they grow, and let go as they empty."""
    archive = make_archive()
    archive.attach()
    for start in range(0, 6000, 500):
        archive.apply(items(500, start))
        if start % 1000 == 0:
            archive.merkle.fold()
    before = archive.merkle.merkle_root()
    assert before == built_anew(archive)
    gone = [Change(change.id, 10_000 + n, None) for n, change in enumerate(items(5000))]
    for start in range(0, 5000, 1000):
        archive.apply(gone[start : start + 1000])
    while archive.purge_tombstones(below_version=1 << 40, limit=1000):
        pass

    assert archive.merkle.merkle_root().total.live == 1000
    assert archive.merkle.merkle_root() == built_anew(archive)
    archive.close()


def test_no_block_stays_larger_than_its_bound(make_archive: Any, sqlite_url: str) -> None:
    archive = make_archive()
    archive.attach()
    archive.apply(items(5000))
    archive.merkle.fold()

    with archive._dialect.reading() as connection:
        counts = archive._dialect.query(connection, "SELECT live + dead FROM {b}")

    assert sum(int(count) for (count,) in counts) == 5000
    assert max(int(count) for (count,) in counts) <= BLOCK_ENTRIES_MAX
    archive.close()


def test_rows_of_a_former_version_get_a_tree_in_steps(any_sql_url: str, clock: ManualClock) -> None:
    """`migrate` adds the tables; the tree is built while engines write."""
    archive = open_archive(any_sql_url, clock=clock)
    archive.apply(items(3000))
    with archive._dialect.writing() as (connection, _):
        for table in "dbs":
            archive._dialect.execute(connection, f"DROP TABLE {{{table}}}")
        archive._dialect.execute(connection, "UPDATE {m} SET schema_version = 1")
    archive.close()
    with pytest.raises(ConfigError, match="sync-engine migrate"):
        open_archive(any_sql_url, clock=clock)

    assert migrate(any_sql_url) == (1, 2)
    archive = open_archive(any_sql_url, clock=clock)
    with pytest.raises(StoreBusy, match="not built"):
        archive.merkle.merkle_root()
    version = 10_000
    while archive.merkle.build_step(400):
        version += 3
        archive.apply([put("d0.000000", version), put("zzz", version), put("d2.000500", version)])
        if not archive.merkle.state().built:
            with pytest.raises(StoreUnavailable, match="being built"):
                archive.merkle.merkle_root()

    root = archive.merkle.merkle_root()
    assert root.total.live == 3001
    assert root == built_anew(archive)
    archive.close()


def test_an_engine_without_a_tree_makes_it_unknown_and_not_wrong(
    any_sql_url: str, clock: ManualClock
) -> None:
    archive = open_archive(any_sql_url, clock=clock)
    archive.apply(items(10))
    careless = open_archive(any_sql_url, clock=clock, merkle=False)
    careless.apply([put("unseen", 99)])

    with pytest.raises(StoreBusy):
        archive.merkle.merkle_root()
    while archive.merkle.build_step():
        pass

    assert archive.merkle.merkle_root().total.live == 11
    archive.close()
    careless.close()


def test_rows_changed_behind_the_engines_back_are_found(
    any_sql_url: str, clock: ManualClock
) -> None:
    archive = open_archive(any_sql_url, clock=clock)
    archive.apply(items(3000))
    archive.merkle.fold()
    with archive._dialect.writing() as (connection, _):
        archive._dialect.execute(connection, "DELETE FROM {t} WHERE id = ?k", (b"d1.001000",))
        text = "UPDATE {t} SET content = ? WHERE id = ?k"
        archive._dialect.execute(connection, text, (b"forged", b"d0.000003"))
    after, unmatched, corrupt = None, 0, []
    while True:
        check = archive.merkle.check(after)
        unmatched += not check.matches
        corrupt += check.corrupt
        after = check.next
        if after is None:
            break

    assert unmatched == 1
    assert corrupt == ["d0.000003"]
    archive.close()


def test_a_separator_is_chosen_once(any_sql_url: str, clock: ManualClock) -> None:
    first = open_archive(any_sql_url, clock=clock, merkle_separator="/")
    first.apply([put("a/b", 1), put("a.b", 2)])
    assert first.merkle.merkle_node("a").below.live == 1
    first.close()

    with pytest.raises(ConfigError, match=r"parted by '/'.* set merkle_separator to '/'"):
        open_archive(any_sql_url, clock=clock)


@pytest.mark.parametrize("separator", ["", "..", " ", "é", "\0"])
def test_separators_that_make_no_paths_are_refused(
    sqlite_url: str, clock: ManualClock, separator: str
) -> None:
    with pytest.raises(ConfigError, match="merkle_separator"):
        SqlArchive(sqlite_url, clock=clock, merkle_separator=separator)


def test_a_batch_that_is_rolled_back_leaves_no_delta(make_archive: Any) -> None:
    """Rows and delta are one transaction."""
    archive, rival = make_archive(), make_archive()
    archive.attach()
    rival.attach()
    archive.apply(items(5))
    with rival._dialect.writing() as (connection, _):
        rival._dialect.execute(connection, "DELETE FROM {w}")  # fences the archive's batches
    before = archive.merkle.merkle_root()
    archive.apply([put("after", 50)])  # rolled back once, registered anew, written

    assert archive.merkle.merkle_root().total.live == before.total.live + 1
    assert model_of(archive.merkle).root() == archive.merkle.merkle_root()
    archive.close()
    rival.close()


def test_a_batch_that_was_taken_for_new_is_written_all_the_same(make_archive: Any) -> None:
    """After batches of new ids alone nobody looks first; a row that is there is noticed."""
    archive = make_archive()
    archive.attach()
    for start in range(0, 400, 100):
        archive.apply(items(100, start))
    mixed = [*items(50, 350), *items(50, 400)]
    archive.apply([Change(change.id, 9000 + n, b"new") for n, change in enumerate(mixed)])
    archive.apply(items(100, 350))  # all older

    assert archive.stats()["races"] == 1
    assert archive.merkle.merkle_root().total.live == 450
    assert archive.merkle.merkle_root() == built_anew(archive)
    assert archive.get_many(["d2.000449"])["d2.000449"].version == 9099
    archive.close()


# -- any sequence ---------------------------------------------------------------------------------

_ID = st.sampled_from(["a", "a.b", "a.b.c", "a-b", "b", "b.", ".", "c.é", "c.\U0010ffff"])
_STEP = st.one_of(
    st.tuples(st.just("put"), st.lists(_ID, min_size=1, max_size=5), st.integers(1, 60)),
    st.tuples(st.just("delete"), st.lists(_ID, min_size=1, max_size=5), st.integers(1, 60)),
    st.tuples(st.just("purge"), st.integers(1, 60)),
    st.tuples(st.just("fold")),
    st.tuples(st.just("rival"), st.lists(_ID, min_size=1, max_size=5), st.integers(1, 60)),
    st.tuples(st.just("build"), st.integers(1, 3)),
    st.tuples(st.just("reopen")),
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=st.lists(_STEP, max_size=25))
def test_the_tree_equals_one_built_from_the_rows_whatever_happened(
    archive_url: Any, clock: ManualClock, steps: list[Any]
) -> None:
    url = archive_url("sqlite")
    archive, rival = open_archive(url, clock=clock), open_archive(url, clock=clock)
    model: dict[str, tuple[int, bool]] = {}
    for step in steps:
        kind = step[0]
        if kind in {"put", "delete", "rival"}:
            deleted = kind == "delete"
            batch = [
                Change(id, step[2], None if deleted else kind.encode())
                for id in dict.fromkeys(step[1])
            ]
            (rival if kind == "rival" else archive).apply(batch)
            for change in batch:
                if change.version > model.get(change.id, (0, False))[0]:
                    model[change.id] = (change.version, deleted)
        elif kind == "purge":
            archive.purge_tombstones(below_version=step[1], limit=3)
            left = {change.id for change in archive.scan(tombstones=True)}
            model = {id: known for id, known in model.items() if id in left}
        elif kind == "fold":
            archive.merkle.fold()
        elif kind == "build":
            archive.merkle.begin_build()
            archive.merkle.build_step(step[1])
        else:
            archive.close()
            archive = open_archive(url, clock=clock)
    while archive.merkle.build_step(2):
        pass

    tree: MerkleTree = rival.merkle
    assert {e.id: (e.version, e.deleted) for e in entries_of(tree)} == model
    assert model_of(tree).root() == tree.merkle_root()
    assert built_anew(archive) == tree.merkle_root()
    archive.close()
    rival.close()


def test_the_store_says_what_it_is(sqlite_url: str, clock: ManualClock) -> None:
    archive = open_archive(sqlite_url, clock=clock)
    archive.apply(items(3))
    state = archive.merkle.state()

    assert isinstance(archive.merkle, SqlMerkle)
    assert (state.built, state.deltas, state.folds, state.separator) == (True, 1, 0, ".")
    assert archive.merkle.fold() == 1
    assert archive.merkle.state().folds == 1
    archive.close()


@pytest.mark.long
def test_ten_of_a_million_are_found_without_listing_them(tmp_path: Any) -> None:
    """A flat node of a million items; bytes and seconds beside a comparison of every key."""
    from benchmarks.merkle import compare

    found = compare(lambda name: f"sqlite:///{tmp_path}/{name}.db", 1_000_000)

    rounded = {name: round(value, 3) for name, value in found.items()}
    sys.stdout.write(f"{rounded}\n")
    assert found["found"] == 10
    assert found["bytes"] < found["full_bytes"] / 100
    assert found["seconds"] < found["full_seconds"]


def test_a_purge_by_an_engine_without_a_tree_makes_it_unknown(
    sqlite_url: str, clock: ManualClock
) -> None:
    """Rows that go are as unknown to the tree as rows that come."""
    archive = open_archive(sqlite_url, clock=clock)
    careless = open_archive(sqlite_url, clock=clock, merkle=False)
    archive.apply([put("a", 1), Change("b", 2, None)])
    assert archive.merkle.state().built

    assert careless.purge_tombstones(below_version=9, limit=10) == 1

    assert not archive.merkle.state().built
    assert built_anew(archive).total.dead == 0
    archive.close()
    careless.close()


def test_a_large_block_that_its_rows_do_not_add_up_to_is_not_cut_up_but_unknown(
    sqlite_url: str, clock: ManualClock
) -> None:
    """What was changed behind the engine's back is never made part of the tree's truth."""
    archive = open_archive(sqlite_url, clock=clock)
    archive.apply(items(BLOCK_ENTRIES_MAX))
    archive.merkle.fold()
    with archive._dialect.writing() as (connection, _):
        archive._dialect.execute(connection, "DELETE FROM {t} WHERE id = ?k", (b"d0.000003",))

    archive.apply(items(100, BLOCK_ENTRIES_MAX))
    archive.merkle.fold()

    assert not archive.merkle.state().built
    archive.close()
