"""What a run would do now, without doing it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from sync_engine.sources.file_watch import Finder, Root, Row, State, text_of
from sync_engine.transfer.chooser import Chooser
from sync_engine.transfer.ledger import UploadLedger
from sync_engine.transfer.progress import Planned

__all__ = ["plan"]

_PAGE = 500


def plan(
    ledger: UploadLedger, finder: Finder, chooser: Chooser, roots: Sequence[Root]
) -> Iterator[Planned]:
    """Scan once, then yield what is to be done with each file; the ledger is a copy in memory."""
    while True:
        with ledger.step():
            finder.work()
        if finder.idle:
            break
    for root in roots:
        after: bytes | None = None
        while rows := ledger.page(root.number, after, _PAGE):
            after = rows[-1].path
            for row in rows:
                yield from _planned(ledger, chooser, root, row)


def _planned(ledger: UploadLedger, chooser: Chooser, root: Root, row: Row) -> Iterator[Planned]:
    path = os.fsdecode(root.path) + "/" + text_of(row.path)
    if row.state == State.GONE:
        yield Planned("delete", path, row.key or "", 0)
    elif row.state in (State.SEEN, State.STABLE, State.UPLOADING, State.PARKED):
        with ledger.step():
            named = chooser.named(root, row)
        if named is None:
            parked = ledger.row(row.root, row.path)
            yield Planned("park", path, "", row.size, "" if parked is None else parked.reason)
            return
        if row.key is None:
            with ledger.step():
                ledger.put([named])
        yield Planned("upload", path, named.key or "", row.size)
