"""The overlay holds the newest change of every id, by value or by position."""

from __future__ import annotations

from sync_engine.core.item import Change
from sync_engine.wal.overlay import Overlay


def put(id: str, version: int) -> Change:
    return Change(id, version, b"%d" % version)


def test_an_older_change_never_replaces_a_newer_one() -> None:
    overlay = Overlay()
    overlay.put_many([put("a", 5), put("a", 3), put("b", 1), put("b", 2), put("a", 4)])

    assert overlay.get("a") == put("a", 5)
    assert overlay.get("b") == put("b", 2)
    assert sorted(overlay.ids()) == ["a", "b"]


def test_a_newer_change_stays_when_an_older_one_is_dropped() -> None:
    overlay = Overlay()
    older, newer = put("a", 1), put("a", 2)
    overlay.put_many([older, newer])

    overlay.drop(1, [older])
    assert overlay.get("a") is newer

    overlay.drop(2, [newer])
    assert overlay.get("a") is None


def test_what_was_left_to_the_file_is_known_by_its_position() -> None:
    overlay = Overlay()
    older, newer = put("a", 1), put("a", 2)
    overlay.put_many([older, newer])

    overlay.spill(1, [older, newer])

    assert overlay.get("a") == 2
    overlay.drop(1, [older])
    assert overlay.get("a") == 2
    overlay.drop(2, [newer])
    assert overlay.get("a") is None
