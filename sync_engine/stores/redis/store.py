"""The L2 store: guarded writes in one script call a batch, reads by MGET."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from redis import exceptions as redis_errors
from xxhash import xxh3_64_intdigest

from sync_engine.core import codec
from sync_engine.core.item import Change, Route
from sync_engine.errors import ConfigError, CorruptData, StoreRejected, StoreUnavailable
from sync_engine.ports import Clock
from sync_engine.stores.redis.connect import connect
from sync_engine.stores.redis.epoch import Marks, identity_of
from sync_engine.stores.redis.errors import STORE, translated
from sync_engine.stores.redis.scripts import SET_IF_NEWER
from sync_engine.telemetry import get_logger, redact_url

__all__ = ["RedisStore"]

_log = get_logger("stores.redis")
_L2 = int(Route.L2)
_BUCKETS = 16
_KEYS_MAX = 1000
_DIGITS = 20
_TTL_MS_MAX = 10 * 365 * 86_400_000
_RECHECK_S = 5.0


class RedisStore:
    """Implements `ports.CacheStore`.

    A key is ``<prefix>:{<bucket>}:<epoch>:<id>``. A cluster has sixteen buckets, each in one slot,
    so that a batch is at most sixteen script calls; a single server has one. Ids come last and our
    own keys have a word in the epoch's place that no epoch can be, so that they never collide.

    Args:
        url: See `connect`.
        prefix: Begins every key.
        clock: For deadlines and rechecks.
        connect_timeout_s: Seconds for a connection.
        timeout_s: Seconds between two bytes of an answer.
        tombstone_ttl_s: Seconds that a version mark without a value stays.
        fill_ttl_s: Seconds that a copy of an archived item stays, at most.
        chunk_bytes_max: Bytes of values in one script call.

    Thread-safety: every method. Blocking: one round trip a call or chunk.

    Raises:
        ConfigError: The URL cannot be used, or the driver is not installed.
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
        chunk_bytes_max: int = 256 << 10,
    ) -> None:
        self.name = STORE
        self._url = url
        self._prefix = prefix.encode()
        self._clock = clock
        self._timeouts = {"connect_timeout_s": connect_timeout_s, "timeout_s": timeout_s}
        self._mark_ttl_ms = int(tombstone_ttl_s * 1000)
        self._fill_ttl_ms = int(fill_ttl_s * 1000)
        self._chunk_bytes_max = chunk_bytes_max
        self._lock = threading.Lock()
        self._client: Any = None
        self._cluster = "+cluster" in url.partition("://")[0]
        self._buckets = _BUCKETS if self._cluster else 1
        self._marks = Marks(self._mark_key, self._buckets)
        self._identity: str | None = None
        self._mark = b""
        self._heads: list[bytes] = []
        self._script = ""
        self._doubt = True
        self._recheck_at = 0.0
        self._changed = False
        self._counts = {"corrupt": 0, "foreign": 0, "epochs": 0}
        self._make_client()

    def __repr__(self) -> str:
        return f"RedisStore({redact_url(self._url)!r})"

    def _make_client(self) -> None:
        if not self._cluster:  # a cluster's client connects at once: it is made in `attach`
            self._client, _ = connect(self._url, **self._timeouts, on_connect=self._greet)

    def _mark_key(self, bucket: int) -> bytes:
        return b"%s:{%02x}:mark" % (self._prefix, bucket)

    # -- connecting -------------------------------------------------------------------------------

    def _greet(self, connection: Any) -> None:
        """Refuse a new connection to another server than the one we agreed with."""
        known = self._identity
        if known is None:
            return
        connection.send_command("INFO", "server")
        text = connection.read_response()
        if b"run_id:" + known.encode() not in (
            text if isinstance(text, bytes) else str(text).encode()
        ):
            self._doubt = True
            raise redis_errors.ConnectionError("the server is another one than before")

    def attach(self) -> None:
        """Connect, check the server, and agree on the key epoch.

        Raises:
            StoreUnavailable: The server is not there now.
            ConfigError: Wrong credentials, not a server for us, or a newer format.
        """
        try:
            with self._lock, translated("attach"):
                if self._client is None:
                    self._client, _ = connect(self._url, **self._timeouts, on_connect=self._greet)
                self._agree()
        except StoreRejected as exc:
            raise ConfigError(f"redis_url: {redact_url(self._url)}: {exc}") from exc

    def _agree(self, *, anew: bool = False) -> None:
        """Learn who the server is and which epoch is in force. Lock held."""
        before, self._identity = self._identity, None
        identity = identity_of(self._client, cluster=self._cluster)
        mark, epoch = self._marks.agree(self._client, identity, anew=anew)
        if self._mark and mark != self._mark:
            self._counts["epochs"] += 1
            _log.warning("new_epoch", epoch=epoch)
        if before is not None and before != identity:
            self._changed = True
        self._script = self._client.script_load(SET_IF_NEWER)
        self._heads = [
            b"%s:{%02x}:%s:" % (self._prefix, bucket, epoch.encode())
            for bucket in range(self._buckets)
        ]
        self._mark = mark
        self._identity = identity
        self._recheck_at = self._clock.monotonic() + _RECHECK_S
        self._doubt = False

    def _sure(self, operation: str) -> Any:
        """Return the client, once it is sure whose it is."""
        if self._client is None:
            raise StoreUnavailable(STORE, operation, "not attached")
        if self._doubt or (self._cluster and self._clock.monotonic() >= self._recheck_at):
            with self._lock, translated(operation):
                if self._doubt or self._identity != identity_of(
                    self._client, cluster=self._cluster
                ):
                    self._agree()
                self._recheck_at = self._clock.monotonic() + _RECHECK_S
        return self._client

    def new_epoch(self) -> None:
        """Abandon every key written so far, for all engines on this prefix."""
        with self._lock, translated("new_epoch"):
            if self._client is None:
                raise StoreUnavailable(STORE, "new_epoch", "not attached")
            self._agree(anew=True)

    def identity_changed(self) -> bool:
        """Tell, once, whether the server turned out to be another one."""
        changed, self._changed = self._changed, False
        return changed

    # -- writing ----------------------------------------------------------------------------------

    def apply(self, changes: Sequence[Change]) -> None:
        """Keep the newest of every id; see `ports.CacheStore`."""
        self._store("apply", [(change, self._lifetime_ms(change)) for change in changes])

    def fill(self, changes: Sequence[Change]) -> None:
        """Copy archived items up, each only where nothing as new is there."""
        cap = self._fill_ttl_ms
        self._store("fill", [(c, min(cap, self._lifetime_ms(c) or cap)) for c in changes])

    def _lifetime_ms(self, change: Change) -> int:
        """Return how long an entry stays, in milliseconds; 0 is for ever."""
        if change.content is None or not change.routes & _L2:
            return self._mark_ttl_ms
        if not change.expires_at_ms:
            return 0
        left = change.expires_at_ms - self._clock.now_ms()
        return min(left, _TTL_MS_MAX) if left > 0 else self._mark_ttl_ms

    def _store(self, operation: str, entries: Sequence[tuple[Change, int]]) -> None:
        client = self._sure(operation)
        now_ms = self._clock.now_ms()
        for bucket, keys, args in self._calls(entries, now_ms):
            with self._watched(operation):
                answer = self._run(client, [self._mark_key(bucket), *keys], [self._mark, *args])
                if answer == -1:
                    self._doubt = True
                    raise StoreUnavailable(STORE, operation, "the server was emptied or replaced")

    def _run(self, client: Any, keys: list[bytes], args: list[bytes]) -> Any:
        try:
            return client.evalsha(self._script, len(keys), *keys, *args)
        except redis_errors.NoScriptError:
            return client.eval(SET_IF_NEWER, len(keys), *keys, *args)

    def _calls(
        self, entries: Sequence[tuple[Change, int]], now_ms: int
    ) -> Iterator[tuple[int, list[bytes], list[bytes]]]:
        """Yield bucket, keys and arguments of each script call."""
        groups: dict[int, list[tuple[Change, int]]] = {0: list(entries)}
        if self._cluster:
            groups = {}
            for entry in entries:
                groups.setdefault(self._bucket(entry[0].id.encode()), []).append(entry)
        encode, bytes_max = codec.encode, self._chunk_bytes_max
        for bucket, group in groups.items():
            head = self._heads[bucket]
            keys: list[bytes] = []
            args: list[bytes] = []
            size = 0
            for change, ttl_ms in group:
                if not change.routes & _L2 or change.expired(now_ms):
                    change = Change(change.id, change.version, None, routes=change.routes)
                value = b"%020d" % change.version + encode(change)
                if keys and (size + len(value) > bytes_max or len(keys) >= _KEYS_MAX):
                    yield bucket, keys, args
                    keys, args, size = [], [], 0
                keys.append(head + change.id.encode())
                args.append(value)
                args.append(b"%d" % ttl_ms)
                size += len(value)
            if keys:
                yield bucket, keys, args

    def _bucket(self, id: bytes) -> int:
        return xxh3_64_intdigest(id) % self._buckets

    # -- reading ----------------------------------------------------------------------------------

    def get_many(self, ids: Sequence[str]) -> dict[str, Change]:
        """Return what is cached, version marks included; whatever is not ours is absent."""
        client = self._sure("get_many")
        found: dict[str, Change] = {}
        now_ms = self._clock.now_ms()
        heads = self._heads
        groups: dict[int, list[str]] = {0: list(ids)}
        if self._cluster:
            groups = {}
            for change_id in ids:
                groups.setdefault(self._bucket(change_id.encode()), []).append(change_id)
        for bucket, group in groups.items():
            head = heads[bucket]
            for start in range(0, len(group), _KEYS_MAX):
                part = group[start : start + _KEYS_MAX]
                with self._watched("get_many"):
                    values = client.mget([head + change_id.encode() for change_id in part])
                for change_id, value in zip(part, values, strict=True):
                    if value is not None:
                        change = self._decoded(change_id, value)
                        if change is not None and not change.expired(now_ms):
                            found[change_id] = change
        return found

    def _decoded(self, change_id: str, value: bytes) -> Change | None:
        if not value[:_DIGITS].isdigit() or len(value) <= _DIGITS:
            self._counts["foreign"] += 1
            return None
        try:
            change = codec.decode(value[_DIGITS:])
        except CorruptData:
            self._counts["corrupt"] += 1
            return None
        if change.id != change_id or change.version != int(value[:_DIGITS]):
            self._counts["corrupt"] += 1
            return None
        return change

    @contextmanager
    def _watched(self, operation: str) -> Iterator[None]:
        """Translate errors; after one, the server has to prove that it is the one it was."""
        with translated(operation):
            try:
                yield
            except (redis_errors.RedisError, OSError):
                self._doubt = True
                raise

    # -- the rest ---------------------------------------------------------------------------------

    def ping(self) -> float:
        """Return the seconds of one round trip; a changed server is noticed by it."""
        client = self._sure("ping")
        started = self._clock.monotonic()
        with self._watched("ping"):
            client.ping()
        return self._clock.monotonic() - started

    def stats(self) -> Mapping[str, float]:
        """Return counters."""
        return dict(self._counts)

    def describe(self) -> Mapping[str, str]:
        """Return what the server says of itself, for `doctor`. Blocking: a few round trips."""
        client = self._sure("describe")
        with self._watched("describe"):
            info = client.info("server", **self._random_node())
            memory = client.info("memory", **self._random_node())
        return {
            "version": str(info.get("valkey_version") or info.get("redis_version", "unknown")),
            "maxmemory": str(memory.get("maxmemory", "")),
            "maxmemory_policy": str(memory.get("maxmemory_policy", "")),
        }

    def _random_node(self) -> dict[str, Any]:
        return {"target_nodes": self._client.get_random_node()} if self._cluster else {}

    def close(self) -> None:
        """Close the connections; `attach` opens new ones."""
        with self._lock:
            client, self._client = self._client, None
            self._doubt = True
        if client is not None:
            client.close()
            if not self._cluster:
                client.connection_pool.disconnect()
