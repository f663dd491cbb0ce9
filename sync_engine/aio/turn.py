"""What one turn of the loop gathered goes to a thread in one piece."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from typing import Any, TypeVar

__all__ = ["hand_over"]

R = TypeVar("R")


def hand_over(
    loop: asyncio.AbstractEventLoop,
    executor: Executor | None,
    work: Callable[[], R],
    pair: Callable[[R], Iterable[tuple[asyncio.Future[Any], Any]]],
    futures: Sequence[asyncio.Future[Any]],
) -> None:
    """Run work in a thread; resolve the futures with its results, or all with its error."""
    task = loop.run_in_executor(executor, work)

    def done(finished: asyncio.Future[R]) -> None:
        error = finished.exception()
        if error is not None:
            for future in futures:
                if not future.done():
                    future.set_exception(error)
            return
        for future, value in pair(finished.result()):
            if not future.done():
                future.set_result(value)

    task.add_done_callback(done)
