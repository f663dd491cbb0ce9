"""One format for what clients did and saw, and one linear checker of what they were promised."""

from __future__ import annotations

import enum
import hashlib
import itertools
import math
import threading
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import msgspec

__all__ = [
    "Action",
    "Call",
    "Entry",
    "History",
    "Outcome",
    "Violation",
    "check",
    "make_payload",
    "read_payload",
]


class Action(enum.StrEnum):
    """What a client asked for."""

    PUT = "put"
    DELETE = "delete"
    GET = "get"


class Outcome(enum.StrEnum):
    """What a client was told."""

    OK = "ok"
    FAILED = "failed"  # surely not done
    UNKNOWN = "unknown"  # done, or not, or still to come


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One call of one client.

    Attributes:
        invoked: When it was called, in seconds of one monotonic clock.
        returned: When it returned; infinity where it never did.
        client: Who called: calls of one client do not overlap.
        action: What was asked for.
        id: The item.
        version: The version written or read; 0 is "absent" for a read, "not known" for a write.
        outcome: What came back.
        expected: The version that a compare-and-set named (0 is "absent"); None for other calls.
        site: Which engine was called.
    """

    invoked: float
    returned: float
    client: str
    action: Action
    id: str
    version: int
    outcome: Outcome
    expected: int | None = None
    site: str = ""


class Violation(msgspec.Struct, frozen=True):
    """A broken promise.

    Attributes:
        kind: Its name: ``lost``, ``resurrected``, ``stale``, ``went-back``, ``phantom``,
            ``failed-visible``, ``future``, ``twice`` (one version, two writes), ``lost-update``.
        id: The item.
        version: The version at fault.
        detail: What should have been.
    """

    kind: str
    id: str
    version: int
    detail: str


class Call:
    """A call under way; say how it ended with one of its methods."""

    def __init__(
        self,
        history: History,
        client: str,
        action: Action,
        id: str,
        expected: int | None,
        site: str,
    ) -> None:
        self._history = history
        self._fields = {
            "client": client, "action": action, "id": id, "expected": expected, "site": site,
        }  # fmt: skip
        self._invoked = history.now()

    def ok(self, version: int = 0) -> None:
        """It succeeded, with the version written or read (0: absent)."""
        self._end(version, Outcome.OK, self._history.now())

    def failed(self) -> None:
        """It was refused: nothing was done, nor will be."""
        self._end(0, Outcome.FAILED, self._history.now())

    def unknown(self, version: int = 0) -> None:
        """It may have been done."""
        self._end(version, Outcome.UNKNOWN, math.inf)

    def _end(self, version: int, outcome: Outcome, returned: float) -> None:
        self._history.entries.append(
            msgspec.convert(
                self._fields
                | {
                    "invoked": self._invoked,
                    "returned": returned,
                    "version": version,
                    "outcome": outcome,
                },
                Entry,
            )
        )


class History:
    """Collects entries from any number of threads.

    Args:
        now: The clock, in seconds; None counts calls instead: exact, and enough for one process.
            What a clock gives the same time is taken as simultaneous, which hides faults.
    """

    def __init__(self, now: Callable[[], float] | None = None) -> None:
        self.entries: list[Entry] = []
        self._ticks = itertools.count(1)
        self._lock = threading.Lock()
        self.now = now or self._tick

    def _tick(self) -> float:
        with self._lock:
            return float(next(self._ticks))

    def invoke(
        self,
        client: str,
        action: Action,
        id: str,
        *,
        expected: int | None = None,
        site: str = "",
    ) -> Call:
        """Note that a call begins; call this before the call itself."""
        return Call(self, client, action, id, expected, site)


def make_payload(id: str, number: int, size: int = 64) -> bytes:
    """Return bytes that only this id and number have, so that any mix-up shows.

    Args:
        id: The item.
        number: Of the write; 0 to 2^63 - 1.
        size: Bytes, at least 16.
    """
    seed = hashlib.blake2b(b"%d:" % number + id.encode(), digest_size=8).digest()
    head = number.to_bytes(8, "big") + seed
    return (head + seed * (max(0, size - 16) // 8 + 1))[: max(16, size)]


def read_payload(id: str, content: bytes) -> int:
    """Return the number of a payload.

    Raises:
        ValueError: It is not what `make_payload` gave for this id.
    """
    number = int.from_bytes(content[:8], "big")
    if len(content) < 16 or content != make_payload(id, number, len(content)):
        raise ValueError(f"the content of {id!r} is not its own: {content[:32]!r}")
    return number


def check(
    entries: Iterable[Entry],
    final: Mapping[str, int] | None = None,
    *,
    scope: Literal["all", "site"] = "all",
) -> list[Violation]:
    """Return every broken promise of a history; an empty list is what one hopes for.

    Versions are unique, so no search is needed. A read that finds nothing is explained by the
    newest delete that may have happened before it returned: the weakest reading, so that a correct
    system is never accused. Expiry by age is not modelled.

    Args:
        entries: The history, in any order.
        final: Versions of the live items after everything was recovered and delivered, without the
            deleted ones; None leaves the end unchecked.
        scope: Whose writes a read has to see: those that *all* clients had acknowledged before it
            began, or those acknowledged by the same site only (engines with caches of their own).

    Cost: O(n log n), about 5 µs an entry.
    """
    by_id: defaultdict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        by_id[entry.id].append(entry)
    violations: list[Violation] = []
    for id, calls in by_id.items():
        violations += _ItemCheck(id, calls, scope).run(final)
    for id, version in (final or {}).items():
        if id not in by_id:
            violations.append(Violation("phantom", id, version, "nobody wrote this id"))
    return violations


class _Peak:
    """The largest version among those whose time came before a moment."""

    def __init__(self, points: Iterable[tuple[float, int]]) -> None:
        ordered = sorted(points)
        self._times = [time for time, _ in ordered]
        self._peaks = list(itertools.accumulate((version for _, version in ordered), max))

    def before(self, moment: float, *, including: bool = False) -> int:
        find = bisect_right if including else bisect_left
        place = find(self._times, moment)
        return self._peaks[place - 1] if place else 0


class _ItemCheck:
    """The checks of one item."""

    def __init__(self, id: str, calls: list[Entry], scope: str) -> None:
        self.id = id
        self.scope = scope
        self.violations: list[Violation] = []
        writes = [call for call in calls if call.action is not Action.GET]
        self.reads = sorted(
            (c for c in calls if c.action is Action.GET and c.outcome is Outcome.OK),
            key=lambda read: read.returned,
        )
        self.acked = [call for call in writes if call.outcome is Outcome.OK]
        self.by_version: dict[int, Entry] = {}
        for write in writes:
            if write.version:
                if write.version in self.by_version:
                    self.blame("twice", write.version, "two writes were given this version")
                self.by_version[write.version] = write
        # Writes that may have happened under a version nobody was told.
        nameless = [w for w in writes if not w.version and w.outcome is Outcome.UNKNOWN]
        self.nameless_at = sorted(write.invoked for write in nameless)
        self.nameless_deletes_at = sorted(
            write.invoked for write in nameless if write.action is Action.DELETE
        )
        self.nameless_seen: set[int] = set()
        self.deletes = _Peak(
            (write.invoked, write.version)
            for write in writes
            if write.action is Action.DELETE and write.outcome is not Outcome.FAILED
        )

    def blame(self, kind: str, version: int, detail: str) -> None:
        self.violations.append(Violation(kind, self.id, version, detail))

    def run(self, final: Mapping[str, int] | None) -> list[Violation]:
        self.check_reads()
        self.check_chain()
        if final is not None:
            self.check_final(final.get(self.id, 0))
        return self.violations

    def seen(self, version: int, returned: float) -> float:
        """Return the version that a read stands for; absent is the newest possible delete."""
        if version:
            return version
        if bisect_right(self.nameless_deletes_at, returned):
            return math.inf
        return self.deletes.before(returned, including=True)

    def check_origin(self, version: int, returned: float) -> None:
        """A version that was seen was written, not in the future, and not refused."""
        write = self.by_version.get(version)
        if write is None:
            self.nameless_seen.add(version)
            if len(self.nameless_seen) > bisect_right(self.nameless_at, returned):
                self.blame("phantom", version, "nobody wrote this version")
        elif write.outcome is Outcome.FAILED:
            self.blame("failed-visible", version, "its write was refused")
        elif write.action is Action.DELETE:
            self.blame("phantom", version, "this version is a delete, and was read as an item")
        elif write.invoked > returned:
            self.blame("future", version, "read before its write began")

    def check_reads(self) -> None:
        for read in self.reads:
            if read.version:
                self.check_origin(read.version, read.returned)
        for sites in self.groups():
            acked = _Peak(
                (write.returned, write.version)
                for write in self.acked
                if sites is None or write.site == sites
            )
            reads = [read for read in self.reads if sites is None or read.site == sites]
            found = [(read, self.seen(read.version, read.returned)) for read in reads]
            finite = ((read.returned, int(v)) for read, v in found if not math.isinf(v))
            before = _Peak(finite)
            for read, version in found:
                if version < (newest := acked.before(read.invoked)):
                    self.blame(self.kind_of(newest, "stale"), read.version, self.should(newest))
                elif version < (newest := before.before(read.invoked)):
                    self.blame("went-back", read.version, f"{newest} had been read before")

    def groups(self) -> list[str | None]:
        if self.scope == "all":
            return [None]
        return sorted({read.site for read in self.reads})  # type: ignore[return-value]

    def kind_of(self, newest: int, otherwise: str) -> str:
        deleted = self.by_version[newest].action is Action.DELETE
        return "resurrected" if deleted else otherwise

    def should(self, newest: int) -> str:
        return f"{self.by_version[newest].action} {newest} had been acknowledged"

    def check_chain(self) -> None:
        """A compare-and-set follows the version it named: nothing acknowledged lies between."""
        newest: Entry | None = None
        for write in sorted(self.acked, key=lambda write: write.version):
            if write.expected is not None:
                previous = newest.version if newest is not None else 0
                absent = newest is None or newest.action is Action.DELETE
                if previous > write.expected and not (write.expected == 0 and absent):
                    self.blame(
                        "lost-update",
                        write.version,
                        f"expected {write.expected}, and overwrote {previous}",
                    )
            newest = write

    def check_final(self, version: int) -> None:
        newest = max((write.version for write in self.acked), default=0)
        if version:
            self.check_origin(version, math.inf)
        if self.seen(version, math.inf) < newest:
            self.blame(self.kind_of(newest, "lost"), version, self.should(newest))
