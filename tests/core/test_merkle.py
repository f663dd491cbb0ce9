"""Digests, paths and comparison, without any store."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sync_engine.core.merkle import (
    EMPTY,
    MemorySource,
    MerkleBatch,
    MerkleEntry,
    MerkleNode,
    MerklePage,
    PathMerkle,
    SetDigest,
    check_separator,
    diff,
    entry_hash,
    sums_by_block,
)
from sync_engine.errors import ConfigError, CorruptData, InvalidItem


class Tree:
    """A tree of entries in memory, by the three names that a comparison uses."""

    def __init__(self, entries: list[MerkleEntry], separator: str = ".") -> None:
        self._tree = PathMerkle(MemorySource(entries), separator)
        self.asked = 0

    def merkle_root(self) -> MerkleNode:
        return self._tree.root()

    def merkle_node(self, path: str) -> MerkleNode:
        return self._tree.node(path)

    def merkle_children(
        self, path: str, after: str | None = None, limit: int = 1000, *, grouped: bool = False
    ) -> MerklePage:
        page = self._tree.children(path, after, limit, grouped=grouped)
        assert len(page.nodes) <= limit
        self.asked += 1
        return page


def entry(id: str, version: int = 1, *, deleted: bool = False, checksum: int = 7) -> MerkleEntry:
    return MerkleEntry(id, version, deleted, entry_hash(id.encode(), version, deleted, checksum))


def entries(*ids: str) -> list[MerkleEntry]:
    return [entry(id) for id in ids]


# -- digests --------------------------------------------------------------------------------------


def test_a_digest_does_not_depend_on_the_order_of_its_entries() -> None:
    digests = [entry(str(n), deleted=n % 3 == 0).digest for n in range(50)]
    forwards, backwards = EMPTY, EMPTY
    for one, other in zip(digests, reversed(digests), strict=True):
        forwards, backwards = forwards + one, backwards + other

    assert forwards == backwards
    assert (forwards.live, forwards.dead) == (33, 17)
    for one in digests:
        forwards = forwards - one
    assert forwards == EMPTY


@pytest.mark.parametrize(
    "other",
    [
        entry("k", 2),
        entry("k", 1, deleted=True),
        entry("k", 1, checksum=8),
        entry("K", 1),
        entry("k\x01", 1),
    ],
)
def test_every_part_of_an_entry_counts(other: MerkleEntry) -> None:
    """Among them the version: a rewrite of the same content is another entry."""
    assert other.digest != entry("k", 1).digest
    assert other.digest.hex != entry("k", 1).digest.hex


def test_the_same_entry_twice_is_not_nothing() -> None:
    """Sums do not cancel as exclusive-or would."""
    digest = entry("k").digest
    assert digest + digest != EMPTY


@given(st.lists(st.tuples(st.integers(0, 2**128 - 1), st.booleans()), max_size=50))
def test_limbs_of_many_rows_can_be_added_by_a_database(rows: list[tuple[int, bool]]) -> None:
    digests = [SetDigest.of(value.to_bytes(16, "little"), deleted=dead) for value, dead in rows]
    total = EMPTY
    for digest in digests:
        total = total + digest
    columns = zip(*[digest.limbs() for digest in digests], strict=True) if digests else [[0]] * 10

    assert SetDigest.of_limbs(tuple(sum(column) for column in columns)) == total
    assert SetDigest.of_limbs(total.limbs()) == total


# -- batches --------------------------------------------------------------------------------------


def batch_of(*ids: bytes) -> MerkleBatch:
    batch = MerkleBatch()
    for number, id in enumerate(ids):
        (batch.remove if number % 3 == 2 else batch.add)(id, number, number % 2, -number)
    return batch


def test_a_batch_survives_packing_in_parts_of_any_size() -> None:
    batch = batch_of(*[f"é{n}".encode() for n in range(25)])
    legs = list(batch.legs())

    for size in (1, 7, 25, 100):
        parts = [MerkleBatch.unpack(part.pack()) for part in batch.split(size)]
        assert [leg for part in parts for leg in part.legs()] == legs
    assert list(MerkleBatch.unpack(MerkleBatch().pack()).legs()) == []


def test_bytes_that_are_no_batch_are_refused() -> None:
    packed = batch_of(b"a", b"b").pack()
    for data in (b"", b"x" * 40, packed[:-2], b"M9" + packed[2:], packed + b"\0more"):
        with pytest.raises(CorruptData):
            MerkleBatch.unpack(data)


@settings(max_examples=200)
@given(
    st.lists(st.binary(min_size=1, max_size=3).map(lambda id: id.replace(b"\0", b"a"))),
    st.sets(st.binary(min_size=1, max_size=3)),
)
def test_sums_by_block_are_exact(ids: list[bytes], lows: set[bytes]) -> None:
    batch = batch_of(*ids)
    firsts = [b"", *sorted(lows)]
    expected: dict[int, SetDigest] = {}
    for id, sign, digest in batch.legs():
        block = max(n for n, low in enumerate(firsts) if low <= id)
        before = expected.get(block, EMPTY)
        expected[block] = before + digest if sign > 0 else before - digest

    sums = sums_by_block(firsts, [batch, MerkleBatch()])

    assert {block: SetDigest.of_limbs(row) for block, row in sums.items()} == expected


# -- paths ----------------------------------------------------------------------------------------


def test_leaf_and_interior_of_one_path_are_kept_apart() -> None:
    """An id may begin another one: neither digest hides the other."""
    with_leaf = Tree(entries("a", "a.b"))
    without = Tree(entries("a.b"))

    assert with_leaf.merkle_node("a").below == without.merkle_node("a").below
    assert with_leaf.merkle_root() != without.merkle_root()
    assert with_leaf.merkle_node("a").entry == entry("a")
    assert Tree(entries("a")).merkle_node("a").below == EMPTY


def test_colons_and_other_characters_are_part_of_a_segment() -> None:
    tree = Tree(entries("user:1:name", "user:2", "a|b", "x"))
    assert [n.path for n in tree.merkle_children("").nodes] == ["a|b", "user:1:name", "user:2", "x"]


def test_a_prefix_of_a_segment_is_no_path() -> None:
    tree = Tree(entries("uk.a", "ukraine.b"))
    assert tree.merkle_node("uk").total.count == 1
    assert tree.merkle_node("ukr").total == EMPTY


def test_a_walk_that_descends_uses_whole_paths() -> None:
    tree = Tree(entries("a.b.c.d", "a.b.c.e", "a.x"))
    path = ""
    for expected in ("a", "a.b", "a.b.c", "a.b.c.d"):
        path = tree.merkle_children(path).nodes[0].path
        assert path == expected


def test_another_separator_makes_other_paths() -> None:
    tree = Tree(entries("a/b.c", "a/d"), "/")
    assert [node.path for node in tree.merkle_children("a").nodes] == ["a/b.c", "a/d"]


@pytest.mark.parametrize("separator", ["", "ab", " ", "\n", "é", 5])
def test_what_is_no_separator_is_refused(separator: object) -> None:
    with pytest.raises(ConfigError):
        check_separator(separator)


@pytest.mark.parametrize("limit", [0, -1, 10_001])
def test_a_page_is_bounded(limit: int) -> None:
    with pytest.raises(InvalidItem):
        Tree([]).merkle_children("", None, limit)


_IDS = st.text(st.sampled_from("ab.-é\U0010ffff"), min_size=1, max_size=7)


@settings(max_examples=200)
@given(st.sets(_IDS, max_size=40), st.sampled_from([1, 2, 3, 100]))
def test_every_node_is_the_sum_of_its_children(ids: set[str], limit: int) -> None:
    """Whatever the ids and the size of pages, no child is left out or counted twice."""
    tree = Tree(entries(*ids))
    stack = [""]
    while stack:
        path, after = stack.pop(), None
        total, seen = EMPTY, []
        while True:
            page = tree.merkle_children(path, after, limit)
            for node in page.nodes:
                assert tree.merkle_node(node.path) == node
                total = total + node.total
                seen.append(node.path)
            after = page.next
            if after is None:
                break
        assert len(seen) == len(set(seen))
        assert total == tree.merkle_node(path).below
        stack += seen


# -- comparison -----------------------------------------------------------------------------------


@settings(max_examples=300)
@given(
    st.dictionaries(_IDS, st.integers(1, 2), max_size=40),
    st.dictionaries(_IDS, st.integers(1, 2), max_size=5),
    st.sets(_IDS, max_size=5),
    st.sampled_from([1, 2, 5, 64]),
)
def test_a_comparison_finds_what_differs_and_nothing_else(
    mine: dict[str, int], changed: dict[str, int], gone: set[str], page: int
) -> None:
    theirs = {id: v for id, v in (mine | changed).items() if id not in gone}
    here = Tree([entry(id, version) for id, version in mine.items()])
    there = Tree([entry(id, version) for id, version in theirs.items()])

    found = diff(here, there, page=page)

    assert set(found.ids) == {i for i in mine.keys() | theirs if mine.get(i) != theirs.get(i)}
    assert set(found.local_only) == mine.keys() - theirs.keys()
    assert set(found.remote_only) == theirs.keys() - mine.keys()


def test_a_subtree_that_one_side_lacks_is_told_by_its_items() -> None:
    """Not by the path on top of it: a repair needs to know what to fetch."""
    found = diff(Tree(entries("x")), Tree(entries("x", "a.b.c", "a.b.d", "a.e")))

    assert found.remote_only == ("a.b.c", "a.b.d", "a.e")
    assert found.divergent_paths == ("a", "a.b")


def test_a_comparison_may_look_at_one_path_only() -> None:
    here, there = Tree(entries("a", "a.b", "c")), Tree(entries("a.b", "a.c", "ab", "d"))
    assert diff(here, there, path="a").ids == ("a", "a.c")


def test_tombstones_that_one_side_has_purged_can_be_left_out() -> None:
    dead = [entry(f"d{n}", deleted=True) for n in range(300)]
    here, there = Tree([*entries("a"), *dead]), Tree(entries("a", "b"))

    assert diff(here, there, tombstones=False).ids == ("b",)
    assert len(diff(here, there).ids) == 301


def test_a_comparison_stops_at_its_limit_and_says_so() -> None:
    found = diff(Tree(entries(*[str(n) for n in range(100)])), Tree([]), limit=10)
    assert len(found.ids) == 10
    assert found.truncated


def test_ten_of_a_hundred_thousand_are_found_with_few_nodes() -> None:
    rng = random.Random(1)
    ids = [f"user.{rng.randrange(10**9):09}" for _ in range(100_000)]
    mine = entries(*dict.fromkeys(ids))
    lost = set(rng.sample(range(len(mine)), 10))
    theirs = [entry(e.id, 2) if n in lost else e for n, e in enumerate(mine)]
    here, there = Tree(mine), Tree(theirs)

    found = diff(here, there)

    assert set(found.changed) == {mine[n].id for n in lost}
    assert found.nodes < 2_000
    assert found.calls < 100


def test_the_hash_of_an_entry_is_what_it_always_was() -> None:
    """Stored trees hold sums of it, and archives of two versions of the engine are compared."""
    assert entry_hash(b"uk.nhs.1", 1882489772303188509, 0, -5).hex() == (
        "d7c1c40bb0717280982cfa34feaf1301"
    )
    assert entry_hash(b"uk.nhs.1", 1882489772303188509, 1, -5).hex() == (
        "db80e5c269392830fe33e3866ef6156c"
    )


def test_differences_are_told_in_the_order_of_ids() -> None:
    """One side is a list, the other is walked in groups: what comes first is not smallest."""
    here, there = entries("b"), entries(*(f"aaaa{n:03d}" for n in range(200)))

    found = diff(Tree(here), Tree(there))

    assert list(found.ids) == sorted(one.id for one in here + there)


@pytest.mark.parametrize("letter", ["\ud7ff", "\U0010ffff", "\x7f"])
def test_groups_of_letters_before_no_letter_are_whole(letter: str) -> None:
    """The next number is that of a surrogate, or of nothing at all."""
    ids = [f"a{letter}{letter}{n:03d}" for n in range(100)] + [f"a{letter}\ue000", "b"]
    tree = Tree(entries(*ids))

    inside = tree.merkle_children(f"a{letter}{letter}", limit=1000, grouped=True)
    groups = tree.merkle_children(f"a{letter}", limit=50, grouped=True)

    assert [node.path for node in inside.nodes] == ids[:100]
    assert {node.path: node.total.live for node in groups.nodes} == {
        f"a{letter}{letter}": 100,
        f"a{letter}\ue000": 1,
    }
    assert list(diff(tree, Tree([])).ids) == sorted(ids)


def test_a_child_larger_than_what_is_read_ahead_is_counted_whole() -> None:
    tree = Tree(entries(*(f"a.{n:03d}" for n in range(300)), "b", *(f"c.{n}" for n in range(100))))

    page = tree.merkle_children("", limit=3)

    assert {node.path: node.total.live for node in page.nodes} == {"a": 300, "b": 1, "c": 100}
    assert [node.total for node in page.nodes] == [
        tree.merkle_node(node.path).total for node in page.nodes
    ]


def test_the_part_of_a_batch_below_an_id_ends_before_it() -> None:
    batch = MerkleBatch()
    for id in (b"a", b"b", b"c", b"b\0"):
        batch.add(id, 1, False, 7)

    assert batch.below(b"b").ids == [b"a"]
    assert batch.below(b"b\0").ids == [b"a", b"b"]
    assert list(batch.below(b"c").legs()) == [leg for leg in batch.legs() if leg[0] != b"c"]
