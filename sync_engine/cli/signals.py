"""SIGINT and SIGTERM: at once where that is harmless, after the write under way elsewhere."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Interrupted", "Stop"]


class Interrupted(KeyboardInterrupt):
    """Somebody asked the command to end.

    Attributes:
        signum: With which signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


class Stop:
    """Turns signals into `Interrupted`."""

    def __init__(self) -> None:
        self._asked = False
        self._noted: int | None = None
        self._depth = 0

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Listen to signals; outside the main thread, where Python cannot, do nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = [signal.signal(number, self._handle) for number in numbers]
        try:
            yield
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)

    def _handle(self, signum: int, frame: object) -> None:
        del frame
        first, self._asked = not self._asked, True
        if first and self._depth:
            self._noted = signum
            return
        raise Interrupted(signum)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Hold the first signal back until the end of the block; the second ends it at once."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
        if self._noted is not None and not self._depth:
            signum, self._noted = self._noted, None
            raise Interrupted(signum)
