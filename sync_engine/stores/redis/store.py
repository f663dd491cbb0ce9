"""The L2 store: guarded writes in one script call a batch, reads by MGET."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from sync_engine.core.item import Change
from sync_engine.errors import ConfigError, StorageError, StoreRejected, StoreUnavailable
from sync_engine.ports import Clock
from sync_engine.redis_link.address import Kind, parse_address
from sync_engine.redis_link.errors import STORE, ForeignLayout
from sync_engine.redis_link.link import Command
from sync_engine.redis_link.topology import Topology, make_topology
from sync_engine.stores.redis.conversation import Answers, Conversation, Request
from sync_engine.stores.redis.keys import Epoch, Layout, bucket_of
from sync_engine.stores.redis.scripts import SET_IF_NEWER_SHA
from sync_engine.stores.redis.sweep import Sweep
from sync_engine.stores.redis.values import Damaged, Entry, Lifetimes, read_value

__all__ = ["RedisStore"]

T = TypeVar("T")

_KEYS_MAX = 1000
_GRACE_MS = 60_000
_VALUE_BYTES_MAX = 512 << 20  # what a Redis string holds


class RedisStore:
    """L2 on Redis or Valkey: one server, a cluster, or the master that sentinels name.

    Implements `ports.CacheStore`. Where keys lie and what epochs are is told in `keys`, how values
    of an abandoned epoch are kept from being read in `conversation`.

    Args:
        url: See `address.parse_address`.
        prefix: Begins every key: 1 to 64 letters, digits, or any of ``_ : . -``.
        clock: For deadlines, and for proofs of identity.
        connect_timeout_s: Seconds for a connection.
        timeout_s: Seconds between two bytes of an answer, and to wait for a free connection.
        tombstone_ttl_s: Seconds that a version mark without a value stays.
        fill_ttl_s: Seconds that a copy of an archived item stays, at most.
        fill_pause_s: Seconds after the start of a new epoch in which fills are dropped: they may
            have been read before changes whose version marks went with the old epoch.
        chunk_bytes_max: Bytes of values in one script call; larger ones go alone.
        connections_max: In use at once, for each server.

    Thread-safety: every method.

    Blocking: a call takes one round trip (on a cluster, to all nodes concerned at once), a batch
    above `chunk_bytes_max` several that overlap. A hung server costs `timeout_s` for each server
    concerned; where connections have to be opened, `connect_timeout_s` and `timeout_s` more, for
    each sentinel or node that is asked in vain. An answer that trickles in is not cut off: the
    timeout begins anew with every piece of it.

    Server: Redis 6.2 or newer, or Valkey. The user needs ``+get +set +mget +getrange +eval +evalsha
    +info +select`` and ``~<prefix>:*`` (on a cluster also ``+cluster|slots``); with ``+config|get``
    values are checked against the server's own limit. Eviction should not be ``allkeys-random``:
    each time it hits a mark, an epoch ends early. `sweep` unlinks the keys of abandoned epochs, for
    which the user needs ``+scan +unlink`` too.

    Cost: a write 2 to 5 µs, a read 1 to 3 µs for each small item in a batch of 1,000.

    Raises:
        ConfigError: The URL or the prefix cannot be used, or the driver is not installed.
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "se",
        clock: Clock,
        connect_timeout_s: float = 1.0,
        timeout_s: float = 1.0,
        tombstone_ttl_s: float = 600.0,
        fill_ttl_s: float = 3600.0,
        fill_pause_s: float = 5.0,
        chunk_bytes_max: int = 256 << 10,
        connections_max: int = 32,
    ) -> None:
        self.name = STORE
        self._address = parse_address(url)
        self._layout = Layout(prefix, cluster=self._address.kind is Kind.CLUSTER)
        self._clock = clock
        self._connect_timeout_s = connect_timeout_s
        self._timeout_s = timeout_s
        self._connections_max = connections_max
        self._chunk_bytes_max = chunk_bytes_max
        self._fill_pause_s = fill_pause_s
        self._value_bytes_max = _VALUE_BYTES_MAX
        mark_ms = max(1, int(tombstone_ttl_s * 1000))
        self._lifetimes = Lifetimes(
            mark_ms=mark_ms,
            fill_ms=max(1, int(fill_ttl_s * 1000)),
            grace_ms=min(_GRACE_MS, mark_ms),
        )
        self._numbers = itertools.count(1)
        self._talk = Conversation(self._layout, clock=clock, window_bytes=2 * chunk_bytes_max)
        self._sweep = Sweep(self._layout, self._talk, 2 * chunk_bytes_max)
        self._lock = threading.Lock()
        self._topology: Topology | None = None
        self._counts = {"corrupt": 0, "foreign": 0, "fills_dropped": 0, "swept": 0}

    def __repr__(self) -> str:
        return f"RedisStore({self._address.shown!r})"

    # -- lifecycle --------------------------------------------------------------------------------

    def attach(self) -> None:
        """Connect, check the servers, and agree on the key epoch. Safe to repeat.

        Blocking: bounded by the timeouts.

        Raises:
            StoreUnavailable: A server is not there now.
            ConfigError: Wrong credentials or database, a cluster where none is named (or the other
                way round), or keys of another format under the prefix.
        """
        with self._lock:
            if self._topology is None:
                self._topology = make_topology(
                    self._address,
                    clock=self._clock,
                    connect_timeout_s=self._connect_timeout_s,
                    timeout_s=self._timeout_s,
                    connections_max=self._connections_max,
                    numbers=lambda: next(self._numbers),
                    slot_key=self._layout.mark_key,
                )
            topology = self._topology
        try:
            topology.doubt()
            self._talk.forget()
            everything = dict.fromkeys(self._layout.scopes)
            look = Request(groups=everything, commands=_look, current=_is_mark, fresh=True)
            self._talk.ask(topology, "attach", look)
            self._learn_limits()
        except (StoreRejected, ForeignLayout) as exc:
            raise ConfigError(f"redis_url: {self._address.shown}: {exc.hint}") from exc

    def close(self) -> None:
        """Close the connections; `attach` opens new ones. Safe twice; calls under way may fail."""
        with self._lock:
            topology, self._topology = self._topology, None
        if topology is not None:
            topology.close()
        self._talk.forget()

    def _attached(self, operation: str) -> Topology:
        topology = self._topology
        if topology is None:
            raise StoreUnavailable(STORE, operation, "not attached")
        return topology

    def new_epoch(self) -> None:
        """Abandon every key written so far, for all engines on this prefix.

        Raises:
            StoreUnavailable: Try again later; the old epoch may still be in use.
        """
        self._talk.renew(self._attached("new_epoch"), "new_epoch")

    def identity_changed(self) -> bool:
        """Tell, once, whether a server turned out to be another one. Never blocks."""
        return self._talk.identity_changed()

    # -- writing ----------------------------------------------------------------------------------

    def apply(self, changes: Sequence[Change]) -> None:
        """Keep the newest of every id; see `ports.CacheStore`.

        A batch that fails may be stored in part, which repeating it mends.

        Raises:
            StoreUnavailable: Try again later.
            StoreRejected: A value is too large, or the server denies us.
        """
        now_ms = self._clock.now_ms()
        entries = self._lifetimes.to_apply(changes, now_ms, self._value_bytes_max)
        self._write("apply", entries)

    def fill(self, changes: Sequence[Change]) -> None:
        """Copy archived items up, each only where nothing as new is there; see `ports.CacheStore`.

        Copies are dropped, and counted, where the epoch is a new one: see `fill_pause_s`.

        Raises:
            StoreUnavailable: Try again later.
            StoreRejected: A value is too large, or the server denies us.
        """
        now_ms = self._clock.now_ms()
        entries = self._lifetimes.to_fill(changes, now_ms, self._value_bytes_max)
        if self._epoch_is_young():
            self._count("fills_dropped", len(entries))
            return
        dropped = len(entries) - self._write("fill", entries, once=True)
        if dropped:
            self._count("fills_dropped", dropped)

    def _epoch_is_young(self) -> bool:
        return self._clock.monotonic() - self._talk.epoch_since < self._fill_pause_s

    def _write(self, operation: str, entries: Sequence[Entry], *, once: bool = False) -> int:
        """Write entries; return how many were sent to a server that had the right epoch."""
        topology = self._attached(operation)
        if not entries:
            return 0
        groups: Mapping[int, Sequence[Entry]] = {0: entries}
        if self._layout.cluster:
            groups = _grouped((entry.bucket, entry) for entry in entries)
        commands = self._fill_commands if once else self._write_commands
        request = Request(groups=groups, commands=commands, current=_is_stored, once=once)
        answers = self._talk.ask(topology, operation, request)
        sent = (scope for scope, (_, replies) in answers.items() if isinstance(replies[0], int))
        return sum(len(groups[scope]) for scope in sent)

    def _fill_commands(self, epoch: Epoch, entries: Sequence[Entry]) -> list[Command]:
        # Asked for once the epoch is agreed: where this very call found a new one, nothing is sent.
        if self._epoch_is_young():
            return _look(epoch, None)
        return self._write_commands(epoch, entries)

    def _write_commands(self, epoch: Epoch, entries: Sequence[Entry]) -> list[Command]:
        commands: list[Command] = []
        heads, bytes_max = epoch.heads, self._chunk_bytes_max
        keys: list[bytes] = []
        arguments: list[bytes] = []
        size = 0
        for bucket, raw_id, value, ttl_ms in entries:
            size += len(value)
            if keys and (size > bytes_max or len(keys) >= _KEYS_MAX):
                commands.append(_script_call(epoch, keys, arguments))
                keys, arguments, size = [], [], len(value)
            keys.append(heads[bucket] + raw_id)
            arguments += (value, ttl_ms)
        commands.append(_script_call(epoch, keys, arguments))
        return commands

    # -- reading ----------------------------------------------------------------------------------

    def get_many(self, ids: Sequence[str]) -> dict[str, Change]:
        """Return what is cached, version marks included; whatever is not ours is absent.

        Raises:
            StoreUnavailable: Try again later.
            StoreRejected: The server denies us.
        """
        topology = self._attached("get_many")
        if not ids:
            return {}
        wanted = []
        for change_id in ids:
            raw_id = change_id.encode()
            wanted.append((bucket_of(raw_id), raw_id, change_id))
        groups: Mapping[int, Sequence[tuple[int, bytes, str]]] = {0: wanted}
        if self._layout.cluster:
            groups = _grouped((want[0], want) for want in wanted)
        request = Request(groups=groups, commands=_read_commands, current=_has_mark)
        answers = self._talk.ask(topology, "get_many", request)
        return self._found(groups, answers)

    def _found(
        self, groups: Mapping[int, Sequence[tuple[int, bytes, str]]], answers: Answers
    ) -> dict[str, Change]:
        found: dict[str, Change] = {}
        now_ms = self._clock.now_ms()
        for scope, (_, replies) in answers.items():
            values = (value for reply in replies for value in itertools.islice(reply, 1, None))
            for (_, _, change_id), value in zip(groups[scope], values, strict=True):
                if value is None:
                    continue
                try:
                    change = read_value(change_id, value)
                except Damaged as exc:
                    self._count("foreign" if exc.foreign else "corrupt", 1)
                    continue
                if not change.expires_at_ms or not change.expired(now_ms):
                    found[change_id] = change
        return found

    def sweep(self, keys_max: int) -> bool:
        """Look at about so many keys, and unlink those of abandoned epochs.

        One thread at a time. Cost: one or two round trips.

        Returns:
            Whether all keys have been looked at since this last was true.

        Raises:
            StoreUnavailable: Try again later; it goes on where it was.
            StoreRejected: The user may not scan or unlink.
        """
        gone, complete = self._sweep.step(self._attached("sweep"), keys_max)
        self._count("swept", gone)
        return complete

    # -- the rest ---------------------------------------------------------------------------------

    def ping(self) -> float:
        """Return the seconds of one round trip, on a cluster to all masters at once.

        The servers prove their identity on the way.

        Raises:
            StoreUnavailable: No answer within the budget.
        """
        topology = self._attached("ping")
        started = self._clock.monotonic()
        everything = dict.fromkeys(self._layout.scopes)
        look = Request(groups=everything, commands=_look, current=_is_mark, proof=True)
        self._talk.ask(topology, "ping", look)
        return self._clock.monotonic() - started

    def stats(self) -> Mapping[str, float]:
        """Return counters: ``corrupt``, ``foreign``, ``fills_dropped``, ``swept``, ``epochs``."""
        with self._lock:
            return {**self._counts, "epochs": self._talk.epochs}

    def describe(self) -> Mapping[str, str]:
        """Return what the server says of itself, for `doctor`; of a cluster, one of its masters.

        Raises:
            StoreUnavailable: Try again later.
        """
        replies = self._ask_one("describe", (b"INFO", b"server"), (b"INFO", b"memory"))
        lines = b"\n".join(replies).decode(errors="replace").splitlines()
        fields = dict(line.split(":", 1) for line in lines if ":" in line)
        return {
            "version": fields.get("valkey_version") or fields.get("redis_version", "unknown"),
            "maxmemory": fields.get("maxmemory", ""),
            "maxmemory_policy": fields.get("maxmemory_policy", ""),
        }

    def _learn_limits(self) -> None:
        """Learn how large a value may be, where the server tells."""
        try:
            (limit,) = self._ask_one("attach", (b"CONFIG", b"GET", b"proto-max-bulk-len"))
        except StorageError:  # many services keep their settings to themselves
            return
        if len(limit) == 2:
            self._value_bytes_max = min(_VALUE_BYTES_MAX, int(limit[1]))

    def _ask_one(self, operation: str, *commands: Command) -> list[Any]:
        topology = self._attached(operation)
        scope = self._layout.scopes[0]
        request = Request(
            groups={scope: commands}, commands=lambda _, said: said, current=lambda *_: True
        )
        answers = self._talk.ask(topology, operation, request)
        return answers[scope][1]

    def _count(self, name: str, count: int) -> None:
        with self._lock:
            self._counts[name] += count


def _grouped(pairs: Iterable[tuple[int, T]]) -> dict[int, list[T]]:
    groups: dict[int, list[T]] = {}
    for key, value in pairs:
        groups.setdefault(key, []).append(value)
    return groups


def _look(epoch: Epoch, _: None) -> list[Command]:
    return [(b"GET", epoch.mark_key)]


def _is_mark(epoch: Epoch, reply: Any) -> bool:
    return bool(reply == epoch.mark)


def _script_call(epoch: Epoch, keys: Sequence[bytes], arguments: Sequence[bytes]) -> Command:
    count = b"%d" % (len(keys) + 1)
    return [b"EVALSHA", SET_IF_NEWER_SHA, count, epoch.mark_key, *keys, epoch.mark, *arguments]


def _is_stored(_: Epoch, reply: Any) -> bool:
    return bool(reply != -1)


def _read_commands(epoch: Epoch, wanted: Sequence[tuple[int, bytes, str]]) -> list[Command]:
    heads = epoch.heads
    keys = [heads[bucket] + raw_id for bucket, raw_id, _ in wanted]
    return [
        [b"MGET", epoch.mark_key, *keys[start : start + _KEYS_MAX]]
        for start in range(0, len(keys), _KEYS_MAX)
    ]


def _has_mark(epoch: Epoch, reply: Any) -> bool:
    return bool(reply[0] == epoch.mark)
