"""One writer for a target: a lease that clocks can only delay, and epochs that need no clock.

HEAD names the owner and the epoch, and is only ever replaced by comparison. Who takes over begins a
new epoch behind the last transaction that the old one can be restored to; whatever the old owner
still adds lies beyond that fork and counts no more. The lease merely spares two live replicators
the trouble. Where the store ignores conditional writes, HEAD is read back after a pause instead,
which is weaker, and said so.
"""

from __future__ import annotations

import os
import platform
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sync_engine.core import failpoints
from sync_engine.errors import StoreUnavailable
from sync_engine.ports import Runtime
from sync_engine.sinks.snapshot.errors import Changed, Fenced, NoBackup
from sync_engine.sinks.snapshot.format import seal, unseal
from sync_engine.sinks.snapshot.inventory import (
    Branch,
    Head,
    Inventory,
    read_head,
    read_inventory,
)
from sync_engine.sinks.snapshot.keys import HEAD, SegmentKey, start_key
from sync_engine.sinks.snapshot.objects import Objects
from sync_engine.sinks.snapshot.state import State
from sync_engine.telemetry import get_logger

__all__ = ["Claim", "Lease"]

_log = get_logger("sinks.snapshot")
_SETTLE_S = 1.0
_LOOK_S = 1.0
_EPOCHS_TRIED = 100


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to write.

    Attributes:
        inventory: What the target holds.
        db_id: Identity of the database.
        epoch: Epoch to write in.
        fork: Last transaction of the epoch before.
        same: Whether the state of this replicator goes on; else a new chain begins.
    """

    inventory: Inventory
    db_id: str
    epoch: int
    fork: int
    same: bool


class Lease:
    """The right to write to one target, of one process.

    Thread-safety: `ensure` and `renew` from one thread at a time; `held` from any.

    Args:
        objects: The target.
        runtime: Time.
        ttl_s: Seconds of silence after which an owner counts as dead; 0 is no lease at all: then
            only conditional writes and epochs keep two replicators apart.
    """

    def __init__(self, objects: Objects, runtime: Runtime, ttl_s: float) -> None:
        self._objects = objects
        self._clock = runtime.clock
        self._lock = runtime.lock()
        self._ttl_s = ttl_s
        self._token = secrets.token_hex(16)
        self._etag = ""
        self._until = 0.0
        self._document: dict[str, Any] = {}
        self.conditional = True
        self.renewals = 0

    # -- taking it --------------------------------------------------------------------------------

    def claim(self, state: State | None, give_up: Callable[[], bool] = lambda: False) -> Claim:
        """Become the owner.

        Args:
            state: What this replicator did before, if anything.
            give_up: Asked while waiting; True ends the waiting.

        Raises:
            Fenced: Another replicator is alive, or was faster.
        """
        self.conditional = self._objects.conditional()
        if not self.conditional:
            _log.warning("no_conditional_writes", target=self._objects.url)
        head = read_head(self._objects)
        if head is None:
            return self._found()
        if self._ttl_s:
            head = self._wait_for(head, give_up)
        inventory = read_inventory(self._objects)
        if inventory.head.document.get("token") != head.document.get("token"):
            raise Fenced("another replicator took this target a moment ago")
        branch = inventory.lineage[0]
        same = (
            state is not None
            and (state.db_id, state.epoch) == (head.db_id, head.epoch)
            and _newest(inventory, branch) <= state.txid
        )
        epoch, fork = head.epoch, branch.fork
        if not same:
            fork = inventory.chain_end()
            epoch = self._start(head.db_id, head.epoch, fork)
            inventory.lineage[0] = Branch(branch.epoch, branch.fork, fork)
            inventory.lineage.insert(0, Branch(epoch, fork, None))
        self._take(head.db_id, epoch, inventory.head.etag)
        return Claim(inventory, head.db_id, epoch, fork, same)

    def _found(self) -> Claim:
        """Be the first at an empty target."""
        with suppress(NoBackup):  # raises CorruptData where HEAD alone was lost
            read_inventory(self._objects)
        db_id = secrets.token_hex(16)
        epoch = self._start(db_id, None, 0)
        self._take(db_id, epoch, None)
        head = Head(self._document, self._etag)
        return Claim(Inventory(head, [Branch(epoch, 0, None)]), db_id, epoch, 0, same=False)

    def _start(self, db_id: str, parent: int | None, fork: int) -> int:
        """Write the beginning of a new epoch; return its number."""
        first = (parent or 0) + 1
        for epoch in range(first, first + _EPOCHS_TRIED):  # some may have been begun and not taken
            document = {
                "format": 1,
                "db_id": db_id,
                "epoch": epoch,
                "parent": parent,
                "fork": fork,
                "owner": _owner(),
                "begun_ms": self._clock.now_ms(),
            }
            try:
                self._objects.put(start_key(db_id, epoch), seal(document), if_absent=True)
            except Changed:
                continue
            return epoch
        raise Fenced("others begin one epoch after another")

    def _take(self, db_id: str, epoch: int, etag: str | None) -> None:
        self._document = {
            "format": 1,
            "db_id": db_id,
            "epoch": epoch,
            "token": self._token,
            "owner": _owner(),
            "ttl_s": self._ttl_s,
            "released": False,
        }
        began = self._clock.monotonic()
        try:
            self._etag = self._put(etag)
        except Changed:
            raise Fenced("another replicator was faster") from None
        if not self.conditional:
            self._clock.sleep(_SETTLE_S)
            self._read_back()
        self._until = began + self._ttl_s

    def _wait_for(self, head: Head, give_up: Callable[[], bool]) -> Head:
        """Return HEAD once its owner is known to be dead; a live one makes itself known.

        No clock of another machine is believed: an owner is alive while it changes HEAD.
        """
        document = head.document
        if document.get("released") or _is_dead(document.get("owner", {})):
            return head
        ttl_s = float(document.get("ttl_s") or self._ttl_s)
        until = self._clock.monotonic() + ttl_s * 1.2
        owner = document.get("owner", {})
        _log.warning("waiting_for_owner", owner=owner, seconds=ttl_s)
        while self._clock.monotonic() < until and not give_up():
            self._clock.sleep(min(_LOOK_S, ttl_s / 10))
            found = read_head(self._objects)
            if found is None:
                raise Fenced("HEAD disappeared")
            if found.document.get("released"):
                return found
            if found.etag != head.etag:
                name = f"process {owner.get('pid')} on {owner.get('host')}"
                raise Fenced(f"{self._objects.url} is being written by {name}")
        if give_up():
            raise StoreUnavailable("snapshot", "claim", "interrupted while waiting for the owner")
        return head

    # -- keeping it -------------------------------------------------------------------------------

    @property
    def held(self) -> bool:
        """Whether it may be relied on now. Never blocks."""
        return not self._ttl_s or self._clock.monotonic() < self._until

    @property
    def renew_in_s(self) -> float:
        """Seconds until it should be renewed; infinity without a lease."""
        if not self._ttl_s:
            return float("inf")
        return max(0.0, self._until - self._ttl_s * 2 / 3 - self._clock.monotonic())

    def ensure(self) -> None:
        """Return only while we are the owner.

        Raises:
            Fenced: We are not, any more.
            StoreUnavailable: Nobody knows; ask again.
        """
        if not self.held:
            self.renew()

    def renew(self, **told: object) -> None:
        """Say that we are alive, and what is there. Raises as `ensure`."""
        # Two jobs renew: the one on time, and the one that uploads. Held over the request, since
        # the second must not send what the first just made old.
        with self._lock:
            self._document |= told
            began = self._clock.monotonic()
            self._document["renewals"] = self.renewals + 1
            if not self.conditional:
                self._read_back()
            try:
                self._etag = self._put(self._etag)
            except Changed:
                self._read_back()  # the answer to an attempt of ours may have been lost
                try:
                    self._etag = self._put(self._etag)
                except Changed:
                    raise Fenced("another replicator took over") from None
            self._until = began + self._ttl_s
            self.renewals += 1

    def release(self) -> None:
        """Let the next owner begin at once; errors are ignored, silence does the same later."""
        if self._etag:
            self._document["released"] = True
            with suppress(Exception), self._lock:
                if not self.conditional:
                    self._read_back()  # never over the HEAD of somebody who took over
                self._put(self._etag)
            self._etag = ""

    def _put(self, etag: str | None) -> str:
        if failpoints.armed:
            failpoints.hit("snapshot.head")
        body = seal(self._document)
        if etag is None:
            return self._objects.put(HEAD, body, if_absent=True)
        if not self.conditional:
            return self._objects.put(HEAD, body)
        return self._objects.put(HEAD, body, if_match=etag)

    def _read_back(self) -> None:
        found = self._objects.get(HEAD)
        if found is None:
            raise Fenced("HEAD disappeared")
        document = unseal(HEAD, found.data)
        if document.get("token") != self._token:
            owner = document.get("owner", {})
            raise Fenced(f"process {owner.get('pid')} on {owner.get('host')} took over")
        self._etag = found.etag


def _newest(inventory: Inventory, branch: Branch) -> int:
    """Return the largest transaction of an epoch, whole or not."""
    found = [branch.fork]
    for text in inventory.sizes:
        key = SegmentKey.parse(text)
        if key is not None and key.epoch == branch.epoch:
            found.append(key.txid_max)
    found += [txid for txid, _ in inventory.snapshots(branch)]
    return max(found)


def _owner() -> dict[str, Any]:
    """Return what tells this process from all others."""
    return {
        "host": platform.node(),
        "boot": _text("/proc/sys/kernel/random/boot_id"),
        "namespace": _link("/proc/self/ns/pid"),
        "pid": os.getpid(),
        "start": _start_of(os.getpid()),
    }


def _is_dead(owner: dict[str, Any]) -> bool:
    """Tell whether an owner was a process of this machine that is gone; False where unknown."""
    mine = _owner()
    if not mine["boot"] or not mine["namespace"]:
        return False
    if (owner.get("boot"), owner.get("namespace")) != (mine["boot"], mine["namespace"]):
        return False
    return _start_of(int(owner.get("pid", 0))) != owner.get("start")


def _start_of(pid: int) -> int:
    """Return when a process started, in ticks since boot; 0 where there is none."""
    text = _text(f"/proc/{pid}/stat")
    fields = text.rpartition(")")[2].split()
    if len(fields) < 20 or fields[0] in {"Z", "X"}:
        return 0
    return int(fields[19])


def _text(path: str) -> str:
    with suppress(OSError):
        return Path(path).read_text().strip()
    return ""


def _link(path: str) -> str:
    with suppress(OSError):
        return str(Path(path).readlink())
    return ""
