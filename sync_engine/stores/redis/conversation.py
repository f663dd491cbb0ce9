"""Questions and answers with the servers, each answer bound to the epoch it was asked in.

How an answer is known to be of the epoch in force:

- Every call names the epoch mark, in the same step on the server: a script that finds another mark
  writes nothing, and a read brings the mark along with the values. Whatever moved the epoch or
  emptied the server, of any engine, shows at once, and the call is done anew in the new epoch.
- A connection knows the identity of its server (the run, and the replication history, which a
  promotion begins anew). Where that is not what the epoch was begun on, the epoch is agreed anew
  before anything is read: a restarted, replaced or promoted server holds what nobody vouches for.
- A connection proves its identity again with the first call of every second, in the same round
  trip. That finds a server that was turned into a replica and back under open connections.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from redis import exceptions as redis_errors

from sync_engine.errors import StoreUnavailable
from sync_engine.ports import Clock
from sync_engine.redis_link.errors import STORE, ForeignLayout, is_redirect, translated
from sync_engine.redis_link.link import PROOF, Command, Talk
from sync_engine.redis_link.topology import Topology
from sync_engine.stores.redis.keys import Epoch, Layout
from sync_engine.stores.redis.scripts import AGREE, FORCE, SET_IF_NEWER
from sync_engine.telemetry import get_logger

__all__ = ["Answers", "Conversation", "Request"]

T = TypeVar("T")
Answers = dict[int, tuple[Epoch, list[Any]]]

_log = get_logger("stores.redis")
_ROUNDS_MAX = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Request(Generic[T]):
    """What is asked.

    Attributes:
        groups: What it is about, by scope.
        commands: Makes the commands of a group in an epoch; at least one.
        current: Tells whether an answer is of the epoch.
        fresh: Ask over new connections only.
        proof: Let every connection prove its identity.
        once: Leave scopes out that would have to be asked again.
    """

    groups: Mapping[int, T]
    commands: Callable[[Epoch, T], Sequence[Command]]
    current: Callable[[Epoch, Any], bool]
    fresh: bool = False
    proof: bool = False
    once: bool = False


class Conversation:
    """Speaks with the servers of one topology, and keeps the epochs.

    Args:
        layout: Where marks lie.
        clock: Says when a connection has to prove itself again.
        window_bytes: That are sent ahead of their answers.
        proof_s: Seconds that a proof of identity counts.

    Thread-safety: every method. No lock is held while a server is asked.
    """

    def __init__(
        self, layout: Layout, *, clock: Clock, window_bytes: int, proof_s: float = 1.0
    ) -> None:
        self._layout = layout
        self._clock = clock
        self._window_bytes = window_bytes
        self._proof_s = proof_s
        self._lock = threading.Lock()
        self._epochs: dict[int, Epoch] = {}
        self._before: dict[int, Epoch] = {}
        self._identity_changed = False
        self.epochs = 0
        self.epoch_since = -float("inf")

    def identity_changed(self) -> bool:
        """Tell, once, whether a server turned out to be another one."""
        with self._lock:
            changed, self._identity_changed = self._identity_changed, False
        return changed

    def forget(self) -> None:
        """Agree anew before anything else is said."""
        with self._lock:
            self._epochs.clear()

    # -- speaking ---------------------------------------------------------------------------------

    def ask(self, topology: Topology, operation: str, request: Request[T]) -> Answers:
        """Ask every scope of a request, and return what was answered.

        A scope whose answers show another epoch, or another server, is asked again in the new one.

        Raises:
            StoreUnavailable: Try again later.
            StoreRejected: It can never be done.
        """
        answers: Answers = {}
        todo = dict(request.groups)
        failure: Exception | None = None
        with translated(operation):
            for _ in range(_ROUNDS_MAX):
                failure = self._round(topology, request, todo, answers)
                for scope in answers:
                    todo.pop(scope, None)
                if not todo or (request.once and failure is None):
                    return answers
            if failure is not None:
                raise failure
        raise StoreUnavailable(STORE, operation, "server or epoch changed again and again")

    def renew(self, topology: Topology, operation: str) -> None:
        """Begin a new epoch everywhere, for all engines.

        Raises:
            StoreUnavailable: Try again later; some scopes may be in their old epoch.
        """
        with translated(operation):
            for node, scopes in topology.route(self._layout.scopes):
                talk = Talk(node, node.acquire(fresh=True), scopes, self._window_bytes)
                try:
                    self._agree(talk, scopes, force=True)
                except BaseException:
                    topology.doubt()
                    raise
                finally:
                    node.release(talk.link, keep=talk.clean)

    def _round(
        self, topology: Topology, request: Request[T], todo: Mapping[int, T], answers: Answers
    ) -> Exception | None:
        """Ask every scope once; return the error that may pass if it is tried at once again."""
        talks: list[Talk] = []
        try:
            self._speak(topology, request, todo, answers, talks)
        except redis_errors.RedisError as exc:
            topology.doubt()
            lost = [talk for talk in talks if not talk.clean]
            for talk in lost:
                talk.node.drop_idle()  # they lead to the same server
            if not _may_pass(exc, lost):
                raise
            return exc
        except BaseException:
            topology.doubt()
            raise
        finally:
            for talk in talks:
                talk.node.release(talk.link, keep=talk.clean)
        return None

    def _speak(
        self,
        topology: Topology,
        request: Request[T],
        todo: Mapping[int, T],
        answers: Answers,
        talks: list[Talk],
    ) -> None:
        now = self._clock.monotonic()
        plans: list[list[tuple[int, Epoch, Sequence[Command]]]] = []
        for node, scopes in topology.route(todo):
            talk = Talk(node, node.acquire(fresh=request.fresh), scopes, self._window_bytes)
            talks.append(talk)
            epochs = self._settle(talk)
            plans.append([(s, e, request.commands(e, todo[s])) for s, e in epochs.items()])
        proved: set[Talk] = set()
        for talk, plan in zip(talks, plans, strict=True):
            said = [command for _, _, commands in plan for command in commands]
            if request.proof or now - talk.link.proved_at >= self._proof_s:
                proved.add(talk)
                said.append(PROOF)
            talk.begin(said)
        heard = [talk.finish() for talk in talks]
        for talk, plan, replies in zip(talks, plans, heard, strict=True):
            if talk in proved and not talk.link.is_proved_by(replies.pop(), now):
                talk.distrust()  # none of its answers counts
                continue
            _repeat_without_script(talk, plan, replies)
            self._judge(talk, plan, replies, request, answers)

    def _judge(
        self,
        talk: Talk,
        plan: Sequence[tuple[int, Epoch, Sequence[Command]]],
        replies: Iterable[Any],
        request: Request[T],
        answers: Answers,
    ) -> None:
        """Take the answers that are of the epoch in force."""
        rest = iter(replies)
        for scope, epoch, commands in plan:
            mine = list(itertools.islice(rest, len(commands)))
            for reply in mine:
                if isinstance(reply, Exception):
                    talk.distrust()  # it may have become a replica: ask again who is there
                    raise reply
            if all(request.current(epoch, reply) for reply in mine):
                answers[scope] = (epoch, mine)
            else:
                with self._lock:
                    if self._epochs.get(scope) is epoch:
                        del self._epochs[scope]

    # -- agreeing ---------------------------------------------------------------------------------

    def _settle(self, talk: Talk) -> Mapping[int, Epoch]:
        """Return the epochs of a talk's scopes, begun on the very server that it is with."""
        if self._leads_back(talk):
            talk.reconnect()
        identity = talk.link.identity
        settled: dict[int, Epoch] = {}
        for scope in talk.scopes:
            epoch = self._epochs.get(scope)
            if epoch is not None and epoch.identity == identity:
                settled[scope] = epoch
        unsettled = [scope for scope in talk.scopes if scope not in settled]
        if unsettled:
            settled.update(self._agree(talk, unsettled, force=False))
        return settled

    def _leads_back(self, talk: Talk) -> bool:
        """Tell whether an epoch was agreed with another server, over a younger connection.

        The talk's connection then may lead to where the server was: only a new one tells.
        """
        link = talk.link
        latest = (self._before.get(scope) for scope in talk.scopes)
        return any(e and e.identity != link.identity and link.number < e.link for e in latest)

    def _agree(self, talk: Talk, scopes: Iterable[int], *, force: bool) -> dict[int, Epoch]:
        """Find or put the marks of scopes; of many engines, one succeeds."""
        link, layout = talk.link, self._layout
        asked = list(scopes)
        talk.begin(
            [
                (
                    b"EVAL", AGREE, b"1", layout.mark_key(scope), link.identity.encode(),
                    layout.new_mark(link.identity), FORCE if force else b"",
                )
                for scope in asked
            ]
        )  # fmt: skip
        found: dict[int, Epoch] = {}
        for scope, mark in zip(asked, talk.finish(), strict=True):
            if isinstance(mark, Exception):
                talk.distrust()
                if "WRONGTYPE" in str(mark):
                    raise ForeignLayout(STORE, "attach", self._foreign(scope)) from mark
                raise mark
            found[scope] = layout.epoch(scope, mark, link.number)
        self._adopt(found)
        return found

    def _foreign(self, scope: int) -> str:
        key = self._layout.mark_key(scope).decode()
        return f"the key {key} is somebody else's: choose another redis_prefix"

    def _adopt(self, found: Mapping[int, Epoch]) -> None:
        with self._lock:
            before = [self._before.get(scope) for scope in found]
            pairs = [(old, new) for old, new in zip(before, found.values(), strict=True) if old]
            moved = sum(old.name != new.name for old, new in pairs)
            if any(old.identity != new.identity for old, new in pairs):
                self._identity_changed = True
            if moved:  # told before the epochs are: fills look at it once they have theirs
                self.epochs += 1
                self.epoch_since = self._clock.monotonic()
            self._before.update(found)
            self._epochs.update(found)
        if moved:
            _log.warning("new_epoch", scopes=moved, epoch=pairs[-1][1].name)


def _may_pass(exc: Exception, lost: Sequence[Talk]) -> bool:
    """Tell whether the same may succeed at once, over other connections or with a new map."""
    if is_redirect(exc):
        return True
    # A connection from the pool may have ended long ago: that says nothing of the server.
    ended = isinstance(exc, redis_errors.ConnectionError)
    return ended and bool(lost) and all(talk.link.reused for talk in lost)


def _repeat_without_script(
    talk: Talk, plan: Iterable[tuple[int, Epoch, Sequence[Command]]], replies: list[Any]
) -> None:
    """Send the script itself where the server does not know its digest; mend the replies."""
    lost = [n for n, r in enumerate(replies) if isinstance(r, redis_errors.NoScriptError)]
    if not lost:
        return
    said = [command for _, _, commands in plan for command in commands]
    talk.begin([(b"EVAL", SET_IF_NEWER, *said[n][2:]) for n in lost])
    for n, reply in zip(lost, talk.finish(), strict=True):
        replies[n] = reply
