"""Engine numbers: the low bits of versions, each of them one log's alone.

Versions of two engines are never equal as long as their numbers differ. The claim outlives the
engine's registration as a writer: a log issues versions while its archive is away, too. There are
as many numbers as `core.version` has room for; one is given to another log only when all are held,
and then that of the log that renewed its claim the longest ago, counted in visits to the archive.
"""

from __future__ import annotations

from sync_engine.core.version import free_number
from sync_engine.stores.sql.dialect import Connection, Dialect

__all__ = ["claim"]

_OF_LOG = "SELECT number FROM {n} WHERE log = ?k"
_HELD = "SELECT number FROM {n} ORDER BY seen, number"
_GIVE_UP = "DELETE FROM {n} WHERE number = ?"
_CLAIM = "INSERT INTO {n} (number, log, seen) VALUES (?, ?k, 0)"
_RENEW = "UPDATE {n} SET seen = (SELECT visits FROM {m} WHERE id = 1) WHERE log = ?k"


def claim(dialect: Dialect, connection: Connection, log: str, wanted: int) -> int:
    """Return the number of a log, and renew its claim; see `ports.ArchiveStore.claim_number`.

    Args:
        dialect: The archive.
        connection: In a transaction that counted a visit, so that no one else chooses meanwhile.
        log: Identity of the log.
        wanted: What a log without a number is given if it is free.
    """
    key = log.encode()
    known = dialect.query(connection, _OF_LOG, (key,))
    if known:
        number = int(known[0][0])
    else:
        held = [int(row[0]) for row in dialect.query(connection, _HELD)]
        number = free_number(wanted, held)
        dialect.execute(connection, _GIVE_UP, (number,))
        dialect.execute(connection, _CLAIM, (number, key))
    dialect.execute(connection, _RENEW, (key,))
    return number
