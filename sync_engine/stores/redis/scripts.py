"""The two scripts: everything that has to happen in one step on the server."""

from __future__ import annotations

__all__ = ["AGREE", "SET_IF_NEWER"]

# KEYS: the epoch mark, then one key for each item.
# ARGV: the mark expected, then value and time to live (ms, 0 is none) for each item.
# A value begins with its version in twenty digits. They are compared as two numbers of ten digits:
# a double holds those exactly, and text would be compared by the server's locale.
SET_IF_NEWER = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return -1 end
local stored = 0
for i = 2, #KEYS do
  local value, ttl = ARGV[2 * i - 2], ARGV[2 * i - 1]
  local old = redis.pcall('GETRANGE', KEYS[i], 0, 19)
  local newer = true
  if type(old) == 'string' and string.match(old, '^%d+$') and #old == 20 then
    local high, low = tonumber(string.sub(old, 1, 10)), tonumber(string.sub(old, 11, 20))
    local h, l = tonumber(string.sub(value, 1, 10)), tonumber(string.sub(value, 11, 20))
    newer = h > high or (h == high and l > low)
  end
  if newer then
    if ttl == '0' then redis.call('SET', KEYS[i], value)
    else redis.call('SET', KEYS[i], value, 'PX', ttl) end
    stored = stored + 1
  end
end
return stored
"""

# KEYS: the epoch mark. ARGV: the mark that was read ('' is none), the mark to put in its place.
# Returns the mark that stands afterwards.
AGREE = """
local old = redis.call('GET', KEYS[1])
if (old or '') == ARGV[1] then
  redis.call('SET', KEYS[1], ARGV[2])
  return ARGV[2]
end
return old or ''
"""
