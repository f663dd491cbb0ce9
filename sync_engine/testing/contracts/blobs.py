"""What every store of blobs has to do."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from sync_engine.errors import Conflict, StorageError
from sync_engine.ports import BlobInfo, BlobStore

__all__ = ["BlobsContract"]

HOSTILE = [
    "a",
    "A",
    "a b+c%25",
    "ä",
    "a\u0308",
    "😀",
    "x&lt<>y",
    "quote\"'",
    "tab\there",
    "trailing ",
    "+",
    "%",
    "q?#[]{}|^~",
    "deep/er/key",
    "deep-er",
    "deep.er",
    "deep0er",
    "k" * 200,
    ".hidden/.x",
]
FREE = ["a", "a/", "a/b", "a//b", "a!", "./x", "../y", "/lead", "..", "a/../../z"]


class BlobsContract:
    """Subclass it, declare what the store can do, and give a fixture ``blobs`` (empty).

    What is declared is proved, in both directions: neither a store that lost an ability nor one
    that won one passes unnoticed.

    Attributes:
        conditional_writes: Whether of several writers with `if_absent` exactly one wins, as the
            store's own `atomic_if_absent` has to say; some S3 servers ignore the condition. Without
            it the race of many writers is not run.
        free_keys: Whether every key is possible: some servers keep objects as files, so that no key
            can be the folder of another, and no part be empty or ``..``.
    """

    conditional_writes: bool
    free_keys: bool

    def test_what_is_put_comes_back(self, blobs: BlobStore) -> None:
        for key, data in (("empty", b""), ("bytes", bytes(range(256))), ("big", b"x" * (1 << 20))):
            info = blobs.put(key, data)

            assert (info.key, info.size) == (key, len(data))
            assert blobs.get(key) == data

    def test_what_is_not_there_is_none(self, blobs: BlobStore) -> None:
        assert blobs.get("none") is None
        assert blobs.get("no/ne") is None
        assert list(blobs.list("")) == []

    def test_a_put_replaces(self, blobs: BlobStore) -> None:
        first = blobs.put("k", b"first")
        second = blobs.put("k", b"second")

        assert blobs.get("k") == b"second"
        assert first.etag != second.etag
        assert [(b.key, b.size) for b in blobs.list("")] == [("k", 6)]

    def test_the_listing_says_what_put_said(self, blobs: BlobStore) -> None:
        put = blobs.put("k", b"12345")

        (listed,) = blobs.list("k")

        assert isinstance(listed, BlobInfo)
        assert (listed.key, listed.size, listed.etag) == (put.key, put.size, put.etag)
        assert listed.modified_ms > 0

    def test_odd_keys_are_listed_in_bytewise_order(self, blobs: BlobStore) -> None:
        for key in HOSTILE:
            blobs.put(key, key.encode())

        assert [b.key for b in blobs.list("")] == sorted(HOSTILE, key=str.encode)
        assert all(blobs.get(key) == key.encode() for key in HOSTILE)

    def test_a_key_may_be_the_folder_of_another(self, blobs: BlobStore) -> None:
        assert _keeps(blobs, FREE) is self.free_keys
        if self.free_keys:
            blobs.delete(["a"])
            assert blobs.get("a/b") == b"a/b"

    def test_a_prefix_is_literal(self, blobs: BlobStore) -> None:
        for key in ("a%/1", "a%/2", "aX/3", "a%x", "b"):
            blobs.put(key, b"")

        assert [b.key for b in blobs.list("a%/")] == ["a%/1", "a%/2"]
        assert [b.key for b in blobs.list("a%")] == ["a%/1", "a%/2", "a%x"]
        assert list(blobs.list("c")) == []

    def test_what_is_deleted_is_gone_and_absent_keys_are_fine(self, blobs: BlobStore) -> None:
        for key in ("d/1", "d/2", "e"):
            blobs.put(key, b"x")

        blobs.delete(["d/1", "never", "no/where"])
        blobs.delete([])

        assert [b.key for b in blobs.list("")] == ["d/2", "e"]
        blobs.delete(["d/2", "e", "d/1"])
        assert list(blobs.list("")) == []
        blobs.put("d/3", b"again")
        assert blobs.get("d/3") == b"again"

    def test_a_conditional_put_never_replaces(self, blobs: BlobStore) -> None:
        blobs.put("k", b"first", if_absent=True)

        with pytest.raises(Conflict) as refused:
            blobs.put("k", b"second", if_absent=True)

        assert refused.value.id == "k"
        assert blobs.get("k") == b"first"

    def test_the_store_knows_whether_conditions_are_kept(self, blobs: BlobStore) -> None:
        assert blobs.atomic_if_absent is self.conditional_writes

    def test_one_of_many_writers_wins(self, blobs: BlobStore) -> None:
        if not self.conditional_writes:
            pytest.skip("declared: conditions are not kept here")

        def attempt(number: int) -> int | None:
            try:
                blobs.put("k", str(number).encode(), if_absent=True)
            except Conflict:
                return None
            return number

        with ThreadPoolExecutor(8) as pool:
            winners = [w for w in pool.map(attempt, range(16)) if w is not None]

        assert len(winners) == 1
        assert blobs.get("k") == str(winners[0]).encode()


def _keeps(blobs: BlobStore, keys: list[str]) -> bool:
    """Tell whether objects of these keys are all kept, each under its name, and listed in order."""
    try:
        for key in keys:
            blobs.put(key, key.encode())
        listed = [b.key for b in blobs.list("")]
        kept = {key: blobs.get(key) for key in keys}
    except StorageError:
        return False
    return listed == sorted(keys, key=str.encode) and kept == {key: key.encode() for key in keys}
