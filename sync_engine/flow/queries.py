"""Queries by prefix and state: what is archived, merged with what is still pending."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence

from sync_engine.core.item import Change, Route
from sync_engine.flow.reader import Reader
from sync_engine.flow.tier import Tier
from sync_engine.ports import ArchiveStore

__all__ = ["Queries"]

_PAGE = 1000
_TRIES = 5
_KEYS_PAGE = 5000
_L3 = int(Route.L3)  # a plain number: flags are slow on hot paths


def _key(change_id: str) -> bytes:
    return change_id.encode()


class Queries:
    """Lists and counts items.

    A page of the archive is merged with the pending changes of the same range, which win. Items
    that are kept in the cache tiers only are not listed.

    Thread-safety: all methods. Blocking: one archive query a page.
    """

    def __init__(
        self,
        pending_ids: Callable[[], Iterable[str]],
        pending: Callable[[str], Change | None],
        reader: Reader,
        l3: Tier[ArchiveStore],
        now_ms: Callable[[], int],
    ) -> None:
        self._pending_ids = pending_ids
        self._pending = pending
        self._reader = reader
        self._l3 = l3
        self._now_ms = now_ms

    def _live(self, change: Change | None, state: str | None) -> bool:
        return (
            change is not None
            and change.content is not None
            and bool(change.routes & _L3)
            and not change.expired(self._now_ms())
            and (state is None or change.state == state)
        )

    def scan(
        self,
        *,
        prefix: str = "",
        state: str | None = None,
        after: str | None = None,
        keys_only: bool = False,
    ) -> Iterator[Change]:
        """Yield live items in bytewise id order, ids strictly greater than `after`.

        What was acknowledged before the call and not changed since is seen exactly once; what is
        written meanwhile may or may not be. With `keys_only` the archive sends no contents, and
        those of the changes mean nothing.

        Raises:
            StoreUnavailable: The archive cannot be asked.
        """
        # Ids by themselves: how each one stands is looked up when its page comes.
        pending = sorted(
            (change_id for change_id in self._pending_ids() if change_id.startswith(prefix)),
            key=_key,
        )
        limit = _KEYS_PAGE if keys_only else _PAGE
        start = 0 if after is None else bisect_right(pending, _key(after), key=_key)
        while True:
            page = self._l3.call_with_retry(
                "scan",
                self._l3.store.scan,
                after=after,
                prefix=prefix,
                state=state,
                limit=limit,
                keys_only=keys_only,
            )
            last = page[-1].id if len(page) == limit else None
            end = len(pending) if last is None else bisect_right(pending, _key(last), key=_key)
            yield from self._merge(page, pending[start:end], state)
            if last is None:
                return
            after, start = last, end

    def _merge(
        self, page: Sequence[Change], pending: Sequence[str], state: str | None
    ) -> Iterator[Change]:
        by_id = {change.id: change for change in page}
        resolved = self._reader.get_many(pending) if pending else {}
        for change_id in pending:
            change = resolved.get(change_id)
            if change is not None and self._live(change, state):
                by_id[change_id] = change
            else:
                by_id.pop(change_id, None)
        for change_id in sorted(by_id, key=_key):
            change = by_id[change_id]
            # Not in the list, yet newer than its row: written after the scan began.
            newer = self._pending(change_id)
            if newer is not None and newer.version > change.version:
                change = newer
            if self._live(change, state):
                yield change

    def count(self, *, prefix: str = "", state: str | None = None) -> int:
        """Count live items; pending ones are looked up one by one, the rest by the server.

        The server's number and the rows of what is pending have to be of one moment: where a
        delivery came in between that is tried again, and in the end every item is listed.

        Raises:
            StoreUnavailable: The archive cannot be asked.
        """
        for _ in range(_TRIES):
            pending = [one for one in self._pending_ids() if one.startswith(prefix)]
            before = self._archived(pending, state)
            total: int = self._l3.call_with_retry(
                "count", self._l3.store.count, prefix=prefix, state=state
            )
            if self._archived(pending, state) == before:
                break
        else:
            return sum(1 for _ in self.scan(prefix=prefix, state=state, keys_only=True))
        for start in range(0, len(pending), _PAGE):
            ids = pending[start : start + _PAGE]
            newest = self._reader.get_many(ids)
            for change_id in ids:
                total += self._live(newest.get(change_id), state)
        return total - sum(live for _, live in before.values())

    def _archived(self, ids: Sequence[str], state: str | None) -> dict[str, tuple[int, bool]]:
        """Return the versions that the archive has of ids, and whether it counts them."""
        found: dict[str, tuple[int, bool]] = {}
        for start in range(0, len(ids), _PAGE):
            rows = self._reader.archived(ids[start : start + _PAGE])
            found |= {one: (row.version, self._live(row, state)) for one, row in rows.items()}
        return found
