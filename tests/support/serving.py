"""How a fixture starts a server: once a session, skipped where it is not installed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

import pytest
from support.processes import MissingServer

__all__ = ["serve"]


class Served(Protocol):
    """What `serve` needs of a server, or of a cluster of them."""

    def start(self) -> None: ...

    def destroy(self) -> None: ...


S = TypeVar("S", bound=Served)


def serve(kind: Callable[[], S]) -> Iterator[S]:
    """Start a server for a fixture; skip where it is not installed, unless it must be there."""
    try:
        server = kind()
    except MissingServer as exc:
        if os.environ.get("REQUIRE_SERVERS") == "1":
            pytest.fail(str(exc))
        pytest.skip(str(exc))
    try:
        server.start()
        yield server
    finally:
        server.destroy()
