from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.replication.nodes import Node


@pytest.fixture
def make_node(tmp_path: Path) -> Iterator[Callable[..., Node]]:
    """Make a node; stopped at the end."""
    made: list[Node] = []

    def make(name: str, **options: Any) -> Node:
        made.append(Node(tmp_path, name, **options))
        return made[-1]

    yield make
    for node in made:
        node.stop()
