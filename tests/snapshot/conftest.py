"""Fixtures of the replication tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.snapshot.kit import Replica, replica

pytest.importorskip("apsw")


@pytest.fixture
def rep(tmp_path: Path) -> Iterator[Replica]:
    with replica(tmp_path) as made:
        yield made
