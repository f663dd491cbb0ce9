"""Fixtures of the replication tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.snapshot.kit import Replica, replica

pytest.importorskip("apsw")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the full lengths out, unless they are asked for by ``-m``."""
    if "long" in config.getoption("-m"):
        return
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here) and item.get_closest_marker("long"):
            item.add_marker(pytest.mark.skip(reason="full length: pytest -m long"))


@pytest.fixture
def rep(tmp_path: Path) -> Iterator[Replica]:
    with replica(tmp_path) as made:
        yield made
