"""What is known of a peer: gaps, and the comparisons that make them good."""

from __future__ import annotations

from pathlib import Path

import pytest

from sync_engine.errors import CorruptData
from sync_engine.replication import Peer
from sync_engine.replication.link import PeerLink
from sync_engine.testing import ManualRuntime


def link_at(path: Path) -> PeerLink:
    return PeerLink(Peer(name="b", redis_url="redis://h"), ManualRuntime(), path)


def test_a_gap_that_opens_during_a_comparison_is_not_made_good_by_it(tmp_path: Path) -> None:
    link = link_at(tmp_path / "peer-b.standing")
    link.missed("first")
    before = link.gaps
    link.missed("second, after the comparison has looked")

    link.compared(began_at_ms=1, gaps_before=before)
    assert link.standing.gap == "second, after the comparison has looked"

    link.compared(began_at_ms=2, gaps_before=link.gaps)
    assert link.standing.gap == ""


def test_a_gap_asks_for_a_comparison_at_once(tmp_path: Path) -> None:
    link = link_at(tmp_path / "peer-b.standing")
    woken = []
    link.wake_comparison = lambda: woken.append(link.compare_wanted)

    link.missed("why")

    assert woken == [True]


def test_gap_and_joining_are_known_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "peer-b.standing"
    link = link_at(path)
    link.told_all()
    link.missed("why")

    again = link_at(path).standing

    assert (again.joined, again.gap) == (True, "why")
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_damaged_file_is_told_and_not_taken_for_a_new_peer(tmp_path: Path) -> None:
    """As a new peer, everything that was deleted and forgotten here would come back."""
    path = tmp_path / "peer-b.standing"
    path.write_bytes(b'{"joined":tr')

    with pytest.raises(CorruptData, match="joined"):
        link_at(path)
