"""Reading a stream with a cursor of one's own, with proof that nothing was missed."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sync_engine.core.feed import BadEntry, Chain, FeedCursor, FeedEntry, Place, read_entry
from sync_engine.errors import FeedGap, StoreRejected
from sync_engine.redis_link.errors import STORE
from sync_engine.redis_link.link import Command
from sync_engine.redis_link.stream import StreamLink

__all__ = ["Poison", "ReadBatch", "StreamReader", "origins_of"]


@dataclass(frozen=True, slots=True)
class Poison:
    """An entry that could not be understood.

    Attributes:
        id: Its stream id.
        fields: What it says.
        error: Why it was not understood.
    """

    id: str
    fields: Mapping[bytes, bytes]
    error: str


@dataclass(slots=True)
class ReadBatch:
    """What was read at one time.

    Attributes:
        entries: What is new, in order.
        poison: What could not be understood.
        repeats: Entries that were known.
        trimmed: Entries of a group that were trimmed away while they waited to be taken.
        cursor: Where the reader is once it has taken all of this.
        more: Whether there may be more at once.
    """

    entries: list[FeedEntry] = field(default_factory=list)
    poison: list[Poison] = field(default_factory=list)
    repeats: int = 0
    trimmed: int = 0
    cursor: FeedCursor = field(default_factory=FeedCursor)
    more: bool = False


def origins_of(answer: Any) -> tuple[str, dict[str, int]]:
    """Return the stream's identity and the last position of each origin.

    Raises:
        StoreRejected: The key is somebody else's.
    """
    pairs = {bytes(k): bytes(v) for k, v in zip(answer[::2], answer[1::2], strict=True)}
    identity = pairs.pop(b"stream", b"").decode(errors="replace")
    try:
        return identity, {k.decode(): int(v.split()[1]) for k, v in pairs.items()}
    except (ValueError, IndexError):
        raise StoreRejected(STORE, "read", "the origins of the stream are not ours") from None


class _Hole(enum.Enum):
    """How it was found that something is missing."""

    BEFORE_ENTRY = 1
    AT_END = 2
    OTHER_STREAM = 3


class StreamReader:
    """Reads entries after a cursor.

    What is missing is always told, and never passed in silence: entries that were trimmed away, a
    stream that was emptied or replaced, a server that came back with an older state. After
    `FeedGap`, `resume` goes on behind the hole; until then every read raises it again.

    Owned by one caller at a time.

    Args:
        link: The stream.
        cursor: Where to begin. An empty one begins at the oldest entry, and takes a stream that was
            trimmed before for a gap; see also `skip_to_end`.
        bytes_max: Largest content.
    """

    def __init__(
        self, link: StreamLink, cursor: FeedCursor | None = None, *, bytes_max: int = 64 << 20
    ) -> None:
        self._link = link
        self._bytes_max = bytes_max
        self._ends: dict[str, int] = {}
        self._now_stream = ""
        self.seek(cursor or FeedCursor())

    @property
    def cursor(self) -> FeedCursor:
        """Where the reader is."""
        return FeedCursor(self._stream, self._id, dict(self._chain.places))

    @property
    def gap(self) -> str:
        """Why something is missing; empty if nothing is."""
        return self._gap

    def seek(self, cursor: FeedCursor) -> None:
        """Go on from a cursor."""
        self._stream = cursor.stream
        self._id = cursor.id
        self._chain = Chain(dict(cursor.places))
        self._unread = 0
        self._gap = ""
        self._hole = _Hole.BEFORE_ENTRY

    def skip_to_end(self) -> FeedCursor:
        """Go to the end: read only what comes from now on.

        Raises:
            StoreUnavailable: Try again later.
        """
        keys = self._link.keys
        # The last id first: what comes between the two answers is read again, and known.
        last, origins = self._link.ask(
            "seek",
            [
                (b"XREVRANGE", keys.stream, b"+", b"-", b"COUNT", b"1"),
                (b"HGETALL", keys.origins),
            ],
        )
        identity, ends = origins_of(origins)
        places = {origin: Place(position) for origin, position in ends.items() if position}
        self.seek(FeedCursor(identity, bytes(last[0][0]).decode() if last else "0-0", places))
        return self.cursor

    def resume(self) -> None:
        """Go on behind a hole: what is there is taken as it comes."""
        if not self._gap:
            return
        self._gap = ""
        if self._hole is _Hole.OTHER_STREAM:
            self._chain = Chain()
            self._stream = self._now_stream
        if self._hole is not _Hole.BEFORE_ENTRY:
            self._id = "0-0"  # what was missed may have smaller ids than what was read
        self._chain.excused = {*self._ends, *self._chain.places}

    def read(self, count: int, wait_s: float = 0.0) -> ReadBatch:
        """Return up to so many entries.

        Args:
            count: At least 1.
            wait_s: Seconds to wait for one where there is none; has to be well below the timeout
                of the connection.

        Raises:
            FeedGap: Something is missing between what was read before and what is there now.
            StoreUnavailable: Try again later; nothing was skipped.
            StoreRejected: What is under the keys is no stream of ours.
        """
        if self._gap:
            raise FeedGap(self._gap)
        keys = self._link.keys
        read: list[bytes] = [b"XREAD", b"COUNT", b"%d" % count]
        if wait_s > 0:
            read += [b"BLOCK", b"%d" % max(1, int(wait_s * 1000))]
        commands: list[Command] = [
            (b"HGETALL", keys.origins),  # first: all that it tells of is there when we read
            [*read, b"STREAMS", keys.stream, self._id.encode()],
        ]
        origins, answer = self._link.ask("read", commands)
        self._now_stream, self._ends = origins_of(origins)
        self._check_stream()
        raw = answer[0][1] if answer else []
        batch = ReadBatch(more=len(raw) >= count)
        self._take(raw, batch)
        if not self.gap and not batch.more:
            if self._unread:  # what is missing at the end may be what could not be understood
                self._chain.excused.update(self._ends)
                self._unread = 0
            missing = self._chain.at_end(self._ends)
            if missing:
                self._gap, self._hole = missing, _Hole.AT_END
        if self.gap and not batch.entries and not batch.poison:
            raise FeedGap(self._gap)
        batch.cursor = self.cursor
        return batch

    def _check_stream(self) -> None:
        if not self._stream:
            self._stream = self._now_stream
        elif self._stream != self._now_stream:
            what = "was replaced by another one" if self._now_stream else "is gone"
            self._gap = f"the stream {self._link.keys.stream.decode()} {what}"
            self._hole = _Hole.OTHER_STREAM
            raise FeedGap(self._gap)

    def _take(self, raw: Sequence[Any], batch: ReadBatch) -> None:
        for stream_id, flat in raw:
            text = bytes(stream_id).decode()
            values = iter(flat or ())
            fields = {bytes(name): bytes(value) for name, value in zip(values, values, strict=True)}
            try:
                entry = read_entry(fields, bytes_max=self._bytes_max)
            except BadEntry as exc:
                batch.poison.append(Poison(text, fields, str(exc)))
                self._unread += 1
                self._id = text
                continue
            seen = self._chain.look(entry.link)
            if seen == "repeat":
                batch.repeats += 1
            elif seen == "next" or self._explained(entry):
                self._chain.take(entry.link)
                batch.entries.append(entry)
            else:
                self._gap, self._hole = seen, _Hole.BEFORE_ENTRY
                return
            self._id = text

    def _explained(self, entry: FeedEntry) -> bool:
        """Tell whether the hole is where entries were that could not be understood."""
        missing = self._chain.missing_min(entry.link)
        if missing > self._unread:
            return False
        self._unread -= missing
        return True
