"""The source `change_stream`: follows the feed of other engines, alone or as one of a group."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from sync_engine.core.feed import FeedCursor, FeedEntry
from sync_engine.core.item import Change
from sync_engine.core.signatures import settings_of
from sync_engine.errors import ConfigError, FeedGap, StorageError
from sync_engine.ports import AdapterContext, Clock, SourceBatch
from sync_engine.redis_link.stream import StreamLink
from sync_engine.redis_link.stream_group import StreamGroup
from sync_engine.redis_link.stream_reader import Poison, ReadBatch, StreamReader
from sync_engine.sources.change_stream.cursor_file import CursorFile
from sync_engine.telemetry import get_logger

__all__ = ["ChangeStream", "OnGap", "Start", "from_settings"]

_log = get_logger("sources.change_stream")
_POISON_MAX = b"10000"

Start = Literal["oldest", "new"]
OnGap = Literal["stop", "continue"]


class ChangeStream:
    """Gives the changes of a feed, with the versions they have; implements `ports.Source`.

    Without a group, the cursor lies in a file in `data_dir`, and proves at every read that nothing
    was missed. With a group, workers share the feed, and the same proof is kept for all of them in
    Redis. What is missing is told as `FeedGap`: where `on_gap` is ``stop``, at every `poll` until
    `skip_gap`; where it is ``continue``, it is counted, and read on behind it.

    Entries that cannot be understood are put into a stream beside the feed (``<key>:poison``) with
    the reason, counted, and passed: they block nothing.

    Owned by one job; `skip_gap`, `progress`, `gap` and `gaps` may be used from any thread.

    Args:
        url: Of the Redis that holds the feed.
        clock: For the connection.
        cursor_path: File of the cursor.
        prefix: As the feed's sink has it.
        stream: As the feed's sink has it.
        group: Name of the consumer group; empty follows alone.
        consumer: Name of this worker in the group; empty makes one of host and cursor file, so that
            a worker that comes back finds what it had not done.
        start: Where to begin, the first time.
        on_gap: What to do where something is missing.
        ignore: Origins (log identities) whose changes are left out, such as one's own.
        idle_s: Seconds until asking again where there was nothing.
        claim_idle_s: Seconds after which entries of a silent worker are taken over.
        content_bytes_max: Largest content.
        connect_timeout_s: Seconds for a connection.
        timeout_s: Seconds for an answer.

    Raises:
        ConfigError: A setting cannot be used; names it.
    """

    name = "change_stream"

    def __init__(
        self,
        url: str,
        *,
        clock: Clock,
        cursor_path: Path,
        prefix: str = "se",
        stream: str = "changes",
        group: str = "",
        consumer: str = "",
        start: Start = "oldest",
        on_gap: OnGap = "stop",
        ignore: Collection[str] = (),
        idle_s: float = 0.05,
        claim_idle_s: float = 60.0,
        content_bytes_max: int = 64 << 20,
        connect_timeout_s: float = 1.0,
        timeout_s: float = 2.0,
    ) -> None:
        _checked_words(start=(start, get_args(Start)), on_gap=(on_gap, get_args(OnGap)))
        _checked_numbers(
            idle_s=idle_s,
            claim_idle_s=claim_idle_s,
            content_bytes_max=content_bytes_max,
            connect_timeout_s=connect_timeout_s,
            timeout_s=timeout_s,
        )
        self._link = StreamLink(
            url,
            prefix=prefix,
            name=stream,
            clock=clock,
            connect_timeout_s=connect_timeout_s,
            timeout_s=timeout_s,
        )
        self._start = start
        self._on_gap = on_gap
        self._idle_s = idle_s
        self._file = CursorFile(cursor_path)
        self._reader = StreamReader(self._link, bytes_max=content_bytes_max)
        self._group: StreamGroup | None = None
        if group:
            self._group = StreamGroup(
                self._link,
                group=group,
                consumer=consumer or _own_name(cursor_path),
                from_start=start == "oldest",
                claim_idle_s=claim_idle_s,
                bytes_max=content_bytes_max,
            )
        self.ignore = frozenset((ignore,) if isinstance(ignore, str) else ignore)
        self.gap = ""
        self.gaps = 0
        self._skip_wanted = False
        self._given: dict[int, Sequence[bytes]] = {}
        self._turn = self._acked = 0
        self._counts = {
            "entries": 0.0, "repeats": 0.0, "poison": 0.0, "own": 0.0, "trimmed": 0.0,
        }  # fmt: skip

    def __repr__(self) -> str:
        return f"ChangeStream({self._link.shown!r}, {self._link.keys.stream.decode()!r})"

    # -- ports.Source -----------------------------------------------------------------------------

    def attach(self) -> None:
        """Connect, and go to where the last acknowledgement was.

        Raises:
            StoreUnavailable: The server is not there now.
            ConfigError: It can never serve us as configured.
        """
        self._link.open()
        self._given.clear()
        if self._group is not None:
            self._group.open()
            return
        cursor = self._file.load()
        if cursor is not None:
            self._reader.seek(cursor)
        elif self._start == "new":
            self._file.save(self._reader.skip_to_end().encoded())
        else:
            self._reader.seek(FeedCursor())

    def poll(self, items_max: int) -> SourceBatch:
        """Return up to `items_max` changes that follow those of the last poll.

        Raises:
            FeedGap: Something is missing; see `skip_gap`.
            StoreUnavailable: Try again later; nothing was skipped.
            ConfigError: The feed carries no contents.
        """
        may_skip = self._skip_wanted or self._on_gap == "continue"
        try:
            batch, token = self._read(items_max)
        except FeedGap as exc:
            self._missed(str(exc))
            if not may_skip:
                raise
            self._go_on()
            batch, token = self._read(items_max)
        if may_skip:
            self._skip_wanted = False
        self._put_aside(batch.poison)
        changes = [change for entry in batch.entries for change in self._wanted(entry)]
        self._counts["entries"] += len(batch.entries)
        self._counts["repeats"] += batch.repeats
        self._counts["trimmed"] += batch.trimmed
        return SourceBatch(changes=changes, token=token, wait_s=0.0 if batch.more else self._idle_s)

    def ack(self, token: bytes) -> None:
        """Remember, durably, that everything up to the token was taken.

        Raises:
            StoreUnavailable: Try again later.
        """
        if not token:
            return
        number, _, cursor = token.partition(b" ")
        upto = int(number)
        if self._group is None:
            if upto > self._acked:
                self._file.save(cursor)
                self._acked = upto
            return
        for turn in [turn for turn in self._given if turn <= upto]:
            self._group.ack(self._given[turn])
            del self._given[turn]

    def progress(self) -> Mapping[str, float]:
        """Return ``entries``, ``repeats``, ``poison``, ``own``, ``trimmed`` and ``gaps``."""
        return {**self._counts, "gaps": self.gaps}

    def close(self) -> None:
        """Close connections; what was polled and not acknowledged is given again."""
        self._link.close()

    # -- gaps -------------------------------------------------------------------------------------

    def skip_gap(self) -> None:
        """Read on behind what is missing, with the next poll.

        Call it once what is missing was made good: by comparing with the archive of the others, or
        because it does not matter.
        """
        self._skip_wanted = True

    def _missed(self, why: str) -> None:
        if why != self.gap:
            self.gap = why
            self.gaps += 1
            _log.warning("feed_gap", source=self.name, reason=why)

    def _go_on(self) -> None:
        self.gap = ""
        if self._group is not None:
            self._group.resume()
        else:
            self._reader.resume()

    # -- reading ----------------------------------------------------------------------------------

    def _read(self, items_max: int) -> tuple[ReadBatch, bytes]:
        if self._group is None:
            batch = self._reader.read(items_max)
            if not batch.entries and not batch.poison and not batch.repeats:
                return batch, b""
            self._turn += 1
            return batch, b"%d %b" % (self._turn, batch.cursor.encoded())
        ids, batch = self._group.read(items_max)
        if not ids:
            return batch, b""
        self._turn += 1
        self._given[self._turn] = ids
        return batch, b"%d" % self._turn

    def _wanted(self, entry: FeedEntry) -> Sequence[Change]:
        if entry.link.origin in self.ignore:
            self._counts["own"] += 1
            return ()
        if not entry.has_content:
            raise ConfigError(
                f"the feed {self._link.keys.stream.decode()} tells ids without contents: set"
                " payload = true at its sink"
            )
        return entry.changes

    def _put_aside(self, poison: Sequence[Poison]) -> None:
        for one in poison:
            self._counts["poison"] += 1
            _log.limited("feed_entry_refused", source=self.name, id=one.id, error=one.error)
            fields = [part for pair in one.fields.items() for part in pair]
            try:
                self._link.ask(
                    "put_aside",
                    [
                        (
                            b"XADD", self._link.keys.poison, b"MAXLEN", b"~", _POISON_MAX, b"*",
                            b"poison_id", one.id.encode(), b"poison_error", one.error.encode(),
                            *fields,
                        )
                    ],
                )  # fmt: skip
            except StorageError as exc:  # it is counted and logged: it must not hold the others up
                _log.limited("poison_not_kept", source=self.name, id=one.id, error=exc)


def _checked_words(**words: tuple[str, Collection[str]]) -> None:
    for name, (value, known) in words.items():
        if value not in known:
            raise ConfigError(f"{name} must be one of {', '.join(known)}, got {value!r}")


def _checked_numbers(**numbers: float) -> None:
    for name, value in numbers.items():
        if type(value) not in (int, float) or value <= 0:
            raise ConfigError(f"{name} must be above 0, got {value!r}")


def _own_name(cursor_path: Path) -> str:
    place = f"{platform.node()} {cursor_path.absolute()}"
    return f"{cursor_path.stem}-{hashlib.blake2b(place.encode(), digest_size=8).hexdigest()}"


def from_settings(context: AdapterContext, **settings: Any) -> ChangeStream:
    """Make the source from settings.

    Args:
        context: What a factory is given.
        settings: Those of `ChangeStream`; clock and cursor are the engine's.

    Raises:
        ConfigError: A setting cannot be used; names it.
    """
    cursor_path = context.data_dir / f"{context.name}.cursor"
    try:
        return ChangeStream(clock=context.runtime.clock, cursor_path=cursor_path, **settings)
    except ConfigError as exc:
        raise ConfigError(f"source {context.name}: {exc}") from exc


from_settings.__signature__ = settings_of(  # type: ignore[attr-defined]
    ChangeStream, "clock", "cursor_path"
)
