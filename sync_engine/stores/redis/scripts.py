"""The two scripts: everything that has to happen in one step on the server.

No text of a user is ever part of a script: ids and values come in as keys and arguments.
"""

from __future__ import annotations

import hashlib

__all__ = ["AGREE", "FORCE", "SET_IF_NEWER", "SET_IF_NEWER_SHA"]

# KEYS: the epoch mark, then one key for each item.
# ARGV: the mark expected, then value and time to live (ms, 0 is none) for each item.
# Returns how many were stored; -1, and nothing stored, where another mark stands.
#
# A value begins with its version in twenty digits. They are compared as two numbers of ten digits:
# a double holds those exactly, and text would be compared by the server's locale. What is not of
# that form, or no string at all, is foreign: it lies inside our own namespace and is replaced.
SET_IF_NEWER = b"""
if redis.pcall('GET', KEYS[1]) ~= ARGV[1] then return -1 end
local call, pcall, sub, num = redis.call, redis.pcall, string.sub, tonumber
local stored = 0
for i = 2, #KEYS do
  local key, value, ttl = KEYS[i], ARGV[2 * i - 2], ARGV[2 * i - 1]
  local old = pcall('GETRANGE', key, 0, 19)
  local newer = true
  if type(old) == 'string' and #old == 20 and not string.find(old, '%D') then
    local high, low = num(sub(value, 1, 10)), num(sub(old, 1, 10))
    newer = high > low or (high == low and num(sub(value, 11, 20)) > num(sub(old, 11, 20)))
  end
  if newer then
    if ttl == '0' then call('SET', key, value) else call('SET', key, value, 'PX', ttl) end
    stored = stored + 1
  end
end
return stored
"""
SET_IF_NEWER_SHA = hashlib.sha1(SET_IF_NEWER, usedforsecurity=False).hexdigest().encode()

FORCE = b"force"
# KEYS: the epoch mark. ARGV: the server's identity, the mark to put where none stands that was made
# on this very server, and 'force' to put it in any case.
# Returns the mark that stands afterwards. A mark of another format is returned and left alone.
AGREE = b"""
local old = redis.pcall('GET', KEYS[1])
if type(old) == 'table' then return old end
if old then
  if string.sub(old, 1, 2) ~= string.sub(ARGV[2], 1, 2) then return old end
  if ARGV[3] ~= 'force' and string.sub(old, 20) == ARGV[1] then return old end
end
redis.call('SET', KEYS[1], ARGV[2])
return ARGV[2]
"""
