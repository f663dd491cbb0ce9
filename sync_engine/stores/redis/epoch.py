"""Key epochs: every key carries one, and moving to the next abandons all that came before.

The mark ``<prefix>:{<bucket>}:mark`` holds format, epoch and the identity of the server it was made
on. An engine that finds a server of another identity (restarted, failed over, loaded from an old
dump) replaces the mark by one with a new epoch; of several engines one succeeds, the others adopt
its mark. Every write checks the mark in the same script call, so nothing is written to a server
that was emptied or replaced meanwhile.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable
from typing import Any

from sync_engine.errors import ConfigError, StoreUnavailable
from sync_engine.stores.redis.errors import STORE
from sync_engine.stores.redis.scripts import AGREE

__all__ = ["FORMAT", "Marks", "identity_of"]

FORMAT = "1"


def identity_of(client: Any, *, cluster: bool) -> str:
    """Return what changes when the server becomes another one."""
    if not cluster:
        info = client.info("server")
        role = client.info("replication").get("role", "master")
        if role != "master":
            raise StoreUnavailable(STORE, "attach", "this server is a replica: use its master")
        return str(info.get("run_id", "unknown"))
    answers = client.info("server", target_nodes=client.PRIMARIES)
    if "run_id" in answers:  # a cluster of one answers without a node's name
        answers = {"": answers}
    ids = sorted(str(answer["run_id"]) for answer in answers.values())
    return hashlib.blake2b(" ".join(ids).encode(), digest_size=10).hexdigest()


class Marks:
    """The epoch marks, one a bucket; the first bucket's is the authority.

    Args:
        key: The mark's key in a bucket.
        buckets: How many there are.
    """

    def __init__(self, key: Callable[[int], bytes], buckets: int) -> None:
        self._key = key
        self._buckets = buckets

    def agree(self, client: Any, identity: str, *, anew: bool = False) -> tuple[bytes, str]:
        """Return the mark in force and its epoch, after making a new one where it is due.

        Args:
            client: The client.
            identity: Of the server, as it is now.
            anew: Move to a new epoch even if the identity is the old one.

        Raises:
            ConfigError: A newer version of this software keeps its data here.
        """
        first = self._key(0)
        old = client.get(first) or b""
        form, _, rest = old.decode(errors="replace").partition(" ")
        if old and form != FORMAT:
            raise ConfigError(
                f"redis_prefix: the keys have format {form[:20]!r}, this version knows {FORMAT}:"
                " upgrade, or choose another redis_prefix"
            )
        epoch, _, made_on = rest.partition(" ")
        mark = old
        if anew or not old or made_on != identity:
            mine = f"{FORMAT} {uuid.uuid4().hex[:12]} {identity}".encode()
            mark = client.eval(AGREE, 1, first, old, mine)
            epoch = mark.decode().split(" ")[1]
        for bucket in range(1, self._buckets):
            client.set(self._key(bucket), mark)
        return mark, epoch
