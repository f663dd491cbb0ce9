"""Sweeping: the keys of abandoned epochs, looked for a few at a time and unlinked.

Nothing reads them any more, but a server with the policy ``noeviction`` would keep them for ever.
A key goes only in a script that sees, in the same step, that the epoch in force is another one: an
abandoned epoch never comes back, so what is unlinked is surely nobody's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from redis import exceptions as redis_errors

from sync_engine.errors import StoreUnavailable
from sync_engine.redis_link.errors import STORE, translated
from sync_engine.redis_link.link import Command, Talk
from sync_engine.redis_link.topology import Topology
from sync_engine.stores.redis.conversation import Conversation, Request
from sync_engine.stores.redis.keys import Epoch, Layout

__all__ = ["Sweep"]

# KEYS: the epoch mark, then keys of other epochs. ARGV: the mark expected.
# Returns how many keys went; -1, and nothing done, where another mark stands.
_UNLINK = b"""
if redis.pcall('GET', KEYS[1]) ~= ARGV[1] then return -1 end
local gone = 0
for i = 2, #KEYS do gone = gone + redis.call('UNLINK', KEYS[i]) end
return gone
"""


class Sweep:
    """One walk over the keys of a prefix after another, node by node.

    Owned by one caller at a time.

    Args:
        layout: How keys are named.
        talk: Knows the epochs in force.
        window_bytes: As for `Talk`.
    """

    def __init__(self, layout: Layout, talk: Conversation, window_bytes: int) -> None:
        self._layout = layout
        self._talk = talk
        self._window_bytes = window_bytes
        self._key = re.compile(re.escape(layout.prefix) + rb":\{([0-9a-f]{2})\}:([0-9a-f]{16}):")
        self._pattern = layout.prefix + rb":{[0-9a-f][0-9a-f]}:[0-9a-f]*"
        self._node = -1
        self._cursor = b"0"

    def step(self, topology: Topology, keys_max: int) -> tuple[int, bool]:
        """Look at about so many keys; return how many went, and whether the walk is complete.

        Raises:
            StoreUnavailable: Try again later; the walk goes on where it was.
            StoreRejected: The user may not scan or unlink.
        """
        found, last_node = self._scan(topology, keys_max)
        groups: dict[int, list[tuple[bytes, bytes]]] = {}
        for key in found:
            match = self._key.match(key)
            if match:
                scope = int(match[1], 16) if self._layout.cluster else 0
                groups.setdefault(scope, []).append((match[2], key))
        gone = 0
        groups = {scope: keys for scope, keys in groups.items() if scope in self._layout.scopes}
        if groups:
            request = Request(groups=groups, commands=_unlink, current=_in_force, once=True)
            for _, (reply,) in self._talk.ask(topology, "sweep", request).values():
                gone += reply if isinstance(reply, int) else 0
        return gone, self._cursor == b"0" and last_node

    def _scan(self, topology: Topology, keys_max: int) -> tuple[Sequence[bytes], bool]:
        """Return the next keys, and whether they are of the last node."""
        with translated("sweep"):
            routes = topology.route(self._layout.scopes)
            if self._cursor == b"0":
                self._node = (self._node + 1) % len(routes)
            self._node = min(max(0, self._node), len(routes) - 1)
            node, scopes = routes[self._node]
            talk = Talk(node, node.acquire(), scopes, self._window_bytes)
            try:
                count = b"%d" % keys_max
                talk.begin([(b"SCAN", self._cursor, b"MATCH", self._pattern, b"COUNT", count)])
                (reply,) = talk.finish()
            except redis_errors.RedisError:
                node.drop_idle()
                raise
            finally:
                node.release(talk.link, keep=talk.clean)
            if isinstance(reply, Exception):
                raise reply
            if not isinstance(reply, list) or len(reply) != 2:
                raise StoreUnavailable(STORE, "sweep", "SCAN was answered with something else")
            self._cursor = bytes(reply[0])
            return reply[1], self._node == len(routes) - 1


def _unlink(epoch: Epoch, keys: Sequence[tuple[bytes, bytes]]) -> list[Command]:
    name = epoch.name.encode()
    stale = [key for of, key in keys if of != name]
    if not stale:
        return [(b"GET", epoch.mark_key)]
    return [(b"EVAL", _UNLINK, b"%d" % (len(stale) + 1), epoch.mark_key, *stale, epoch.mark)]


def _in_force(epoch: Epoch, reply: Any) -> bool:
    return reply != -1 if isinstance(reply, int) else bool(reply == epoch.mark)
