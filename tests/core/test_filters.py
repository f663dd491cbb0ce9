"""The filters themselves: they may say maybe too often, and absent only when it is so."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from sync_engine.core.filters import (
    BloomFilter,
    CuckooFilter,
    ExistenceFilter,
    FilterFormatError,
    FilterSnapshot,
)
from sync_engine.core.filters.table import CuckooTable

MAKERS: dict[str, Callable[[int], ExistenceFilter]] = {
    "cuckoo": lambda capacity: CuckooFilter(capacity, seed=1),
    "bloom": lambda capacity: BloomFilter(capacity, seed=1),
}
PARSERS: dict[str, Callable[[bytes], ExistenceFilter]] = {
    "cuckoo": CuckooFilter.from_bytes,
    "bloom": BloomFilter.from_bytes,
}
both = pytest.mark.parametrize("kind", MAKERS)


def ids_of(count: int, what: str = "user") -> list[str]:
    return [f"{what}.{number}" for number in range(count)]


@both
@pytest.mark.parametrize("capacity", [1, 100, 10_000])
def test_what_was_added_is_never_denied_however_far_it_grew(kind: str, capacity: int) -> None:
    filter = MAKERS[kind](capacity)
    ids = ids_of(5_000)

    filter.add_many(ids[:2_500])
    for id in ids[2_500:]:
        filter.add(id)

    assert all(filter.might_contain(id) for id in ids)
    assert all(filter.might_contain_many(ids))
    assert filter.capacity >= 5_000


@both
def test_an_empty_filter_denies_everything(kind: str) -> None:
    filter = MAKERS[kind](100)

    assert not filter.might_contain("a")
    assert filter.might_contain_many(ids_of(20)) == [False] * 20
    assert filter.count == 0


@both
def test_one_and_many_give_the_same_answers(kind: str) -> None:
    filter = MAKERS[kind](50)
    filter.add_many(ids_of(300))
    asked = ids_of(300) + ids_of(3_000, "other")

    assert filter.might_contain_many(asked) == [filter.might_contain(id) for id in asked]


@pytest.mark.parametrize(("kind", "bound"), [("cuckoo", 0.0004), ("bloom", 0.002)])
def test_false_positives_are_as_rare_as_promised(kind: str, bound: float) -> None:
    filter = MAKERS[kind](20_000)
    filter.add_many(ids_of(20_000))
    others = ids_of(60_000 if kind == "cuckoo" else 20_000, "other")

    wrong = sum(filter.might_contain_many(others))

    assert wrong / len(others) <= bound


@both
def test_a_filter_survives_its_bytes(kind: str) -> None:
    filter = MAKERS[kind](100)
    filter.add_many(ids_of(1_000))

    again = PARSERS[kind](filter.to_bytes())

    assert all(again.might_contain_many(ids_of(1_000)))
    assert again.to_bytes() == filter.to_bytes()
    assert (again.count, again.capacity, again.size_bytes) == (
        filter.count,
        filter.capacity,
        filter.size_bytes,
    )
    again.add("late")
    assert again.might_contain("late")


@both
def test_the_seed_decides_which_ids_look_alike(kind: str) -> None:
    """Who does not know the seed cannot choose ids that collide, nor ids that are denied."""
    make = {"cuckoo": CuckooFilter, "bloom": BloomFilter}[kind]
    one, other = make(1_000), make(1_000)
    one.add_many(ids_of(1_000))
    other.add_many(ids_of(1_000))

    assert one.to_bytes()[4:12] != other.to_bytes()[4:12]
    assert one.to_bytes()[60:] != other.to_bytes()[60:]


@both
def test_truncated_or_lengthened_bytes_are_refused(kind: str) -> None:
    filter = MAKERS[kind](100)
    filter.add_many(ids_of(50))
    data = filter.to_bytes()

    for end in range(0, len(data), 7):
        with pytest.raises(FilterFormatError):
            PARSERS[kind](data[:end])
    with pytest.raises(FilterFormatError):
        PARSERS[kind](data + b"\0")


@both
def test_huge_lengths_are_refused_before_anything_is_allocated(kind: str) -> None:
    import tracemalloc

    data = bytearray(MAKERS[kind](100).to_bytes() + bytes(64))
    tracemalloc.start()
    try:
        for at in range(12, min(len(data) - 8, 80)):
            altered = bytearray(data)
            altered[at : at + 8] = b"\xff" * 7 + b"\x00"
            with pytest.raises(FilterFormatError):
                PARSERS[kind](bytes(altered))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20


def test_a_slot_that_was_emptied_is_noticed() -> None:
    """Counts are kept beside the tables, so that a lost fingerprint shows without a checksum."""
    filter = CuckooFilter(10, seed=1)
    filter.add("a")
    data = filter.to_bytes()
    table = bytearray(data)
    tag = next(at for at in range(len(data) - 128, len(data), 2) if data[at : at + 2] != b"\0\0")
    table[tag : tag + 2] = b"\0\0"

    with pytest.raises(FilterFormatError, match="count"):
        CuckooFilter.from_bytes(bytes(table))


def test_an_id_added_n_times_goes_with_the_nth_discard() -> None:
    filter = CuckooFilter(100, seed=1)
    for _ in range(30):  # two buckets hold eight copies; the rest is counted
        filter.add("a")
    assert filter.count == 30
    filter = CuckooFilter.from_bytes(filter.to_bytes())

    for _ in range(29):
        assert filter.discard("a")
        assert filter.might_contain("a")
        assert filter.might_contain_many(["a"] * 10) == [True] * 10
    assert filter.discard("a")
    assert not filter.might_contain("a")
    assert not filter.discard("a")
    assert filter.count == 0


def look_alikes(table: CuckooTable, seed: int, pairs: int) -> list[tuple[str, str]]:
    """Find ids with one fingerprint and the same two buckets."""
    from sync_engine.core.filters.hashing import hash_id

    found: list[tuple[str, str]] = []
    seen: dict[tuple[int, frozenset[int]], str] = {}
    for id in ids_of(60_000, "twin"):
        hash = hash_id(id, seed)
        tag = hash >> 48 or 1
        first = hash & table.mask
        place = (tag, frozenset((first, (hash ^ tag * 0x5BD1E995) & table.mask)))
        if place in seen:
            found.append((seen.pop(place), id))
            if len(found) == pairs:
                break
        else:
            seen[place] = id
    return found


def test_discarding_an_id_never_hides_its_look_alike() -> None:
    """Insert-if-absent would store one copy for both, and the discard would take it."""
    filter = CuckooFilter(10, seed=3)
    pairs = look_alikes(CuckooTable(4), seed=3, pairs=20)
    assert len(pairs) == 20

    for one, other in pairs:
        filter.add(one)
        filter.add(other)
        filter.discard(one)
        assert filter.might_contain(other)
        filter.discard(other)
        assert not filter.might_contain(other)


def test_look_alikes_in_different_tables_of_the_chain_do_not_hide_each_other() -> None:
    pairs = look_alikes(CuckooTable(4), seed=3, pairs=20)
    for one, other in pairs:
        for first, second in ((one, other), (other, one)):
            filter = CuckooFilter(10, seed=3)
            filter.add(one)
            filter.add_many(ids_of(300))
            filter.add(other)  # in a larger table, where the two may look different
            assert filter.tables > 1
            assert filter.discard(first)
            assert filter.might_contain(second)


def test_a_filter_that_outgrows_its_size_many_times_has_a_short_chain() -> None:
    """Each table is larger than the one before: a miss looks through few, however it came about."""
    filter = CuckooFilter(10, seed=3)
    for id in ids_of(30_000):
        filter.add(id)

    assert filter.tables <= 12
    assert CuckooFilter.from_bytes(filter.to_bytes()).count == 30_000


def test_deleting_half_denies_none_of_the_other_half() -> None:
    filter = CuckooFilter(1_000, seed=5)
    ids = ids_of(50_000)
    Random(2).shuffle(ids)
    filter.add_many(ids)

    for id in ids[:25_000]:
        assert filter.discard(id)

    assert all(filter.might_contain_many(ids[25_000:]))
    assert sum(filter.might_contain_many(ids[:25_000])) < 100
    assert filter.count == 25_000


def test_a_table_that_is_full_says_so_and_is_left_as_it_was() -> None:
    table = CuckooTable(4)
    random = Random(9)
    taken = []
    while True:
        hash = random.getrandbits(64)
        before = table.table.copy()
        if not table.insert(hash):
            break
        taken.append(hash)

    assert (table.table == before).all()
    assert all(table.holds(hash) for hash in taken)
    assert table.count == len(taken) >= 0.85 * 64


def test_importing_the_filters_imports_no_numpy() -> None:
    code = "import sys, sync_engine.core.filters; print('numpy' in sys.modules)"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )

    assert answer.stdout.strip() == "False"


def test_a_snapshot_survives_its_bytes() -> None:
    snapshot = FilterSnapshot(
        kind="cuckoo", archive_uuid="é-1", generation=7, log_position=9, count=3, body=b"abc"
    )

    assert FilterSnapshot.from_bytes(snapshot.to_bytes()) == snapshot


class CuckooBesideACounter(RuleBasedStateMachine):
    """Added ids are never denied, whatever is discarded, repeated, grown, saved and loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.filter = CuckooFilter(10, seed=11)
        self.model: Counter[str] = Counter()

    ids = st.integers(0, 400).map(lambda number: f"id{number}")

    @rule(id=ids, times=st.integers(1, 12))
    def add(self, id: str, times: int) -> None:
        for _ in range(times):
            self.filter.add(id)
        self.model[id] += times

    @rule(ids=st.lists(ids, min_size=8, max_size=60))
    def add_many(self, ids: list[str]) -> None:
        self.filter.add_many(ids)
        self.model.update(ids)

    @rule(data=st.data())
    def discard(self, data: st.DataObject) -> None:
        known = sorted(self.model)
        if known:
            id = data.draw(st.sampled_from(known))
            assert self.filter.discard(id)
            self.model[id] -= 1
            self.model += Counter()

    @rule()
    def save_and_load(self) -> None:
        self.filter = CuckooFilter.from_bytes(self.filter.to_bytes())

    @invariant()
    def nothing_is_denied(self) -> None:
        assert all(self.filter.might_contain_many(list(self.model)))
        assert all(self.filter.might_contain(id) for id in list(self.model)[:20])
        assert self.filter.count == sum(self.model.values())


def test_a_cuckoo_filter_agrees_with_a_counter() -> None:
    run_state_machine_as_test(
        CuckooBesideACounter,
        settings=settings(max_examples=60, stateful_step_count=60, deadline=None),
    )
