"""What every store of a Merkle tree has to do: `core.merkle.MerkleTree` as tests."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sync_engine.core.item import Route
from sync_engine.core.merkle import (
    EMPTY,
    MemorySource,
    MerkleEntry,
    MerkleTree,
    PathMerkle,
    diff,
)
from sync_engine.errors import StoreUnavailable
from sync_engine.testing.contracts.archive_data import HOSTILE_IDS, put, tombstone

__all__ = ["MakeTree", "MerkleContract", "entries_of", "model_of"]

MakeTree = Callable[[Any], MerkleTree]
"""Returns the tree of an attached archive."""


def entries_of(tree: MerkleTree, page: int = 50) -> list[MerkleEntry]:
    """Return every entry, by walking down the groups in pages."""
    found: list[MerkleEntry] = []
    prefixes = [""]
    while prefixes:
        prefix, after = prefixes.pop(), None
        while True:
            answer = tree.merkle_children(prefix, after, page, grouped=True)
            assert len(answer.nodes) <= page
            for node in answer.nodes:
                if node.group:
                    prefixes.append(node.path)
                elif node.entry is not None:
                    found.append(node.entry)
            after = answer.next
            if after is None:
                break
    return sorted(found, key=lambda entry: entry.id.encode())


def model_of(tree: MerkleTree) -> PathMerkle:
    """Return the tree that the entries of a tree make when they are all put together."""
    return PathMerkle(MemorySource(entries_of(tree)))


def walk(tree: MerkleTree, path: str = "", limit: int = 3) -> list[str]:
    """Return the paths of all nodes below one, and check that each is the sum of its children."""
    paths: list[str] = []
    total, after = EMPTY, None
    while True:
        page = tree.merkle_children(path, after, limit)
        assert len(page.nodes) <= limit
        for node in page.nodes:
            assert tree.merkle_node(node.path) == node
            total = total + node.total
            paths.append(node.path)
            if node.below.count:
                paths += walk(tree, node.path, limit)
        after = page.next
        if after is None:
            break
    assert total == tree.merkle_node(path).below
    return paths


class MerkleContract:
    """Subclass it; give it `make_archive`, `make_tree` (a `MakeTree`), and `make_other`.

    The last is as `make_archive`, of an archive of its own.
    """

    @pytest.fixture
    def archive(self, make_archive: Any) -> Iterator[Any]:
        """An attached, empty archive."""
        archive = make_archive()
        archive.attach()
        yield archive
        archive.close()

    @pytest.fixture
    def other(self, make_other: Any) -> Iterator[Any]:
        """Another one."""
        archive = make_other()
        archive.attach()
        yield archive
        archive.close()

    @pytest.fixture
    def tree(self, archive: Any, make_tree: MakeTree) -> MerkleTree:
        """Its tree."""
        return make_tree(archive)

    def test_an_empty_archive_has_an_empty_root(self, tree: MerkleTree) -> None:
        assert tree.merkle_root().total == EMPTY
        assert tree.merkle_children("").nodes == ()
        assert tree.merkle_node("a.b").total == EMPTY

    def test_every_batch_shows_at_once(self, archive: Any, tree: MerkleTree) -> None:
        """No caller has to wait for upkeep."""
        seen = {tree.merkle_root().hash}
        for number in range(1, 6):
            archive.apply([put(f"a.{number}", number)])
            seen.add(tree.merkle_root().hash)

        assert len(seen) == 6
        assert tree.merkle_root().below.live == 5

    def test_an_update_of_any_part_changes_the_root(self, archive: Any, tree: MerkleTree) -> None:
        """Content, version, state, deadline and deletion are all part of an entry."""
        hashes = [tree.merkle_root().hash]
        for change in (
            put("k", 1, b"one"),
            put("k", 2, b"one"),
            put("k", 3, b"three"),
            put("k", 4, b"three", state="other"),
            put("k", 5, b"three", state="other", expires_at_ms=1 << 50),
            tombstone("k", 6),
        ):
            archive.apply([change])
            hashes.append(tree.merkle_root().hash)

        assert len(set(hashes)) == len(hashes)

    def test_a_change_that_loses_leaves_the_root_alone(
        self, archive: Any, tree: MerkleTree
    ) -> None:
        archive.apply([put("k", 5)])
        before = tree.merkle_root()

        archive.apply([put("k", 4, b"older"), put("k", 5, b"as old")])

        assert tree.merkle_root() == before

    def test_an_id_that_begins_another_one_is_a_node_of_its_own(
        self, archive: Any, tree: MerkleTree
    ) -> None:
        """Leaf and interior are kept apart: neither hides a change of the other."""
        archive.apply([put("a", 1), put("a.b", 2), put("a-b", 3)])
        node = tree.merkle_node("a")
        assert node.entry is not None
        assert node.below.live == 1

        archive.apply([put("a", 4)])
        edited = tree.merkle_node("a")
        assert edited.entry != node.entry
        assert edited.below == node.below

        archive.apply([tombstone("a.b", 5)])
        assert tree.merkle_node("a").entry == edited.entry
        assert tree.merkle_node("a").below.live == 0
        assert [child.path for child in tree.merkle_children("").nodes] == ["a", "a-b"]

    def test_paths_end_at_separators(self, archive: Any, tree: MerkleTree) -> None:
        archive.apply([put("uk.a", 1), put("ukraine.b", 2), put("uk", 3)])

        assert tree.merkle_node("uk").total.live == 2
        assert tree.merkle_node("ukraine").total.live == 1
        assert tree.merkle_node("u").total == EMPTY

    def test_hostile_ids_keep_their_place(self, archive: Any, tree: MerkleTree) -> None:
        """Separators of other systems, NUL neighbours and empty segments are plain data."""
        ids = [*HOSTILE_IDS, "a:b", "a:b:c", "a..b", "a.", ".a", "..", "x.y:z"]
        archive.apply([put(id, number) for number, id in enumerate(dict.fromkeys(ids), 1)])

        assert {entry.id for entry in entries_of(tree)} == set(ids)
        paths = walk(tree)
        assert len(paths) == len(set(paths))
        assert set(ids) <= set(paths)

    def test_ids_of_any_depth_and_length(self, archive: Any, tree: MerkleTree) -> None:
        """512 bytes, 256 segments."""
        deep = ".".join(["a"] * 256)
        archive.apply([put(deep, 1), put("b" * 512, 2), put("." * 512, 3)])

        assert tree.merkle_node(deep).entry is not None
        assert tree.merkle_node(deep[: 2 * 128 - 1]).below.live == 1
        assert tree.merkle_node("." * 512).entry is not None

    def test_wide_nodes_are_walked_in_pages(self, archive: Any, tree: MerkleTree) -> None:
        archive.apply([put(f"w.{number:05}", number + 1) for number in range(2500)])
        archive.apply([put(f"w.{number:05}.x", number + 1) for number in range(0, 2500, 500)])
        after, seen = None, []
        while True:
            page = tree.merkle_children("w", after, 700)
            assert len(page.nodes) <= 700
            seen += [node.path for node in page.nodes]
            after = page.next
            if after is None:
                break

        assert seen == [f"w.{number:05}" for number in range(2500)]
        assert tree.merkle_node("w").below.live == 2505

    def test_groups_part_a_wide_node_evenly(self, archive: Any, tree: MerkleTree) -> None:
        archive.apply([put(f"w.{number:05}", number + 1) for number in range(3000)])

        page = tree.merkle_children("w.", None, 100, grouped=True)

        assert page.prefix == "w.0"
        assert [node.path for node in page.nodes] == ["w.00", "w.01", "w.02"]
        assert [node.below.live for node in page.nodes] == [1000, 1000, 1000]
        assert len(tree.merkle_children("w.0123", None, 100, grouped=True).nodes) == 10

    def test_tombstones_are_part_of_it_until_they_are_purged(
        self, archive: Any, tree: MerkleTree
    ) -> None:
        archive.apply([put("a", 1), put("b", 2)])
        archive.apply([tombstone("a", 3), tombstone("never", 4)])
        root = tree.merkle_root().total
        assert (root.live, root.dead) == (1, 2)

        assert archive.purge_tombstones(below_version=100, limit=1) == 1
        assert tree.merkle_root().total.dead == 1
        assert archive.purge_tombstones(below_version=100, limit=10) == 1

        purged = tree.merkle_root().total
        assert (purged.live, purged.dead) == (1, 0)
        assert purged.live_sum == root.live_sum

    def test_what_the_archive_does_not_keep_is_not_in_it(
        self, archive: Any, tree: MerkleTree
    ) -> None:
        cached = int(Route.L2)
        archive.apply([put("a", 1), put("x", 2, routes=cached)])
        assert tree.merkle_root().total.count == 1

        archive.apply([put("a", 3, routes=cached)])

        assert tree.merkle_root().total.dead == 1

    def test_equal_contents_have_equal_roots_however_they_came_about(
        self, archive: Any, other: Any, make_tree: MakeTree
    ) -> None:
        """Order, batches and repetition leave no trace."""
        rng = random.Random(5)
        changes = [
            put(f"d{rng.randrange(5)}.{rng.randrange(300)}", version)
            if rng.random() < 0.8
            else tombstone(f"d{rng.randrange(5)}.{rng.randrange(300)}", version)
            for version in range(1, 3000)
        ]
        for start in range(0, len(changes), 500):
            archive.apply(changes[start : start + 500])
        rng.shuffle(changes)
        for start in range(0, len(changes), 40):
            other.apply(changes[start : start + 40])
            if rng.random() < 0.1:
                other.apply(changes[start : start + 40])

        here, there = make_tree(archive), make_tree(other)
        assert here.merkle_root() == there.merkle_root()
        assert not diff(here, there)
        assert model_of(here).root() == here.merkle_root()

    def test_a_comparison_finds_exactly_what_differs(
        self, archive: Any, other: Any, make_tree: MakeTree
    ) -> None:
        changes = [put(f"d{number % 7}.{number:05}", number + 1) for number in range(4000)]
        for start in range(0, len(changes), 500):
            archive.apply(changes[start : start + 500])
            other.apply(changes[start : start + 500])
        archive.apply([put("d1.00001", 9001), tombstone("d2.00002", 9002), put("new", 9003)])
        other.apply([put("d3.00003", 9004), put("d", 9005)])

        found = diff(make_tree(archive), make_tree(other))

        assert found.ids == ("d", "d1.00001", "d2.00002", "d3.00003", "new")
        assert found.local_only == ("new",)
        assert found.remote_only == ("d",)
        assert found.changed == ("d1.00001", "d2.00002", "d3.00003")
        assert found.divergent_paths == ("", "d1", "d2", "d3")
        assert found.nodes < 1000

    def test_writers_at_the_same_time_lose_no_update(
        self, archive: Any, make_archive: Any, make_tree: MakeTree
    ) -> None:
        """Same ids, new ids, tombstones and purges, by several engines on one archive."""
        failures: list[BaseException] = []
        barrier = threading.Barrier(4)

        def write(seed: int) -> None:
            rng = random.Random(seed)
            mine = make_archive()
            try:
                mine.attach()
                barrier.wait(30)
                for step in range(25):
                    ids = {f"p{rng.randrange(4)}.{rng.randrange(150)}" for _ in range(40)}
                    version = step * 10 + seed + 1
                    batch = [
                        tombstone(id, version) if rng.random() < 0.2 else put(id, version)
                        for id in ids
                    ]
                    _again(lambda batch=batch: mine.apply(batch))  # type: ignore[misc]
                    if step % 5 == seed:
                        _again(
                            lambda step=step: mine.purge_tombstones(  # type: ignore[misc]
                                below_version=step * 5, limit=20
                            )
                        )
            except BaseException as exc:
                failures.append(exc)
                barrier.abort()
            finally:
                mine.close()

        threads = [threading.Thread(target=write, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert failures == []
        tree = make_tree(archive)
        root = tree.merkle_root()
        assert model_of(tree).root() == root
        assert root.total.count == len(archive.scan(limit=10_000, tombstones=True))
        archive.merkle.begin_build()
        while archive.merkle.build_step(100):
            pass
        assert make_tree(archive).merkle_root() == root


def _again(call: Callable[[], object]) -> None:
    """Do what a follower does: repeat a batch that met a deadlock or a busy file."""
    for _ in range(50):
        try:
            call()
        except StoreUnavailable:
            continue
        return
    raise AssertionError("fifty times in a row")
