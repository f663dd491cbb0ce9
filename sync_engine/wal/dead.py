"""Dead letters: changes that a destination refused for good, kept with its words."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from sync_engine.core import codec
from sync_engine.core.item import Change
from sync_engine.wal.file import LogFile
from sync_engine.wal.overlay import Overlay
from sync_engine.wal.records import DeadLetter

__all__ = ["DeadLetters"]

_ERROR_CHARACTERS_MAX = 2000


class DeadLetters:
    """What was put aside, in the log's file; what the archive refused stays readable.

    Thread-safety: all methods, by the log's locks.
    """

    def __init__(
        self,
        file: LogFile,
        write_lock: AbstractContextManager[Any],
        state_lock: AbstractContextManager[Any],
        overlay: Overlay,
        archive: str,
    ) -> None:
        self._file = file
        self._write_lock = write_lock
        self._state_lock = state_lock
        self._overlay = overlay
        self._archive = archive
        self._errors: dict[tuple[str, int], str] = {}

    def __len__(self) -> int:
        return len(self._errors)

    def load(self) -> None:
        """Take over what the file holds."""
        for letter in self.list():
            self._errors[letter.follower, letter.position] = letter.error
            if letter.follower == self._archive:
                self._overlay.pin(letter.change)

    def bury(self, follower: str, position: int, change: Change, error: str, at_ms: int) -> None:
        """Put a change aside, durably."""
        record = codec.encode(change, position)
        error = error[:_ERROR_CHARACTERS_MAX]
        with self._write_lock:
            self._file.bury(follower, position, change.id, record, error, at_ms)
        with self._state_lock:
            self._errors[follower, position] = error
            if follower == self._archive:
                self._overlay.pin(change)

    def list(self) -> list[DeadLetter]:
        """Return what was put aside, in log order."""
        with self._write_lock:
            rows = self._file.dead()
        return [
            DeadLetter(
                follower=follower,
                position=position,
                change=codec.decode(record, position, where=f"dead letter {position}"),
                error=error,
                at_ms=at_ms,
            )
            for follower, position, _, record, error, at_ms in rows
        ]

    def drop(self, letter: DeadLetter) -> bool:
        """Forget a dead letter for good; tell whether it was there."""
        with self._write_lock:
            there = self._file.unbury(letter.follower, letter.position)
        with self._state_lock:
            self._errors.pop((letter.follower, letter.position), None)
            if letter.follower == self._archive:
                self._overlay.unpin(letter.change.id, letter.change.version)
        return there

    def error(self, follower: str, position: int) -> str | None:
        """Return the error that a position was put aside with, if it was."""
        return self._errors.get((follower, position))
