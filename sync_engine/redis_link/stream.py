"""One Redis stream and what stands beside it, spoken to over one slot."""

from __future__ import annotations

import itertools
import re
import threading
from collections.abc import Sequence
from typing import Any

from redis import exceptions as redis_errors

from sync_engine.errors import ConfigError, StoreRejected, StoreUnavailable
from sync_engine.ports import Clock
from sync_engine.redis_link.address import Address, parse_address
from sync_engine.redis_link.errors import STORE, is_redirect, translated
from sync_engine.redis_link.link import PROOF, Command, Talk
from sync_engine.redis_link.topology import Topology, make_topology

__all__ = ["StreamKeys", "StreamLink"]

_PREFIX = re.compile(r"[A-Za-z0-9][A-Za-z0-9_:.\-]{0,63}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,63}")
_PROOF_S = 1.0
_ATTEMPTS = 3


class StreamKeys:
    """Names of keys: all begin with ``<prefix>:{feed}:<name>``, which is one slot of a cluster.

    No id of a user collides with them: in front of an id stands ``<prefix>:{<bucket>}``, and no
    bucket is called ``feed``.

    Attributes:
        stream: The stream itself.
        origins: A hash: ``stream`` is the stream's identity, and for each origin there is
            ``<reached> <last> <ms>``: the log position that it has reached, the one at which its
            last batch with entries ended, and when that was written.
        poison: A stream of entries that a reader could not make sense of.

    Raises:
        ConfigError: Prefix or name cannot be used.
    """

    def __init__(self, prefix: str, name: str) -> None:
        if not _PREFIX.fullmatch(prefix):
            raise ConfigError("prefix: 1 to 64 letters, digits, or any of _ : . - (not the first)")
        if not _NAME.fullmatch(name):
            raise ConfigError("stream: 1 to 64 letters, digits, or any of _ . - (not the first)")
        self.stream = f"{prefix}:{{feed}}:{name}".encode()
        self.origins = self.stream + b":origins"
        self.poison = self.stream + b":poison"

    def group(self, name: str) -> bytes:
        """Return the key that holds what a consumer group has seen of each origin."""
        if not _NAME.fullmatch(name):
            raise ConfigError("group: 1 to 64 letters, digits, or any of _ . - (not the first)")
        return self.stream + b":group:" + name.encode()


class StreamLink:
    """The connection to the server that holds a stream.

    Args:
        url: As `address.parse_address` takes it.
        prefix: Begins the key.
        name: Ends it.
        clock: Says when a connection has to prove itself again.
        connect_timeout_s: Seconds for a connection.
        timeout_s: Seconds for an answer; a reading that waits adds its waiting.

    Thread-safety: every method. No lock is held while the server is asked.

    Raises:
        ConfigError: URL, prefix or name cannot be used.
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str,
        name: str,
        clock: Clock,
        connect_timeout_s: float = 1.0,
        timeout_s: float = 1.0,
    ) -> None:
        self.keys = StreamKeys(prefix, name)
        self._address: Address = parse_address(url)
        self._clock = clock
        self._connect_timeout_s = connect_timeout_s
        self._timeout_s = timeout_s
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._topology: Topology | None = None

    @property
    def shown(self) -> str:
        """The URL without its secrets."""
        return self._address.shown

    def open(self) -> None:
        """Get ready, and see that a server is there.

        Raises:
            StoreUnavailable: Not now.
            ConfigError: It can never serve us: credentials, database, or a cluster where none is
                named.
        """
        with self._lock:
            if self._topology is None:
                self._topology = make_topology(
                    self._address,
                    clock=self._clock,
                    connect_timeout_s=self._connect_timeout_s,
                    timeout_s=self._timeout_s,
                    connections_max=4,
                    numbers=lambda: next(self._numbers),
                    slot_key=lambda _: self.keys.stream,
                )
        try:
            self.ask("attach", [(b"TYPE", self.keys.stream)])
        except StoreRejected as exc:
            raise ConfigError(f"{self.shown}: {exc.hint or exc}") from exc

    def ask(self, operation: str, commands: Sequence[Command]) -> list[Any]:
        """Say commands in one breath, and return their answers.

        Everything that is said has to be harmless if it is said twice.

        Raises:
            StoreUnavailable: Try again later.
            StoreRejected: It can never be done.
        """
        topology = self._topology
        if topology is None:
            raise StoreUnavailable(STORE, operation, "not attached")
        failure: Exception | None = None
        with translated(operation):
            for _ in range(_ATTEMPTS):
                answers, failure = self._once(topology, commands)
                if answers is not None:
                    return answers
            if failure is not None:
                raise failure
        raise StoreUnavailable(STORE, operation, "the server changed again and again")

    def _once(
        self, topology: Topology, commands: Sequence[Command]
    ) -> tuple[list[Any] | None, Exception | None]:
        """Return the answers, or None and the failure after which it is worth to ask again."""
        ((node, scopes),) = topology.route((0,))
        talk = Talk(node, node.acquire(), scopes, 1 << 20)
        reused = talk.link.reused
        try:
            now = self._clock.monotonic()
            prove = now - talk.link.proved_at >= _PROOF_S
            # Said first: who has become a replica is not believed what comes after.
            talk.begin([PROOF, *commands] if prove else commands)
            answers = talk.finish()
            if prove and not talk.link.is_proved_by(answers.pop(0), now):
                talk.distrust()
                topology.doubt()
                return None, None
            for answer in answers:
                if isinstance(answer, Exception):
                    talk.distrust()
                    raise answer
        except redis_errors.RedisError as exc:
            topology.doubt()
            if not talk.clean:
                node.drop_idle()
            ended = isinstance(exc, redis_errors.ConnectionError) and reused
            if is_redirect(exc) or ended:
                return None, exc
            raise
        finally:
            node.release(talk.link, keep=talk.clean)
        return answers, None

    def close(self) -> None:
        """Close connections; safe twice."""
        with self._lock:
            topology, self._topology = self._topology, None
        if topology is not None:
            topology.close()
