"""How a state file and a bucket differ, told without changing either."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sync_engine.s3.listing import Row
from sync_engine.sources.s3_listing.changes import same_by
from sync_engine.sources.s3_listing.records import rows_of_versions
from sync_engine.sources.s3_listing.source import S3ListingSource

__all__ = ["Difference", "check"]

_PAGE = 1000


@dataclass(frozen=True, slots=True)
class Difference:
    """One key, compared.

    Attributes:
        sign: ``=`` the same, ``+`` only in the bucket, ``-`` only in the state, ``*`` another
            object, ``!`` could not be compared (the listing names it twice or out of order).
        key: The key.
    """

    sign: str
    key: str


def check(source: S3ListingSource) -> Iterator[Difference]:
    """Compare what a source remembers with what the bucket holds now, by key.

    Reads both once; changes neither the state nor what waits in it. Memory: two pages.

    Raises:
        StoreUnavailable: The S3 cannot be asked now.
    """
    same, stored = same_by(source.identity), _stored(source)
    old = next(stored, None)
    last = ""
    for row in _listed(source):
        if row[0] <= last:
            yield Difference("!", row[0])
            continue
        last = row[0]
        while old is not None and old[0] < row[0]:
            yield Difference("-", old[0])
            old = next(stored, None)
        if old is None or old[0] != row[0]:
            yield Difference("+", row[0])
            continue
        yield Difference("=" if same(old, row) else "*", row[0])
        old = next(stored, None)
    while old is not None:
        yield Difference("-", old[0])
        old = next(stored, None)


def _stored(source: S3ListingSource) -> Iterator[Row]:
    after = ""
    while rows := source.state.stored(after, _PAGE):
        yield from rows
        after = rows[-1][0]


def _listed(source: S3ListingSource) -> Iterator[Row]:
    for rows in _pages(source):
        for row in rows:
            if source.looks_at(row[0]):
                yield row


def _pages(source: S3ListingSource) -> Iterator[Sequence[Row]]:
    client, address = source.client, source.address
    if source.versions:
        return map(rows_of_versions, client.list_versions(address.bucket, address.prefix))
    return (page.rows for page in client.iter(address.bucket, address.prefix))
