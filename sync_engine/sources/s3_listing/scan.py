"""One scan of a bucket, a page at a time: ranges side by side, then what is gone, then the end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from sync_engine.errors import StoreUnavailable
from sync_engine.ports import Runtime
from sync_engine.s3.address import S3Address
from sync_engine.s3.client import S3Client
from sync_engine.s3.listing import Row
from sync_engine.sources.s3_listing.changes import KeyFilter, TooManyDeletions
from sync_engine.sources.s3_listing.records import PartState, Rules, rows_of_versions
from sync_engine.sources.s3_listing.state import ListingState
from sync_engine.telemetry import get_logger

__all__ = ["Limits", "Page", "Scan"]

_log = get_logger("sources.s3_listing")
_SAMPLE: Final = 32
_FOLDERS_MAX: Final = 3
_PARTS_A_WORKER: Final = 4
_HALF_FROM: Final = 100


@dataclass(frozen=True, slots=True)
class Limits:
    """How a scan works, and what it may report.

    Attributes:
        workers: Requests at a time, 1 to 8.
        max_delete: Deletions that a scan may report; None is: not more than half of what is known,
            unless that is at most 100 keys.
        force_delete: Report any number.
        versions: List versions in place of objects.
    """

    workers: int = 1
    max_delete: int | None = None
    force_delete: bool = False
    versions: bool = False

    def refuses(self, missing: int, known: int) -> str:
        """Return why so many deletions are not believed; empty where they are."""
        if self.force_delete:
            return ""
        if self.max_delete is not None:
            return f"more than max_delete = {self.max_delete:,}" * (missing > self.max_delete)
        return "more than half" * (missing > _HALF_FROM and missing * 2 > known)


@dataclass(frozen=True, slots=True)
class Page:
    """One page as the scan needs it.

    Attributes:
        rows: Its objects, before filters.
        end: Last key it speaks of; None where it is the last page.
        token: How to go on; None is by `end`.
        markers: Delete markers by key.
    """

    rows: Sequence[Row]
    end: str | None
    token: str | None = None
    markers: Mapping[str, str] = field(default_factory=dict)


class Scan:
    """Advances the scan that the state holds, and begins it. One thread at a time.

    Args:
        client: The S3.
        address: Bucket and prefix.
        state: The file.
        runtime: Clock and threads.
        rules: When objects are the same.
        keep: Which keys are looked at.
        limits: How to work.
    """

    def __init__(
        self,
        client: S3Client,
        address: S3Address,
        state: ListingState,
        runtime: Runtime,
        rules: Rules,
        keep: KeyFilter,
        limits: Limits,
    ) -> None:
        self._client = client
        self._address = address
        self._state = state
        self._runtime = runtime
        self._rules = rules
        self._keep = keep
        self._limits = limits
        self._parts: dict[int, PartState] = {}
        self._waiting: dict[int, Future[Page]] = {}
        self._tokens: dict[int, str | None] = {}
        self._versions: Iterator[Page] | None = None
        self._spool_token: str | None = None
        self._spooling = False
        self._refused: TooManyDeletions | None = None
        self._loaded = False

    def use(self, rules: Rules) -> None:
        """Go by other rules from the next scan on."""
        self._rules = rules

    def look(self, keys: Iterable[str]) -> int:
        """Ask for single keys and take what is found; return how many were news."""
        self._forget_pages()  # they were asked for before, and would take back what is learned now
        found: dict[str, Row | None] = {}
        for key in keys:
            page = self._client.list_page(self._address.bucket, key, max_keys=1)
            there = bool(page.rows) and page.rows[0][0] == key
            found[key] = page.rows[0] if there else None
        return self._state.take(found, self._rules)

    def step(self) -> bool:
        """Do one bounded piece of work: a page, or a part of the end. Return whether it is done.

        Raises:
            TooManyDeletions: The scan has ended, and more is gone than allowed.
            StoreUnavailable: Try again: it goes on where it was.
        """
        try:
            return self._step()
        except BaseException:
            self.drop_requests()
            raise

    def _step(self) -> bool:
        state = self._state
        phase = state.scan.phase
        if phase == "idle":
            state.begin(self._runtime.clock.now_ms(), self._bounds())
        elif phase == "spooling":
            self._spool()
        elif phase == "releasing":
            return self._drain()
        else:
            self._advance(from_spool=phase == "merging")
        return False

    def drop_requests(self) -> None:
        """Let go of all that is under way; the scan goes on from what the state holds."""
        self._forget_pages()
        self._tokens.clear()
        self._parts.clear()
        self._versions = None
        self._loaded = False
        self._spooling = False

    def _forget_pages(self) -> None:
        for future in self._waiting.values():
            future.cancel()
        self._waiting.clear()

    # -- ranges -----------------------------------------------------------------------------------

    def _bounds(self) -> list[str]:
        limits = self._limits
        if limits.workers == 1 or limits.versions:
            return []
        parts = limits.workers * _PARTS_A_WORKER
        known = self._state.bounds(parts)
        return known or self._folders(parts)

    def _folders(self, parts: int) -> list[str]:
        """Cut an unknown bucket at its folders, a few levels deep."""
        bucket, prefix = self._address.bucket, self._address.prefix
        for _ in range(_FOLDERS_MAX):
            page = self._client.list_page(bucket, prefix, delimiter="/")
            found = [p for p in page.prefixes if p > prefix]
            if len(found) != 1 or page.rows:
                break
            prefix = found[0]
        else:
            found = []
        found.sort()
        count = min(parts, len(found))
        return [found[len(found) * n // count] for n in range(1, count)] if count > 1 else []

    def _advance(self, *, from_spool: bool) -> None:
        if not self._loaded:
            self._parts = {part.id: part for part in self._state.parts()}
            self._loaded = True
        if not self._parts:
            self._loaded = False
            self._finish()
        elif from_spool:
            part = next(iter(self._parts.values()))
            self._take(part, self._from_spool(part.at), ordered=True)
        elif self._limits.versions:
            part = next(iter(self._parts.values()))
            self._take(part, self._next_versions(part.at))
        elif self._limits.workers == 1:
            part = next(iter(self._parts.values()))
            self._take(part, self._fetch(part.at, self._tokens.get(part.id)))
        else:
            self._advance_many()

    def _advance_many(self) -> None:
        executor = self._runtime.executor()
        for part in islice(self._parts.values(), self._limits.workers):
            if part.id not in self._waiting:
                token = self._tokens.get(part.id)
                self._waiting[part.id] = executor.submit(self._fetch, part.at, token)
        done, _ = wait(self._waiting.values(), return_when=FIRST_COMPLETED)
        for id in [id for id, future in self._waiting.items() if future in done]:
            page, part = self._waiting.pop(id).result(), self._parts[id]
            if page.end is not None and (part.high is None or page.end < part.high):
                # The next page is on its way while this one is compared.
                self._waiting[id] = executor.submit(self._fetch, page.end, page.token)
            self._take(part, page)
            if self._state.scan.phase != "listing":
                return

    def _fetch(self, after: str, token: str | None) -> Page:
        bucket, prefix = self._address.bucket, self._address.prefix
        while True:
            page = self._client.list_page(bucket, prefix, start_after=after or None, token=token)
            rows = self._texts(page.rows)
            if not page.truncated:
                return Page(rows, None)
            if rows:
                return Page(rows, rows[-1][0], page.token)
            if page.token is None:
                raise StoreUnavailable("s3", "list", "the listing does not say how to go on")
            token = page.token

    def _texts(self, rows: Sequence[Row]) -> Sequence[Row]:
        """Leave out keys that are no UTF-8: neither can they be asked for, nor be stored."""
        if _is_text("".join([row[0] for row in rows])):
            return rows
        kept = [row for row in rows if _is_text(row[0])]
        _log.limited(
            "s3_keys_left_out", bucket=self._address.bucket, keys=len(rows) - len(kept),
            reason="they are no UTF-8",
        )  # fmt: skip
        return kept

    def _take(self, part: PartState, page: Page, *, ordered: bool = False) -> None:
        rows, end = page.rows, page.end
        if not ordered and not _ascends(rows, part.at):
            _log.warning("s3_listing_unordered", bucket=self._address.bucket)
            self.drop_requests()
            self._state.begin_spool()
            return
        if part.high is not None and rows and rows[-1][0] >= part.high:
            rows, end = [row for row in rows if row[0] <= part.high], None
        if self._keep:
            rows = [row for row in rows if self._keep(row[0])]
        before = self._state.counts.listed
        self._state.merge(part, rows, end, self._rules, page.markers)
        self._tokens[part.id] = page.token
        if end is None:
            del self._parts[part.id], self._tokens[part.id]  # the next scan has parts of these ids
            late = self._waiting.pop(part.id, None)
            if late is not None:
                late.cancel()
        _tell(self._address, before, self._state.counts.listed)

    # -- versions ---------------------------------------------------------------------------------

    def _next_versions(self, after: str) -> Page:
        if self._versions is None:
            self._versions = self._pages_of_versions(after)
        page = next(self._versions)
        if page.end is None:
            self._versions = None
        return page

    def _pages_of_versions(self, after: str) -> Iterator[Page]:
        address, held = self._address, None
        pages = self._client.list_versions(address.bucket, address.prefix, start_after=after)
        for found in pages:
            if held is not None:
                yield held
            rows = self._texts(rows_of_versions(found))
            markers = {v["key"]: v["version"] for v in found if v["latest"] and v["deleted"]}
            last = found[-1]["key"] if found else after
            held = Page(rows, last, None, markers)
        yield Page(held.rows, None, None, held.markers) if held is not None else Page((), None)

    # -- listings without order -------------------------------------------------------------------

    def _spool(self) -> None:
        if not self._spooling:
            self._state.begin_spool()
            self._spooling, self._spool_token = True, None
        address = self._address
        page = self._client.list_page(address.bucket, address.prefix, token=self._spool_token)
        if page.truncated and page.token is None:
            raise StoreUnavailable("s3", "list", "the listing has no order and no token to go on")
        rows = [row for row in self._texts(page.rows) if not self._keep or self._keep(row[0])]
        self._state.spool(rows, last=not page.truncated)
        self._spool_token = page.token
        self._spooling = page.truncated

    def _from_spool(self, after: str) -> Page:
        rows = self._state.spooled(after, 1000)
        return Page(rows, rows[-1][0] if len(rows) == 1000 else None)

    # -- the end ----------------------------------------------------------------------------------

    def _finish(self) -> None:
        state = self._state
        self._confirm()
        if self._rules.renames:
            state.pair()
        missing = state.missing
        why = self._limits.refuses(missing, state.scan.known)
        if why:
            self._refused = TooManyDeletions(missing, state.scan.known, why)
            state.forget_missing()
        state.release(tells=self._rules.tells)

    def _confirm(self) -> None:
        """Ask again for some of what is gone: a listing that ended too early must not delete."""
        for key in self._state.missed(_SAMPLE):
            page = self._client.list_page(self._address.bucket, key, max_keys=1)
            if not page.rows or page.rows[0][0] != key:
                continue
            stored = self._state.stored_one(key)
            now = page.rows[0]
            if stored is not None and stored[1].partition(";")[0] == now[1] and stored[2] == now[2]:
                self._state.abandon()
                hint = f"the listing left out {key!r}, which is there: nothing was deleted"
                raise StoreUnavailable("s3", "list", hint)

    def _drain(self) -> bool:
        state = self._state
        if state.drain(tells=self._rules.tells):
            return False
        state.end(self._runtime.clock.now_ms())
        refused, self._refused = self._refused, None
        if refused is not None:
            raise refused
        return True


def _ascends(rows: Sequence[Row], after: str) -> bool:
    if not rows:
        return True
    keys = [row[0] for row in rows]
    return keys[0] > after and keys == sorted(set(keys))


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _tell(address: S3Address, before: int, now: int) -> None:
    if before // 10_000 != now // 10_000:
        _log.info("s3_listing_progress", bucket=address.bucket, keys=now)
