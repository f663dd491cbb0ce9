"""What dead processes acknowledged and did not deliver goes into our own log."""

from __future__ import annotations

from sync_engine.ports import Runtime
from sync_engine.telemetry import get_logger
from sync_engine.wal.log import WriteAheadLog
from sync_engine.wal.owner import orphans
from sync_engine.wal.records import LogListener

__all__ = ["adopt_orphans"]

_log = get_logger("wal.adoption")
_PART_ITEMS = 1000
_PART_BYTES = 8 << 20


def adopt_orphans(log: WriteAheadLog, runtime: Runtime, *, archive: str) -> None:
    """Take over the logs in the directory whose owners are dead, dead letters included.

    A file goes only once what it held is synced here: a crash between repeats, and versions make
    the repetition harmless.

    Raises:
        CorruptData: A file is damaged; it stays as it is.

    Blocking: disk, as long as the orphans are.
    """
    for path, lock in orphans(log.path):
        try:
            orphan = WriteAheadLog(path, runtime, LogListener(), archive=archive)
            count = _adopt(log, orphan)
            log.sync(log.written)
            orphan.close(remove=True)
            _log.warning("orphan_adopted", path=path, changes=count)
        finally:
            lock.release()


def _adopt(log: WriteAheadLog, orphan: WriteAheadLog) -> int:
    count = 0
    position = min(orphan.followers.values(), default=0)
    while position < orphan.head():
        part = orphan.read(position, _PART_ITEMS, _PART_BYTES)
        changes = [change for change in part.changes if change is not None]
        if changes:
            log.adopt(changes)
            count += len(changes)
        position = part.last
    for letter in orphan.dead.list():
        log.adopt([letter.change])
    return count
