"""An asyncio loop in virtual time: an hour of sleep costs nothing, and a seed orders the turns."""

from __future__ import annotations

import asyncio
import random
import selectors
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import Any, TypeVar

__all__ = ["VirtualTimeLoop", "run_virtual"]

T = TypeVar("T")


class _Selector(selectors.DefaultSelector):
    """Lets time pass instead of waiting, unless a thread is at work for the loop."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.outside = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or self.outside:  # only a thread, or the network, can go on from here
            return super().select(timeout)
        ready = super().select(0)
        if not ready and timeout > 0:
            self.now += timeout
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer whenever nothing is ready.

    While a function runs in an executor (``run_in_executor``, ``asyncio.to_thread``) the loop waits
    for it in real time, so that timers do not overtake it. Other threads that call
    ``call_soon_threadsafe`` cannot be seen beforehand: hold time still for them with `outside`.

    Args:
        seed: With a seed, callbacks that are ready together run in an order it decides: other than
            asyncio promises, yet any that correct code has to bear between tasks. None keeps order.
    """

    def __init__(self, seed: int | None = None) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)
        self._random = None if seed is None else random.Random(seed)

    def time(self) -> float:
        """Return virtual seconds since the loop was made."""
        return self._virtual.now

    def outside(self, difference: int) -> None:
        """Note that a thread begins (+1) or ends (-1) to work for this loop; from the loop only."""
        self._virtual.outside += difference

    def run_in_executor(  # type: ignore[override]
        self, executor: Executor | None, func: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        """Run a function in a thread; virtual time stands still meanwhile."""
        future = super().run_in_executor(executor, func, *args)
        self.outside(+1)
        future.add_done_callback(lambda _: self.outside(-1))
        return future

    def _run_once(self) -> None:
        ready: deque[Any] = self._ready  # type: ignore[attr-defined]
        if self._random is not None and len(ready) > 1:
            turns = list(ready)
            self._random.shuffle(turns)
            ready.clear()
            ready.extend(turns)
        super()._run_once()  # type: ignore[misc]


def run_virtual(main: Coroutine[Any, Any, T], *, seed: int | None = None) -> T:
    """Run a coroutine to its end on a `VirtualTimeLoop`, as ``asyncio.run`` does.

    Raises:
        RuntimeError: Called from a running loop.
    """
    with asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(seed)) as runner:
        return runner.run(main)
