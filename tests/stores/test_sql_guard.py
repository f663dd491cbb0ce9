"""The statements themselves keep the larger version, also where no tree is kept beside the rows."""

from __future__ import annotations

import pytest

from sync_engine.stores.sql import SqlArchive
from sync_engine.testing import ManualClock
from sync_engine.testing.contracts.archive import ArchiveContract, MakeArchive
from sync_engine.testing.contracts.archive_data import put


@pytest.fixture
def make_archive(any_sql_url: str, clock: ManualClock) -> MakeArchive:
    return lambda: SqlArchive(any_sql_url, clock=clock, timeout_s=5.0, merkle=False)


class TestSqlArchiveWithoutATree(ArchiveContract):
    pass


def test_a_change_that_wins_nothing_leaves_the_tree_as_it_was(
    any_sql_url: str, clock: ManualClock
) -> None:
    archive = SqlArchive(any_sql_url, clock=clock, timeout_s=5.0)
    archive.attach()
    archive.apply([put("a", 5), put("b", 5)])
    root = archive.merkle.merkle_root()

    archive.apply([put("a", 5, b"other bytes"), put("b", 4)])

    assert archive.merkle.merkle_root() == root
    archive.apply([put("a", 6)])
    assert archive.merkle.merkle_root() != root
    archive.close()
