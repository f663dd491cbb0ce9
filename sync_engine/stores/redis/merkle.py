"""The Merkle tree in Redis: a mirror of answers, each under the archive position it reflects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any, Protocol, TypeVar

import msgspec
from xxhash import xxh3_64_digest

from sync_engine.core.merkle import MerkleNode, MerklePage, PathMerkle
from sync_engine.errors import StorageError, StoreUnavailable

__all__ = ["MirroredTree", "RedisLink", "RedisMerkleStore"]

T = TypeVar("T")
_CHECK_BYTES = 8


class RedisLink(Protocol):
    """A way to say commands about keys of one slot, such as `redis_link.stream.StreamLink`."""

    def ask(self, operation: str, commands: Sequence[Sequence[bytes]]) -> list[Any]:
        """Say commands in one breath, and return their answers."""


class MirroredTree(Protocol):
    """A tree that can name its position, and be read at one."""

    def position(self) -> str:
        """Return the archive position now."""

    def view(self) -> AbstractContextManager[PathMerkle]:
        """Give the tree of one moment."""


class RedisMerkleStore:
    """Answers of a tree, kept in Redis for whoever asks the same at the same archive position.

    Each position has a hash of its own, so an answer is never served for another position than the
    one it was given at: a mirror that was emptied, replaced or filled in part only is asked in
    vain, and says nothing wrong. Values carry a checksum; one that fails it counts as absent.
    `latest` names the position of the newest answer.

    Thread-safety: every method. Blocking: Redis, and the archive for its position and for what
    Redis does not have.

    Args:
        source: The archive's tree.
        link: Where Redis is.
        key: Begins every key; name one slot of a cluster with braces.
        ttl_s: Seconds after which the answers of a position are forgotten, at least 1.
        stale: While the archive cannot be asked, answer as of `latest`.
    """

    def __init__(
        self,
        source: MirroredTree,
        link: RedisLink,
        *,
        key: bytes = b"se:{feed}:merkle",
        ttl_s: float = 3600.0,
        stale: bool = False,
    ) -> None:
        self._source = source
        self._link = link
        self._key = key
        self._ttl_ms = b"%d" % max(1000, int(ttl_s * 1000))
        self._stale = stale
        self.hits = 0
        self.misses = 0

    def latest(self) -> str | None:
        """Return the archive position of the newest answer; None where there is none.

        Raises:
            StoreUnavailable: Redis cannot be asked.
        """
        (position,) = self._link.ask("merkle", [(b"GET", self._key + b":latest")])
        return None if position is None else bytes(position).decode()

    def merkle_root(self) -> MerkleNode:
        """Return the root.

        Raises:
            StoreUnavailable: Neither side can answer.
        """
        return self.merkle_node("")

    def merkle_node(self, path: str) -> MerkleNode:
        """Return the node of a path; raises as `merkle_root`."""
        return self._answer(["node", path], MerkleNode, lambda tree: tree.node(path))

    def merkle_children(
        self, path: str, after: str | None = None, limit: int = 1000, *, grouped: bool = False
    ) -> MerklePage:
        """Return a page of children, as `PathMerkle.children`; raises as `merkle_root`."""
        return self._answer(
            ["children", path, after, limit, grouped],
            MerklePage,
            lambda tree: tree.children(path, after, limit, grouped=grouped),
        )

    def _answer(self, question: list[Any], kind: type[T], ask: Callable[[PathMerkle], T]) -> T:
        field = msgspec.msgpack.encode(question)
        position = self._position()
        known = self._known(position, field, kind)
        if known is not None:
            self.hits += 1
            return known
        self.misses += 1
        with self._source.view() as tree:
            answer, position = ask(tree), tree.position
        with suppress(StorageError):  # a mirror that is down costs its answers and no other
            self._keep(position, field, answer)
        return answer

    def _position(self) -> str:
        try:
            return self._source.position()
        except StoreUnavailable:
            latest = self.latest() if self._stale else None
            if latest is None:
                raise
            return latest

    def _known(self, position: str, field: bytes, kind: type[T]) -> T | None:
        with suppress(StorageError):
            (data,) = self._link.ask("merkle", [(b"HGET", self._place(position), field)])
            if data is not None:
                return _decoded(bytes(data), kind)
        return None

    def _keep(self, position: str, field: bytes, answer: object) -> None:
        body = msgspec.msgpack.encode(answer)
        place = self._place(position)
        commands = [
            (b"HSET", place, field, xxh3_64_digest(body) + body),
            (b"PEXPIRE", place, self._ttl_ms),
            (b"SET", self._key + b":latest", position.encode(), b"PX", self._ttl_ms),
        ]
        self._link.ask("merkle", commands)

    def _place(self, position: str) -> bytes:
        return self._key + b":at:" + position.encode()


def _decoded(data: bytes, kind: type[T]) -> T | None:
    body = data[_CHECK_BYTES:]
    if xxh3_64_digest(body) != data[:_CHECK_BYTES]:
        return None
    try:
        return msgspec.msgpack.decode(body, type=kind)
    except msgspec.DecodeError:
        return None
