"""The sink `redis_stream`: appends what the archive took to a Redis stream, in order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sync_engine.core.item import Change
from sync_engine.core.signatures import settings_of
from sync_engine.errors import ConfigError, StoreRejected
from sync_engine.ports import AdapterContext, Clock
from sync_engine.redis_link.stream import StreamLink
from sync_engine.redis_link.stream_writer import StreamWriter, Trim

__all__ = ["RedisStreamSink", "from_settings"]


class RedisStreamSink:
    """Appends changes to a stream that all engines of a group share; implements `ports.FeedSink`.

    Every change that the archive has taken becomes one entry, in the order of the engine's log; of
    several changes of an id that travel together the newest. What an entry looks like, and how a
    reader proves that it has missed nothing, is told in the reference of the feed's format.

    A batch and the position that it ends at go in together, so a batch that is repeated after a
    crash or a lost answer adds nothing. Where the stream lost something (Redis was emptied, failed
    over, or this engine had to let the feed go), readers find a gap; nothing is sent twice to fill
    it, for their way to mend it is to read the archive.

    Owned by one job. Blocking: one round trip a batch.

    Args:
        url: As `redis_url` of the engine.
        clock: For the connection.
        prefix: Begins every key; engines of one group share it.
        stream: Name of the stream.
        payload: Whether contents go along; without, entries tell size and SHA-256 only.
        compress_bytes_min: Contents of at least this size are compressed with zstd, in bytes.
        items_max: Entries to keep, approximately; 0 is no bound.
        age_s_max: Seconds to keep entries, approximately; 0 is no bound.
        connect_timeout_s: Seconds for a connection.
        timeout_s: Seconds for an answer.

    Raises:
        ConfigError: A setting cannot be used; names it.
    """

    name = "redis_stream"
    is_feed = True

    def __init__(
        self,
        url: str,
        *,
        clock: Clock,
        prefix: str = "se",
        stream: str = "changes",
        payload: bool = True,
        compress_bytes_min: int = 1024,
        items_max: int = 1_000_000,
        age_s_max: float = 604_800.0,
        connect_timeout_s: float = 1.0,
        timeout_s: float = 2.0,
    ) -> None:
        _checked(
            payload,
            compress_bytes_min=(compress_bytes_min, 0),
            items_max=(items_max, 0),
            age_s_max=(age_s_max, 0),
            connect_timeout_s=(connect_timeout_s, 0.001),
            timeout_s=(timeout_s, 0.001),
        )
        self._link = StreamLink(
            url,
            prefix=prefix,
            name=stream,
            clock=clock,
            connect_timeout_s=connect_timeout_s,
            timeout_s=timeout_s,
        )
        self._clock = clock
        self._writer = StreamWriter(
            self._link,
            trim=Trim(items_max=int(items_max), age_s_max=age_s_max),
            payload=payload,
            compress_bytes_min=compress_bytes_min,
        )

    def __repr__(self) -> str:
        return f"RedisStreamSink({self._link.shown!r}, {self._link.keys.stream.decode()!r})"

    def attach(self) -> None:
        """Connect.

        Raises:
            StoreUnavailable: The server is not there now.
            ConfigError: It can never serve us as configured.
        """
        self._link.open()

    def position(self, log_uuid: str) -> int | None:
        """Return the position that a log has reached in this stream; None: it never began.

        Raises:
            StoreUnavailable: Try again later.
        """
        return self._writer.position(log_uuid)

    def begin(self, log_uuid: str, position: int, *, after_gap: bool) -> None:
        """Let a log begin, or begin again, after a position; see `ports.FeedSink`."""
        self._writer.begin(log_uuid, position, after_gap=after_gap)

    def apply_at(self, changes: Sequence[Change], log_uuid: str, position: int) -> None:
        """Append the whole batch and its last position, or nothing.

        Raises:
            StoreUnavailable: Try again later, after asking for the position.
            StoreRejected: It can never be taken.
        """
        self._writer.append(changes, log_uuid, position)

    def apply(self, changes: Sequence[Change]) -> None:
        """Refuse: a feed takes changes in the order of a log only.

        Raises:
            StoreRejected: Always.
        """
        raise StoreRejected(self.name, "apply", "a feed takes changes in the order of a log only")

    def ping(self) -> float:
        """Return the seconds of one round trip.

        Raises:
            StoreUnavailable: No answer within the budget.
        """
        started = self._clock.monotonic()
        self._link.ask("ping", [(b"XLEN", self._link.keys.stream)])
        return self._clock.monotonic() - started

    def close(self) -> None:
        """Close connections; safe twice."""
        self._link.close()


def _checked(payload: object, **numbers: tuple[object, float]) -> None:
    for name, (value, least) in numbers.items():
        if type(value) not in (int, float) or not value >= least:  # type: ignore[operator]
            raise ConfigError(f"{name} must be at least {least}, got {value!r}")
    if not isinstance(payload, bool):
        raise ConfigError(f"payload must be true or false, got {payload!r}")


def from_settings(context: AdapterContext, **settings: Any) -> RedisStreamSink:
    """Make the sink from settings.

    Args:
        context: What a factory is given.
        settings: Those of `RedisStreamSink`; the clock is the engine's.

    Raises:
        ConfigError: A setting cannot be used; names it.
    """
    try:
        return RedisStreamSink(clock=context.runtime.clock, **settings)
    except ConfigError as exc:
        raise ConfigError(f"sink {context.name}: {exc}") from exc


from_settings.__signature__ = settings_of(  # type: ignore[attr-defined]
    RedisStreamSink, "clock"
)
