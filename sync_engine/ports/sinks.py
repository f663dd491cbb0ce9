"""Where changes go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from sync_engine.core.item import Change

__all__ = ["ChangeFeed", "FeedSink", "PositionedSink", "Sink"]


class Sink(Protocol):
    """A place changes are delivered to; a store is a sink that reads back.

    `apply` keeps, for every id, the change with the largest version. Delivering a batch twice, or
    after a newer one, therefore leaves the sink as it was.
    """

    name: str

    def attach(self) -> object:
        """Connect, and create or check what is needed. Called again after `close` or a failure.

        Raises:
            StoreUnavailable: It is not there now.
            ConfigError: It can never serve us as configured; says what to do.
        """

    def apply(self, changes: Sequence[Change]) -> None:
        """Take the whole batch or none of it; ids in a batch are unique.

        Raises:
            StoreUnavailable: Try again later; nothing is known to be applied.
            StoreRejected: This batch can never be applied as a whole.
        """

    def ping(self) -> float:
        """Return the seconds of one round trip.

        Raises:
            StoreUnavailable: No answer within the budget.
        """

    def close(self) -> None:
        """Let go of connections; safe twice, safe before `attach`."""


class PositionedSink(Sink, Protocol):
    """A sink that keeps, with the effect of a batch, the position that the batch ends at.

    What it answers after a crash is then the truth about what it holds, whatever the log's own
    cursor says: effects that version guards cannot make harmless happen once.
    """

    def position(self, log_uuid: str) -> int | None:
        """Return the position stored for a log; None where this target has never followed it.

        Raises:
            StoreUnavailable: Try again later.
        """

    def apply_at(self, changes: Sequence[Change], log_uuid: str, position: int) -> None:
        """Take the whole batch and its last position, or nothing.

        A position at or below the stored one changes nothing. Changes come in the order of the log;
        `changes` may be empty. Raises as `apply`.
        """


class FeedSink(PositionedSink, Protocol):
    """A sink that tells others what the archive took: it holds changes, not items.

    It is given what the archive has taken only, in order, and no copy of what was there before.
    Changes that it once lost are not given again: it tells its readers of the gap instead. A class
    says that it is one by ``is_feed = True``.
    """

    is_feed: bool

    def begin(self, log_uuid: str, position: int, *, after_gap: bool) -> None:
        """Let a log begin, or begin again, after a position.

        With `after_gap`, entries may have been lost before it, and every reader learns of that.

        Raises:
            StoreUnavailable: Try again later.
        """


class ChangeFeed(Protocol):
    """Ids and versions of what engines on one archive brought into it, for each other.

    Nothing is missed in silence: what was lost on the way is told as `FeedGap`. One job tells, and
    another one listens.

    Attributes:
        idle_s: Seconds until it is worth to read again where nothing came: 0.0 where `read` itself
            has waited.
    """

    name: str
    idle_s: float

    def attach(self) -> None:
        """Connect; safe to repeat.

        Raises:
            StoreUnavailable: It is not there now.
            ConfigError: It can never serve us as configured.
        """

    def position(self, log_uuid: str) -> int | None:
        """Return the position that a log has reached; None where it never began."""

    def begin(self, log_uuid: str, position: int, *, after_gap: bool) -> None:
        """Let a log begin, or begin again, after a position; see `FeedSink.begin`."""

    def apply_at(self, changes: Sequence[Change], log_uuid: str, position: int) -> None:
        """Tell a batch, and the position that it ends at; all of it or nothing."""

    def seek_end(self) -> None:
        """Listen to what comes from now on.

        Raises:
            StoreUnavailable: Try again later.
        """

    def read(self, wait_s: float) -> Sequence[tuple[str, Sequence[Change]]]:
        """Return batches that were told, each with the log it is from; waits for one a moment.

        Contents are left out: a put has empty bytes.

        Raises:
            FeedGap: Something was missed: `seek_end` begins anew.
            StoreUnavailable: Something may be missed: `seek_end` begins anew.
        """

    def close(self) -> None:
        """Close connections; safe twice."""
