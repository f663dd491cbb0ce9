"""The feed by which engines on one Redis tell each other what they have archived."""

from __future__ import annotations

from collections.abc import Sequence

from sync_engine.core.item import Change
from sync_engine.errors import FeedGap
from sync_engine.ports import Clock
from sync_engine.redis_link.stream import StreamLink
from sync_engine.redis_link.stream_reader import StreamReader
from sync_engine.redis_link.stream_writer import StreamWriter, Trim

__all__ = ["RedisFeed"]

_STREAM = "ids"
_TRIM = Trim(items_max=100_000, age_s_max=3600.0)
_READ_ITEMS = 200


class RedisFeed:
    """Ids and versions, a batch in one entry, on the stream ``<prefix>:{feed}:ids``.

    Implements `ports.ChangeFeed`. Cost: a batch of 1,000 ids takes one script call that adds one
    entry of about 40 B an id.

    Args:
        url: As that of L2.
        prefix: As that of L2.
        clock: For the connection.
        connect_timeout_s: Seconds for a connection.
        timeout_s: Seconds for an answer, the time of waiting included.

    Raises:
        ConfigError: The URL or the prefix cannot be used.
    """

    name = "redis feed"
    idle_s = 0.0

    def __init__(
        self,
        url: str,
        *,
        prefix: str,
        clock: Clock,
        connect_timeout_s: float = 1.0,
        timeout_s: float = 1.0,
    ) -> None:
        self._link = StreamLink(
            url,
            prefix=prefix,
            name=_STREAM,
            clock=clock,
            connect_timeout_s=connect_timeout_s,
            timeout_s=timeout_s,
        )
        self._timeout_s = timeout_s
        self._writer = StreamWriter(self._link, trim=_TRIM, payload=False, packed=True)
        self._reader = StreamReader(self._link)

    def attach(self) -> None:
        """Connect; safe to repeat.

        Raises:
            StoreUnavailable: The server is not there now.
            ConfigError: It can never serve us as configured.
        """
        self._link.open()

    def position(self, log_uuid: str) -> int | None:
        """Return the position that a log has reached; None where it never began."""
        return self._writer.position(log_uuid)

    def begin(self, log_uuid: str, position: int, *, after_gap: bool) -> None:
        """Let a log begin, or begin again, after a position."""
        self._writer.begin(log_uuid, position, after_gap=after_gap)

    def apply_at(self, changes: Sequence[Change], log_uuid: str, position: int) -> None:
        """Tell a batch, and the position that it ends at; all of it or nothing.

        Raises:
            StoreUnavailable: Try again later, after asking for the position.
        """
        self._writer.append(changes, log_uuid, position)

    def seek_end(self) -> None:
        """Listen to what comes from now on.

        Raises:
            StoreUnavailable: Try again later.
        """
        self._reader.skip_to_end()

    def read(self, wait_s: float) -> Sequence[tuple[str, Sequence[Change]]]:
        """Return what was told since; waits for it a moment.

        Raises:
            FeedGap: Something was missed, or could not be understood.
            StoreUnavailable: Something may be missed.
        """
        batch = self._reader.read(_READ_ITEMS, min(wait_s, self._timeout_s / 2))
        if batch.poison:
            raise FeedGap(f"an entry could not be understood: {batch.poison[0].error}")
        return [(entry.link.origin, entry.changes) for entry in batch.entries]

    def close(self) -> None:
        """Close connections; safe twice."""
        self._link.close()
