from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.sites import Fleet


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Callable[..., Fleet]]:
    """Make engines on one archive, cache and feed, which know of each other; two by default."""
    made = []

    def make(*names: str, **settings: Any) -> Fleet:
        made.append(Fleet(tmp_path, *(names or ("a", "b")), **settings))
        made[-1].meet()
        return made[-1]

    yield make
    for fleet in made:
        fleet.close()
