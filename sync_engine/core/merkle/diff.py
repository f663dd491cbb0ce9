"""What two trees do not have in common, found without listing what they have."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import msgspec

from sync_engine.core.merkle.digest import EMPTY, SetDigest
from sync_engine.core.merkle.tree import MerkleEntry, MerkleNode, MerklePage, common_prefix

__all__ = ["Divergence", "MerkleDiff", "MerkleTree", "diff"]


class MerkleTree(Protocol):
    """Three questions: all that a comparison needs of its other side, wherever that is."""

    def merkle_root(self) -> MerkleNode:
        """Return the root."""

    def merkle_node(self, path: str) -> MerkleNode:
        """Return the node of a path."""

    def merkle_children(
        self, path: str, after: str | None = None, limit: int = 1000, *, grouped: bool = False
    ) -> MerklePage:
        """Return a page of children, as `PathMerkle.children`."""


class Divergence(msgspec.Struct, frozen=True, array_like=True):
    """One id on which two trees differ.

    Attributes:
        id: The id.
        mine: Its entry on this side; None: it has none here.
        theirs: Its entry on the other side; None: it has none there.
    """

    id: str
    mine: MerkleEntry | None
    theirs: MerkleEntry | None


class MerkleDiff(msgspec.Struct, frozen=True):
    """Everything two trees differ in.

    Attributes:
        divergent: One entry an id, in id order.
        separator: What parts segments, for `divergent_paths`.
        truncated: Whether there is more than was asked for.
        calls: Questions asked of the other side.
        nodes: Nodes that it answered with.
    """

    divergent: tuple[Divergence, ...]
    separator: str = "."
    truncated: bool = False
    calls: int = 0
    nodes: int = 0

    def __bool__(self) -> bool:
        return bool(self.divergent)

    @property
    def ids(self) -> tuple[str, ...]:
        """Every id that differs."""
        return tuple(one.id for one in self.divergent)

    @property
    def local_only(self) -> tuple[str, ...]:
        """Ids that only this side has, tombstones included."""
        return tuple(one.id for one in self.divergent if one.theirs is None)

    @property
    def remote_only(self) -> tuple[str, ...]:
        """Ids that only the other side has, tombstones included."""
        return tuple(one.id for one in self.divergent if one.mine is None)

    @property
    def changed(self) -> tuple[str, ...]:
        """Ids that both have, and not alike."""
        return tuple(
            one.id for one in self.divergent if one.mine is not None and one.theirs is not None
        )

    @property
    def divergent_paths(self) -> tuple[str, ...]:
        """Paths right above the ids that differ, each once, in order; the root is empty."""
        parents = {one.id.rpartition(self.separator)[0] for one in self.divergent}
        return tuple(sorted(parents))


class _Side:
    """One tree, and how much it was asked."""

    def __init__(self, tree: MerkleTree, page: int) -> None:
        self._tree = tree
        self._page = page
        self.calls = 0
        self.nodes = 0

    def node(self, path: str) -> MerkleNode:
        self.calls += 1
        self.nodes += 1
        return self._tree.merkle_node(path)

    def groups(self, prefix: str) -> _Groups:
        after: str | None = None
        nodes: list[MerkleNode] = []
        while True:
            page = self._tree.merkle_children(prefix, after, self._page, grouped=True)
            self.calls += 1
            self.nodes += len(page.nodes)
            nodes += page.nodes
            after = page.next
            if after is None:
                return _Groups(prefix, page.prefix, nodes)


class _Groups:
    """What one side has of the ids that begin with a prefix, cut up finely or less so."""

    def __init__(self, asked: str, common: str, nodes: list[MerkleNode]) -> None:
        self.asked = asked
        self.nodes = nodes
        self.is_list = not any(node.group for node in nodes)
        self.common = common

    def at(self, common: str) -> dict[str, tuple[SetDigest, MerkleEntry | None]]:
        """Return digest, or entry, by what ids begin with up to the character after `common`."""
        made: dict[str, tuple[SetDigest, MerkleEntry | None]] = {}
        for node in self.nodes:
            label = node.path[: len(common) + 1]
            exact = node.entry if len(node.path) <= len(common) else None
            if exact is not None:
                made["=" + label] = (exact.digest, exact)
            else:
                digest, _ = made.get("~" + label, (EMPTY, None))
                made["~" + label] = (digest + node.total, None)
        return made

    def entries(self) -> dict[str, MerkleEntry]:
        return {node.entry.id: node.entry for node in self.nodes if node.entry is not None}


def diff(
    mine: MerkleTree,
    theirs: MerkleTree,
    *,
    path: str = "",
    separator: str = ".",
    tombstones: bool = True,
    limit: int = 100_000,
    page: int = 64,
    pause: Callable[[], object] = lambda: None,
) -> MerkleDiff:
    """Compare two trees and return what differs.

    Trees that are being written to may differ in what is on its way from one to the other: look
    again before acting.

    Args:
        mine: This side.
        theirs: The other side: an engine, a store, or anything with the same three methods.
        path: Compare only this node and what is below it.
        separator: What parts segments.
        tombstones: Whether a tombstone on one side alone counts: one side may have purged it.
        limit: Differences to return at most.
        page: Entries that are listed rather than grouped; smaller is less to transfer and more to
            ask. 1 to 10,000.
        pause: Called before each question: the place for a bound on their rate.

    Cost: for d differences among n ids of which k characters tell them apart, about d * log(n)
    questions a side, each answered by at most `page` nodes (or one for each character there is).
    """
    here, there = _Side(mine, page), _Side(theirs, page)
    found: list[Divergence] = []
    truncated = False
    for one in _walk(here, there, path, separator, _Same(tombstones), pause):
        if len(found) == limit:
            truncated = True
            break
        found.append(one)
    found.sort(key=lambda one: one.id)
    return MerkleDiff(tuple(found), separator, truncated, there.calls, there.nodes)


class _Same:
    """What counts as equal."""

    def __init__(self, tombstones: bool) -> None:
        self._tombstones = tombstones

    def sets(self, one: SetDigest, other: SetDigest) -> bool:
        if self._tombstones:
            return one == other
        return one.live == other.live and one.live_sum == other.live_sum

    def entries(self, one: MerkleEntry | None, other: MerkleEntry | None) -> bool:
        if not self._tombstones:
            one = None if one is not None and one.deleted else one
            other = None if other is not None and other.deleted else other
        return one == other


def _walk(
    here: _Side,
    there: _Side,
    path: str,
    separator: str,
    same: _Same,
    pause: Callable[[], object],
) -> Iterator[Divergence]:
    pause()
    mine, theirs = here.node(path), there.node(path)
    if not same.entries(mine.entry, theirs.entry):
        yield Divergence(path, mine.entry, theirs.entry)
    if same.sets(mine.below, theirs.below):
        return
    stack = [path + separator if path else ""]
    while stack:
        prefix = stack.pop()
        pause()
        left, right = here.groups(prefix), there.groups(prefix)
        if left.is_list and right.is_list:
            yield from _compare_lists(left.entries(), right.entries(), same)
            continue
        common = _common(left, right)
        lefts, rights = left.at(common), right.at(common)
        for label in sorted(lefts.keys() | rights.keys(), reverse=True):
            digest, entry = lefts.get(label, (EMPTY, None))
            other, others = rights.get(label, (EMPTY, None))
            if label[0] == "=":
                if not same.entries(entry, others):
                    yield Divergence(label[1:], entry, others)
            elif not same.sets(digest, other):
                stack.append(label[1:])


def _common(left: _Groups, right: _Groups) -> str:
    """Return the longest prefix at which both sides can be told apart.

    A side that has listed its entries has no say: it can be cut anywhere.
    """
    if left.is_list:
        return right.common
    if right.is_list:
        return left.common
    return common_prefix(left.common, right.common)


def _compare_lists(
    mine: Mapping[str, MerkleEntry], theirs: Mapping[str, MerkleEntry], same: _Same
) -> Iterator[Divergence]:
    for id in sorted(mine.keys() | theirs.keys()):
        one, other = mine.get(id), theirs.get(id)
        if not same.entries(one, other):
            yield Divergence(id, one, other)
