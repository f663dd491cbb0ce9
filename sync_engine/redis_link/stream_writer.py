"""Writing to a stream: batches of one origin, each once, in order, all of it or nothing."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from sync_engine.core.feed import FIELDS, Link, entry_fields, packed_fields
from sync_engine.core.item import Change
from sync_engine.errors import StoreRejected, StoreUnavailable
from sync_engine.redis_link.errors import STORE
from sync_engine.redis_link.link import Command
from sync_engine.redis_link.stream import StreamLink

__all__ = ["StreamWriter", "Trim"]

_ORIGIN_IDLE_MS = 35 * 86_400_000
_OPTIN = b"if redis.replicate_commands then redis.replicate_commands() end\n"

# KEYS: stream, origins. ARGV: origin, expected `last`, position, entries kept, milliseconds kept,
# number of fields, their names, then the values of each entry.
# Returns {1, last}: taken (or known already); {0, last}: the chain stands elsewhere, nothing done;
# {-1}: this origin has not begun.
_APPEND = (
    _OPTIN
    + b"""
local call, num = redis.call, tonumber
local place = call('HGET', KEYS[2], ARGV[1])
if not place then return {-1, 0} end
local reached, last = string.match(place, '^(%d+) (%d+)')
if num(reached) >= num(ARGV[3]) then return {1, num(last)} end
if num(last) ~= num(ARGV[2]) then return {0, num(last)} end
local width, at = num(ARGV[6]), 7
local args = {'XADD', KEYS[1], '*'}
for f = 1, width do args[2 * f + 2] = ARGV[at]; at = at + 1 end
local time = call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local id = nil
while at <= #ARGV do
  for f = 1, width do args[2 * f + 3] = ARGV[at]; at = at + 1 end
  id = call(unpack(args))
end
if id then
  last = ARGV[3]
  if ARGV[4] ~= '0' then call('XTRIM', KEYS[1], 'MAXLEN', '~', ARGV[4]) end
  if ARGV[5] ~= '0' then call('XTRIM', KEYS[1], 'MINID', '~', string.format('%.0f', now - ARGV[5])) end
end
call('HSET', KEYS[2], ARGV[1], ARGV[3] .. ' ' .. last .. ' ' .. string.format('%.0f', now))
return {1, num(last)}
"""  # noqa: E501
)

# KEYS: stream, origins. ARGV: origin, reached, last, identity for a new stream, milliseconds after
# which a silent origin is forgotten.
_BEGIN = (
    _OPTIN
    + b"""
local call, num = redis.call, tonumber
call('HSETNX', KEYS[2], 'stream', ARGV[4])
local time = call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local all = call('HGETALL', KEYS[2])
for i = 1, #all, 2 do
  local seen = string.match(all[i + 1], '^%d+ %d+ (%d+)$')
  if seen and now - seen > num(ARGV[5]) then call('HDEL', KEYS[2], all[i]) end
end
call('HSET', KEYS[2], ARGV[1], ARGV[2] .. ' ' .. ARGV[3] .. ' ' .. string.format('%.0f', now))
return 1
"""
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trim:
    """What a stream keeps; older entries go with the batches that come.

    Attributes:
        items_max: Entries, approximately; 0 is no bound.
        age_s_max: Seconds, approximately; 0 is no bound.
    """

    items_max: int = 1_000_000
    age_s_max: float = 604_800.0


class StreamWriter:
    """Appends the batches of one origin to a stream.

    A batch goes in with one script: its entries, and the position that the origin has reached. So
    a batch that is sent again, whatever became of the first one, adds nothing.

    Owned by one caller at a time.

    Args:
        link: The stream.
        trim: What it keeps.
        payload: Whether contents go along.
        packed: Ids and versions of a whole batch in one entry, in place of an entry each.
        compress_bytes_min: Contents of at least this size are compressed.
    """

    def __init__(
        self,
        link: StreamLink,
        *,
        trim: Trim,
        payload: bool = True,
        packed: bool = False,
        compress_bytes_min: int = 1024,
    ) -> None:
        self._link = link
        self._trim = trim
        self._payload = payload
        self._packed = packed
        self._compress_bytes_min = compress_bytes_min
        self._last: dict[str, int] = {}

    def position(self, origin: str) -> int | None:
        """Return the log position that an origin has reached here; None where it never began.

        Raises:
            StoreUnavailable: Try again later.
        """
        (place,) = self._link.ask("position", [(b"HGET", self._link.keys.origins, origin.encode())])
        if place is None:
            self._last.pop(origin, None)
            return None
        try:
            reached, last, _ = (int(number) for number in bytes(place).split())
        except ValueError:
            raise StoreRejected(
                STORE, "position", f"{self._link.keys.origins.decode()} is somebody else's"
            ) from None
        self._last[origin] = last
        return reached

    def begin(self, origin: str, position: int, *, after_gap: bool) -> None:
        """Let an origin begin, or begin again, at a position.

        Args:
            origin: Of the log.
            position: What follows it will be appended.
            after_gap: Whether entries may have been lost: readers learn of it. Else this is the
                origin's very beginning here.

        Raises:
            StoreUnavailable: Try again later.
        """
        last = position if after_gap else 0
        keys = self._link.keys
        self._link.ask(
            "begin",
            [
                (
                    b"EVAL", _BEGIN, b"2", keys.stream, keys.origins, origin.encode(),
                    b"%d" % position, b"%d" % last, secrets.token_hex(8).encode(),
                    b"%d" % _ORIGIN_IDLE_MS,
                )
            ],
        )  # fmt: skip
        self._last[origin] = last

    def append(self, changes: Sequence[Change], origin: str, position: int) -> None:
        """Append a batch, whole; empty, it only moves the origin's position.

        Raises:
            StoreUnavailable: Try again later, after asking for the position.
            StoreRejected: It can never be taken.
        """
        last = self._last.get(origin)
        if last is None:
            raise StoreUnavailable(STORE, "append", "the origin has to begin first")
        entries = self._entries(changes, origin, last, position)
        values = [value for entry in entries for value in entry]
        keys = self._link.keys
        command: Command = [
            b"EVAL", _APPEND, b"2", keys.stream, keys.origins, origin.encode(), b"%d" % last,
            b"%d" % position, b"%d" % self._trim.items_max,
            b"%d" % int(self._trim.age_s_max * 1000), b"%d" % len(FIELDS), *FIELDS, *values,
        ]  # fmt: skip
        (answer,) = self._link.ask("append", [command])
        taken, now_last = int(answer[0]), int(answer[1])
        if taken != 1:
            del self._last[origin]
            raise StoreUnavailable(STORE, "append", "the stream is not where it was left")
        self._last[origin] = now_last

    def _entries(
        self, changes: Sequence[Change], origin: str, last: int, position: int
    ) -> list[list[bytes]]:
        if not changes:
            return []
        if self._packed:
            return [packed_fields(changes, Link(origin, last, position))]
        count = len(changes)
        return [
            entry_fields(
                change,
                Link(origin, last, position, n, count),
                payload=self._payload,
                compress_bytes_min=self._compress_bytes_min,
            )
            for n, change in enumerate(changes, 1)
        ]
