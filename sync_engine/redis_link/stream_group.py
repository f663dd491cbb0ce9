"""Reading a stream as one of a consumer group, with proof for the group as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sync_engine.core.feed import BadEntry, read_entry
from sync_engine.errors import FeedGap
from sync_engine.redis_link.stream import StreamLink
from sync_engine.redis_link.stream_reader import Poison, ReadBatch

__all__ = ["StreamGroup"]

# What the group has seen of each origin lies in a hash, and moves in the same step as the group:
# ``<position> <n> <of>`` by origin, ``stream`` the identity, ``gap`` why something is missing.
#
# KEYS: stream, origins, the group's hash. ARGV: group, consumer, count.
# Returns {entries, gap}. Nothing is read while a gap is noted.
_READ = b"""
if redis.replicate_commands then redis.replicate_commands() end
local call, num = redis.call, tonumber
local seen, identity = KEYS[3], call('HGET', KEYS[2], 'stream') or ''
local gap = call('HGET', seen, 'gap')
if gap then return {{}, gap} end
local function missing(why) call('HSET', seen, 'gap', why); return why end
-- What is no number that stays one in the hash is no entry of ours.
local function whole(text)
  return text and #text < 15 and string.find(text, '^%d+$') and num(text)
end
local known = call('HGET', seen, 'stream')
if not known then call('HSET', seen, 'stream', identity)
elseif known == '' and identity ~= '' then call('HSET', seen, 'stream', identity)
elseif known ~= identity then return {{}, missing('the stream was replaced or is gone')} end
local answer = call('XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'COUNT', ARGV[3],
                    'STREAMS', KEYS[1], '>')
local entries = answer and answer[1] and answer[1][2] or {}
local why = ''
for _, entry in ipairs(entries) do
  local f = {}
  local flat = entry[2] or {}
  for i = 1, #flat, 2 do f[flat[i]] = flat[i + 1] end
  local after, position, n, of = whole(f.after), whole(f.position), whole(f.n), whole(f.of)
  if f.log and after and position and n and of then
    local place = call('HGET', seen, 'o:' .. f.log)
    local first = call('HGET', seen, 'excused:' .. f.log)
    if place then
      local p, pn, pof = string.match(place, '^(%d+) (%d+) (%d+)$')
      p, pn, pof = num(p), num(pn), num(pof)
      if position > p or (position == p and n > pn) then
        local follows
        if position == p then follows = n == pn + 1
        else follows = pn >= pof and after <= p and n == 1 end
        if not follows and not first then
          why = missing('origin ' .. f.log .. ': read up to ' .. place .. ', what follows begins'
                        .. ' after ' .. f.after .. ' (' .. f.n .. ' of ' .. f.of .. ')')
        end
        call('HSET', seen, 'o:' .. f.log, position .. ' ' .. n .. ' ' .. of)
      end
    else
      if not first and (after ~= 0 or n ~= 1) then
        why = missing('the beginning of origin ' .. f.log .. ' is missing')
      end
      call('HSET', seen, 'o:' .. f.log, position .. ' ' .. n .. ' ' .. of)
    end
    if first then call('HDEL', seen, 'excused:' .. f.log) end
  end
end
if #entries < num(ARGV[3]) then
  local all = call('HGETALL', KEYS[2])
  for i = 1, #all, 2 do
    local last = num(string.match(all[i + 1], '^%d+ (%d+) %d+$') or '0')
    if all[i] ~= 'stream' and last > 0 then
      local place = call('HGET', seen, 'o:' .. all[i])
      local p, pn, pof = string.match(place or '0 0 0', '^(%d+) (%d+) (%d+)$')
      if num(p) < last or (num(p) == last and num(pn) < num(pof)) then
        if call('HDEL', seen, 'excused:' .. all[i]) == 0 then
          why = missing('origin ' .. all[i] .. ': read up to ' .. p .. ', it wrote up to ' .. last)
        end
        call('HSET', seen, 'o:' .. all[i], string.format('%.0f', last) .. ' 1 1')
      end
    end
  end
end
return {entries, why}
"""

# KEYS: stream, origins, the group's hash. ARGV: group, '0' to begin at the oldest entry or '$'.
_CREATE = b"""
if redis.replicate_commands then redis.replicate_commands() end
local made = redis.pcall('XGROUP', 'CREATE', KEYS[1], ARGV[1], ARGV[2], 'MKSTREAM')
if type(made) == 'table' and made.err then
  if string.find(made.err, 'BUSYGROUP') then
    if redis.call('EXISTS', KEYS[3]) == 1 then return 0 end
  else return made end
elseif redis.call('EXISTS', KEYS[3]) == 1 then
  -- the stream went with its groups, and what we had seen of it did not
  redis.call('HSET', KEYS[3], 'gap', 'the stream was emptied')
  return 1
end
redis.call('HSET', KEYS[3], 'stream', redis.call('HGET', KEYS[2], 'stream') or '')
if ARGV[2] == '$' then
  local all = redis.call('HGETALL', KEYS[2])
  for i = 1, #all, 2 do
    local last = string.match(all[i + 1], '^%d+ (%d+) %d+$')
    if all[i] ~= 'stream' and last and last ~= '0' then
      redis.call('HSET', KEYS[3], 'o:' .. all[i], last .. ' 1 1')
    end
  end
end
return 1
"""

# KEYS: stream, origins, the group's hash. Goes on behind a gap; the next of every origin is taken.
_RESUME = b"""
if redis.replicate_commands then redis.replicate_commands() end
redis.call('HDEL', KEYS[3], 'gap')
local known = redis.call('HGET', KEYS[3], 'stream')
local now = redis.call('HGET', KEYS[2], 'stream') or ''
if known ~= now then
  redis.call('DEL', KEYS[3])
  redis.call('HSET', KEYS[3], 'stream', now)
end
local all = redis.call('HGETALL', KEYS[2])
for i = 1, #all, 2 do
  if all[i] ~= 'stream' then redis.call('HSET', KEYS[3], 'excused:' .. all[i], '1') end
end
return 1
"""


class StreamGroup:
    """One worker of a consumer group.

    Entries are given to one worker each, and again, to any worker, until they are acknowledged.
    Whether the group as a whole has missed something is proved on the server, in the same step as
    the reading; once it has, no worker reads on until one of them calls `resume`.

    Owned by one caller at a time.

    Args:
        link: The stream.
        group: Name of the group.
        consumer: Name of this worker, its own in the group.
        from_start: Whether a new group begins at the oldest entry; else with what comes.
        claim_idle_s: Seconds after which another worker's entries are taken over.
        bytes_max: Largest content.
    """

    def __init__(
        self,
        link: StreamLink,
        *,
        group: str,
        consumer: str,
        from_start: bool = True,
        claim_idle_s: float = 60.0,
        bytes_max: int = 64 << 20,
    ) -> None:
        self._link = link
        self._seen = link.keys.group(group)
        self._group = group.encode()
        self._consumer = consumer.encode()
        self._start = b"0" if from_start else b"$"
        self._claim_idle_ms = max(1, int(claim_idle_s * 1000))
        self._bytes_max = bytes_max
        self._own = b"0"
        self._claimed = b"0-0"
        self.gap = ""

    def open(self) -> None:
        """Create the group where there is none, and begin with what this worker had not done.

        Raises:
            StoreUnavailable: Try again later.
        """
        self._script("create", _CREATE, self._group, self._start)
        self._own = b"0"

    def _script(self, operation: str, script: bytes, *arguments: bytes) -> Any:
        keys = self._link.keys
        command = [b"EVAL", script, b"3", keys.stream, keys.origins, self._seen, *arguments]
        (answer,) = self._link.ask(operation, [command])
        return answer

    def read(self, count: int) -> tuple[list[bytes], ReadBatch]:
        """Return up to so many entries, and their stream ids for `ack`.

        First what this worker was given and did not acknowledge, then what others left lying, then
        what is new.

        Raises:
            FeedGap: The group has missed something.
            StoreUnavailable: Try again later; nothing was skipped.
        """
        if self._own:
            raw = self._pending(count)
            if raw:
                return self._parsed(raw, more=True)
            self._own = b""
        raw = self._taken_over(count)
        if raw:
            return self._parsed(raw, more=True)
        raw, gap = self._script("read", _READ, self._group, self._consumer, b"%d" % count)
        self.gap = bytes(gap).decode(errors="replace")
        if self.gap and not raw:
            raise FeedGap(self.gap)
        return self._parsed(raw, more=len(raw) >= count)

    def _pending(self, count: int) -> Sequence[Any]:
        (answer,) = self._link.ask(
            "read",
            [
                (
                    b"XREADGROUP", b"GROUP", self._group, self._consumer, b"COUNT", b"%d" % count,
                    b"STREAMS", self._link.keys.stream, self._own,
                )
            ],
        )  # fmt: skip
        raw: Sequence[Any] = answer[0][1] if answer else []
        if raw:
            self._own = bytes(raw[-1][0])
        return raw

    def _taken_over(self, count: int) -> Sequence[Any]:
        (answer,) = self._link.ask(
            "claim",
            [
                (
                    b"XAUTOCLAIM", self._link.keys.stream, self._group, self._consumer,
                    b"%d" % self._claim_idle_ms, self._claimed, b"COUNT", b"%d" % count,
                )
            ],
        )  # fmt: skip
        self._claimed = bytes(answer[0])
        return [entry for entry in answer[1] if entry is not None]

    def _parsed(self, raw: Sequence[Any], *, more: bool) -> tuple[list[bytes], ReadBatch]:
        batch = ReadBatch(more=more)
        ids = []
        for stream_id, flat in raw:
            ids.append(bytes(stream_id))
            values = iter(flat or ())
            fields = {bytes(name): bytes(value) for name, value in zip(values, values, strict=True)}
            try:
                batch.entries.append(read_entry(fields, bytes_max=self._bytes_max))
            except BadEntry as exc:
                if flat:  # else it was trimmed away while it waited
                    batch.poison.append(Poison(ids[-1].decode(), fields, str(exc)))
                else:
                    batch.trimmed += 1
        return ids, batch

    def ack(self, ids: Sequence[bytes]) -> None:
        """Let the group forget entries; ids that it does not know are fine.

        Raises:
            StoreUnavailable: Try again later.
        """
        if ids:
            self._link.ask("ack", [(b"XACK", self._link.keys.stream, self._group, *ids)])

    def resume(self) -> None:
        """Go on behind a gap, for the whole group.

        Raises:
            StoreUnavailable: Try again later.
        """
        self._script("resume", _RESUME)
        self.open()
        self.gap = ""
