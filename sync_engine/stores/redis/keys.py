"""Names of keys, and epochs.

A value's key is ``<prefix>:{<bucket>}:<epoch>:<id>``: bucket is two hexadecimal digits by the hash
of the id, epoch sixteen. Braces make a bucket one slot of a cluster. The id comes last and byte for
byte; our own keys have the word ``mark`` in the epoch's place, which no epoch can be, so that no id
collides with them.

The mark ``<prefix>:{<bucket>}:mark`` holds ``<format> <epoch> <identity>``: identity is that of the
server that the epoch was begun on. A single server has one mark, in bucket 0, for all buckets; on a
cluster every bucket has its own, because no script reaches two slots. So a failover of one master
abandons the buckets it held, and no others.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from xxhash import xxh3_64_intdigest

from sync_engine.errors import ConfigError
from sync_engine.redis_link.errors import STORE, ForeignLayout

__all__ = ["BUCKETS", "FORMAT", "Epoch", "Layout", "bucket_of"]

BUCKETS = 64
FORMAT = b"1"
_PREFIX = re.compile(r"[A-Za-z0-9][A-Za-z0-9_:.\-]{0,63}")
_MARK = re.compile(rb"1 ([0-9a-f]{16}) (.*)", re.DOTALL)


def bucket_of(raw_id: bytes) -> int:
    """Return the bucket of an id."""
    return xxh3_64_intdigest(raw_id) & (BUCKETS - 1)


@dataclass(frozen=True, slots=True)
class Epoch:
    """What all engines on a prefix agreed upon, for one scope.

    Attributes:
        mark: The mark as it stands in Redis.
        mark_key: Where it stands.
        name: Sixteen hexadecimal digits.
        identity: Of the server that it was begun on.
        link: Number of the connection over which it was agreed.
        heads: What keys begin with, by bucket.
    """

    mark: bytes
    mark_key: bytes
    name: str
    identity: str
    link: int
    heads: Mapping[int, bytes]


class Layout:
    """Where keys lie.

    A *scope* is what shares one mark: a single bucket of a cluster, or everything.

    Args:
        prefix: Begins every key: 1 to 64 letters, digits, or any of ``_ : . -``.
        cluster: Whether every bucket is a scope of its own.

    Raises:
        ConfigError: The prefix cannot be used.
    """

    def __init__(self, prefix: str, *, cluster: bool) -> None:
        if not _PREFIX.fullmatch(prefix):
            raise ConfigError(
                "redis_prefix: 1 to 64 letters, digits, or any of _ : . - (not the first)"
            )
        self.cluster = cluster
        self.scopes: Sequence[int] = range(BUCKETS) if cluster else (0,)
        self.prefix = prefix.encode()

    def mark_key(self, scope: int) -> bytes:
        """Return the key of a scope's mark."""
        return b"%s:{%02x}:mark" % (self.prefix, scope)

    def new_mark(self, identity: str) -> bytes:
        """Return a mark of an epoch that never was."""
        return b"%s %s %s" % (FORMAT, secrets.token_hex(8).encode(), identity.encode())

    def epoch(self, scope: int, mark: bytes, link: int) -> Epoch:
        """Return the epoch that a mark tells of.

        Raises:
            ForeignLayout: The mark has another format.
        """
        found = _MARK.fullmatch(mark)
        if found is None:
            raise ForeignLayout(
                STORE,
                "attach",
                f"the key {self.mark_key(scope).decode()} says that the data of this redis_prefix"
                f" has format {mark[:10]!r}, this version knows {FORMAT!r}:"
                " upgrade, or choose another redis_prefix",
            )
        name = found[1]
        buckets = (scope,) if self.cluster else range(BUCKETS)
        heads = {bucket: b"%s:{%02x}:%s:" % (self.prefix, bucket, name) for bucket in buckets}
        identity = found[2].decode(errors="replace")
        return Epoch(mark, self.mark_key(scope), name.decode(), identity, link, heads)
