"""The Merkle tree in Redis: a mirror of answers, each under the archive position it reflects."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol, TypeVar

import msgspec
from xxhash import xxh3_64_digest

from sync_engine.core.merkle import MerkleMirrored, MerkleNode, MerklePage, PathMerkle
from sync_engine.errors import StorageError
from sync_engine.ports import MirroredTree

__all__ = ["RedisLink", "RedisMerkleStore"]

T = TypeVar("T")
_CHECK_BYTES = 8
_LEAVE_MS = b"60000"
"""How long readers who saw a position as the newest may still ask for its answers."""


class RedisLink(Protocol):
    """A way to say commands about keys of one slot, such as `redis_link.stream.StreamLink`."""

    def open(self) -> None:
        """Connect; safe to repeat."""

    def close(self) -> None:
        """Close connections; safe twice."""

    def ask(self, operation: str, commands: Sequence[Sequence[bytes]]) -> list[Any]:
        """Say commands in one breath, and return their answers."""


class RedisMerkleStore:
    """Answers of a tree, kept in Redis for whoever asks the same at the same archive position.

    Implements `ports.MirrorStore`.

    Each position has a hash of its own, so an answer is never served for another position than the
    one it was given at: a mirror that was emptied, replaced or filled in part only is asked in
    vain, and says nothing wrong. Values carry a checksum; one that fails it counts as absent.
    `latest` names the position of the newest answer.

    The mirror is read in two ways. As a tree (`merkle_root` and so on) it answers as the archive
    does at this moment, and asks the archive for its position and for what Redis lacks. `mirrored`
    asks Redis alone, for what was put there with `fill`, and names the position.

    Thread-safety: every method. Blocking: Redis, and the archive for its position and for what
    Redis does not have.

    Args:
        source: The archive's tree.
        link: Where Redis is.
        key: Begins every key; name one slot of a cluster with braces.
        ttl_s: Seconds after which the answers of a position are forgotten, at least 1.
    """

    def __init__(
        self,
        source: MirroredTree,
        link: RedisLink,
        *,
        key: bytes = b"se:{feed}:merkle",
        ttl_s: float = 3600.0,
    ) -> None:
        self._source = source
        self._link = link
        self._key = key
        self._latest = key + b":latest"
        self._ttl_ms = b"%d" % max(1000, int(ttl_s * 1000))
        self.hits = 0
        self.misses = 0

    def attach(self) -> None:
        """Connect; safe to repeat.

        Raises:
            StoreUnavailable: The server is not there now.
            ConfigError: It can never serve us as configured.
        """
        self._link.open()

    def close(self) -> None:
        """Close connections; safe twice."""
        self._link.close()

    def latest(self) -> str | None:
        """Return the archive position of the newest answer; None where there is none.

        Raises:
            StoreUnavailable: Redis cannot be asked.
        """
        (position,) = self._link.ask("merkle", [(b"GET", self._latest)])
        return None if position is None else bytes(position).decode(errors="replace")

    def merkle_root(self) -> MerkleNode:
        """Return the root.

        Raises:
            StoreUnavailable: Neither side can answer.
        """
        return self.merkle_node("")

    def merkle_node(self, path: str) -> MerkleNode:
        """Return the node of a path; raises as `merkle_root`."""
        return self._answer(_question("node", path), MerkleNode, lambda tree: tree.node(path))

    def merkle_children(
        self, path: str, after: str | None = None, limit: int = 1000, *, grouped: bool = False
    ) -> MerklePage:
        """Return a page of children, as `PathMerkle.children`; raises as `merkle_root`."""
        return self._answer(
            _question("children", path, after, limit, grouped),
            MerklePage,
            lambda tree: tree.children(path, after, limit, grouped=grouped),
        )

    def _answer(self, field: bytes, kind: type[T], ask: Callable[[PathMerkle], T]) -> T:
        position = self._source.position()
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

    def _known(self, position: str, field: bytes, kind: type[T]) -> T | None:
        with suppress(StorageError):
            (data,) = self._link.ask("merkle", [(b"HGET", self._place(position), field)])
            return _decoded(data, kind)
        return None

    def _keep(self, position: str, field: bytes, answer: object) -> None:
        self._put(position, [(field, answer)])

    def _put(self, position: str, answers: Sequence[tuple[bytes, object]]) -> None:
        """Write answers, and name their position last: it is never named before it has them."""
        place = self._place(position)
        pairs = [part for field, answer in answers for part in (field, _encoded(answer))]
        commands = [
            (b"HSET", place, *pairs),
            (b"PEXPIRE", place, self._ttl_ms),
            (b"SET", self._latest, position.encode(), b"PX", self._ttl_ms),
        ]
        self._link.ask("merkle", commands)

    # -- what is put there, and asked of Redis alone ----------------------------------------------

    def fill(
        self, position: str, answers: Mapping[str, tuple[MerkleNode, MerklePage]], now_ms: int
    ) -> None:
        """Write nodes, each with its first children, all of one position; it is the newest then.

        Args:
            position: That they are of.
            answers: By path; the root is among them.
            now_ms: When the archive was seen at the position, wall-clock milliseconds.

        Raises:
            StoreUnavailable: Try again later; nothing that is there became wrong.
        """
        before = self.latest()
        fields = [(_held(path), answer) for path, answer in answers.items()]
        self._put(position, [*fields, (_SEEN, now_ms)])
        if before not in (None, position):
            self._link.ask("merkle", [(b"PEXPIRE", self._place(before or ""), _LEAVE_MS)])

    def prolong(self, position: str, now_ms: int) -> bool:
        """Keep what was filled for longer, if it is of a position; return whether it is.

        Args:
            position: Of the archive, now.
            now_ms: Now, wall-clock milliseconds.

        Raises:
            StoreUnavailable: Try again later.
        """
        place = self._place(position)
        asked = [(b"GET", self._latest), (b"HGET", place, _held(""))]
        latest, root = self._link.ask("merkle", asked)
        if latest is None or bytes(latest) != position.encode():
            return False
        if _decoded(root, tuple[MerkleNode, MerklePage]) is None:
            return False
        kept = [
            (b"HSET", place, _SEEN, _encoded(now_ms)),
            (b"PEXPIRE", place, self._ttl_ms),
            (b"PEXPIRE", self._latest, self._ttl_ms),
        ]
        self._link.ask("merkle", kept)
        return True

    def mirrored(self, path: str) -> MerkleMirrored | None:
        """Return what was filled for a path, of the newest position; None: it is not there.

        Asks Redis alone. None says nothing of the archive.

        Raises:
            StoreUnavailable: Redis cannot be asked.
        """
        position = self.latest()
        if position is None:
            return None
        asked = (b"HMGET", self._place(position), _held(path), _SEEN)
        ((answer, seen),) = self._link.ask("merkle", [asked])
        found = _decoded(answer, tuple[MerkleNode, MerklePage])
        seen_ms = _decoded(seen, int)
        if found is None or seen_ms is None:
            return None
        return MerkleMirrored(*found, position=position, seen_at_ms=seen_ms)

    def _place(self, position: str) -> bytes:
        return self._key + b":at:" + position.encode()


def _question(*words: object) -> bytes:
    return msgspec.msgpack.encode(words)


def _held(path: str) -> bytes:
    return _question("held", path)


_SEEN = _question("seen")


def _encoded(answer: object) -> bytes:
    body = msgspec.msgpack.encode(answer)
    return xxh3_64_digest(body) + body


def _decoded(data: Any, kind: type[T]) -> T | None:
    """Return an answer; None where there is none, or its checksum fails."""
    raw = b"" if data is None else bytes(data)
    body = raw[_CHECK_BYTES:]
    if not body or xxh3_64_digest(body) != raw[:_CHECK_BYTES]:
        return None
    try:
        return msgspec.msgpack.decode(body, type=kind)
    except msgspec.DecodeError:
        return None
