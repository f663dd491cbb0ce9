"""Named places where a test may crash, delay or fail the engine.

Production code says ``if failpoints.armed: failpoints.hit("wal.committed")`` at every line whose
order is a promise. While nothing is armed, that is one false test of a module global.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["armed", "during", "hit"]

armed = False
_actions: dict[str, Callable[[], None]] = {}


def hit(name: str) -> None:
    """Run the action armed under a name, if there is one."""
    action = _actions.get(name)
    if action is not None:
        action()


@contextmanager
def during(name: str, action: Callable[[], None]) -> Iterator[None]:
    """Arm a failpoint for the length of a block; the action may raise, wait or kill."""
    global armed  # one switch for all, read on hot paths
    _actions[name] = action
    armed = True
    try:
        yield
    finally:
        del _actions[name]
        armed = bool(_actions)
