"""The death of a process at a failpoint, for engines that live in the test's own process."""

from __future__ import annotations

from typing import NoReturn

__all__ = ["Killed", "kill"]


class Killed(BaseException):
    """The process is dead: nothing after this line happened."""


def kill() -> NoReturn:
    """Die."""
    raise Killed
