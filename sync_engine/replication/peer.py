"""A peer: where another engine's feed and archive are, and how to pull from them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sync_engine.errors import ConfigError

__all__ = ["Peer"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_\-]{0,47}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One engine, or group of engines on one archive, to pull from.

    Attributes:
        name: 1 to 48 letters, digits, - or _; names its files and metrics.
        redis_url: Where its feed is (sink ``redis_stream``); None pulls by comparison alone.
        sql_url: Where its archive is; None pulls by the feed alone, and cannot mend a gap in it.
            A user that may only read is enough.
        redis_prefix: As the feed's sink has it.
        stream: As the feed's sink has it.
        prefixes: Ids to pull; the empty prefix is all.
        interval_s: Seconds from one comparison of the archives to the next.
        jitter: Share of the interval that is left to chance, 0 to 1.
        items_per_s: Bound on items pulled, on average, by each path; 0 is none.
        bytes_per_s: Bound on bytes pulled, on average, by each path; 0 is none.
        accept_old: Take items that are older than our ``tombstone_retention_s`` and not here. They
            may have been deleted here, and forgotten; see `Sieve`.

    Raises:
        ConfigError: A value cannot be used.
    """

    name: str
    redis_url: str | None = None
    sql_url: str | None = None
    redis_prefix: str = "se"
    stream: str = "changes"
    prefixes: tuple[str, ...] = ("",)
    interval_s: float = 60.0
    jitter: float = 0.2
    items_per_s: float = 0.0
    bytes_per_s: float = 0.0
    accept_old: bool = False

    def __post_init__(self) -> None:
        where = f"peer {self.name}"
        if not _NAME.fullmatch(self.name):
            raise ConfigError(f"{where}: a name has 1 to 48 letters, digits, - or _")
        if self.redis_url is None and self.sql_url is None:
            raise ConfigError(f"{where}: redis_url or sql_url is missing; both are best")
        if not self.interval_s > 0:
            raise ConfigError(f"{where}: interval_s must be above 0, got {self.interval_s!r}")
        if not 0 <= self.jitter <= 1:
            raise ConfigError(f"{where}: jitter must be 0 to 1, got {self.jitter!r}")
        for name in ("items_per_s", "bytes_per_s"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{where}: {name} must be 0 or more")

    def __repr__(self) -> str:
        return f"Peer({self.name!r})"  # URLs hold passwords

    def wants(self, id: str) -> bool:
        """Tell whether an id is to be pulled."""
        return id.startswith(self.prefixes)
