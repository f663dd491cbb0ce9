"""What every L2 cache store has to do."""

from __future__ import annotations

import pytest

from sync_engine.core.item import Change, Route
from sync_engine.ports import CacheStore, Clock

__all__ = ["CacheContract"]

HOSTILE = [
    "a",
    "A",
    "a ",
    "ä",
    "a\u0308",
    "😀",
    "*",
    "[a]",
    "a:b",
    "{tag}",
    "mark",
    "x" * 512,
    "ü" * 256,
    "\r\n",
    "EX",
]


def put(change_id: str, version: int, content: bytes = b"v", **fields: int) -> Change:
    """Make a put."""
    return Change(change_id, version, content, **fields)  # type: ignore[arg-type]


class CacheContract:
    """Subclass it, and give a fixture ``cache`` (attached, empty) and one ``cache_clock``."""

    def test_what_was_applied_comes_back_exactly(self, cache: CacheStore) -> None:
        changes = [
            Change("a", 5, b"\x00\xff" * 100, 1, "state", 0, 3, "00-trace"),
            put("empty", 6, b""),
            put("big", 7, bytes(1 << 20)),
        ]

        cache.apply(changes)

        found = cache.get_many(["a", "empty", "big", "never"])
        assert found == {change.id: change for change in changes}

    def test_the_larger_version_wins_in_any_order(self, cache: CacheStore) -> None:
        cache.apply([put("a", 2, b"new")])
        cache.apply([put("a", 1, b"old")])
        cache.fill([put("a", 1, b"old")])
        cache.apply([put("a", 2, b"same version, other bytes")])

        assert cache.get_many(["a"])["a"].content == b"new"

    @pytest.mark.parametrize("low", [0, 1, 999_999_999, (1 << 53) - 1, (1 << 62) + 7])
    def test_neighbouring_versions_are_told_apart(self, cache: CacheStore, low: int) -> None:
        """They are beyond what a double holds."""
        cache.apply([put("a", low + 1, b"new")])
        cache.apply([put("a", low, b"old")])
        assert cache.get_many(["a"])["a"].content == b"new"

        cache.apply([put("a", low + 2, b"newer")])
        assert cache.get_many(["a"])["a"].content == b"newer"

    def test_a_tombstone_leaves_a_mark_that_refuses_late_fills(self, cache: CacheStore) -> None:
        cache.apply([put("a", 1)])
        cache.apply([Change("a", 3, None)])
        cache.fill([put("a", 1)])
        cache.apply([put("a", 2)])

        found = cache.get_many(["a"])
        assert "a" not in found or found["a"].content is None

    def test_a_change_routed_past_it_invalidates(self, cache: CacheStore) -> None:
        cache.apply([put("a", 1, b"old")])
        cache.apply([put("a", 2, b"archive only", routes=int(Route.L3))])

        found = cache.get_many(["a"])
        assert "a" not in found or found["a"].content is None

    def test_a_fill_is_kept_where_nothing_newer_is(self, cache: CacheStore) -> None:
        cache.fill([put("a", 5, b"archived")])

        assert cache.get_many(["a"])["a"].content == b"archived"

    def test_a_fill_changes_nothing_at_the_same_version(self, cache: CacheStore) -> None:
        cache.apply([put("a", 5, b"written")])
        cache.fill([put("a", 5, b"copied")])

        assert cache.get_many(["a"])["a"].content == b"written"

    def test_an_expired_fill_is_not_returned(self, cache: CacheStore, cache_clock: Clock) -> None:
        cache.fill([put("a", 5, expires_at_ms=cache_clock.now_ms() - 1)])

        found = cache.get_many(["a"])
        assert "a" not in found or found["a"].content is None

    def test_a_deleted_item_can_be_written_anew(self, cache: CacheStore) -> None:
        cache.apply([put("a", 1)])
        cache.apply([Change("a", 2, None)])
        cache.apply([put("a", 3, b"again")])

        assert cache.get_many(["a"])["a"].content == b"again"

    def test_an_expired_change_takes_the_place_of_an_older_one(
        self, cache: CacheStore, cache_clock: Clock
    ) -> None:
        cache.apply([put("a", 1)])
        cache.apply([put("a", 2, expires_at_ms=cache_clock.now_ms() - 1)])

        found = cache.get_many(["a"])
        assert "a" not in found or found["a"].content is None

    def test_nothing_asked_is_nothing_answered(self, cache: CacheStore) -> None:
        cache.apply([])
        cache.fill([])

        assert cache.get_many([]) == {}

    def test_an_id_asked_twice_is_answered_once(self, cache: CacheStore) -> None:
        cache.apply([put("a", 1)])

        assert list(cache.get_many(["a", "b", "a"])) == ["a"]

    def test_what_expired_is_never_returned(self, cache: CacheStore, cache_clock: Clock) -> None:
        now_ms = cache_clock.now_ms()
        cache.apply([put("past", 1, expires_at_ms=now_ms - 1)])
        cache.apply([put("future", 1, expires_at_ms=now_ms + 60_000)])

        found = cache.get_many(["past", "future"])

        assert "past" not in found or found["past"].content is None
        assert found["future"].content == b"v"

    def test_hostile_ids_are_kept_apart(self, cache: CacheStore) -> None:
        changes = [put(change_id, n + 1, b"%d" % n) for n, change_id in enumerate(HOSTILE)]

        cache.apply(changes)

        assert cache.get_many(HOSTILE) == {change.id: change for change in changes}

    def test_a_large_batch_goes_whole(self, cache: CacheStore) -> None:
        changes = [put(f"i{n}", n + 1, bytes([n % 256]) * 1000) for n in range(3000)]

        cache.apply(changes)

        assert cache.get_many([c.id for c in changes]) == {c.id: c for c in changes}

    def test_a_new_epoch_abandons_everything(self, cache: CacheStore) -> None:
        cache.apply([put("a", 9)])

        cache.new_epoch()

        assert cache.get_many(["a"]) == {}
        cache.apply([put("a", 1, b"older, and alone now")])
        assert cache.get_many(["a"])["a"].version == 1

    def test_it_can_be_closed_and_attached_again(self, cache: CacheStore) -> None:
        cache.apply([put("a", 1)])

        cache.close()
        cache.close()
        cache.attach()

        assert cache.get_many(["a"])["a"].version == 1
        assert cache.ping() >= 0
        assert not cache.identity_changed()
