"""When a file counts as finished, and what is done about those that were taken: plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sync_engine.errors import ConfigError

__all__ = ["FindPolicy", "Mode"]


class Mode:
    """What is done about files that were taken before."""

    ADDED_ONLY: Final = "added-only"
    MIRROR: Final = "mirror"
    ALL: Final = (ADDED_ONLY, MIRROR)


@dataclass(frozen=True, slots=True, kw_only=True)
class FindPolicy:
    """When a file counts as finished, and how often everything is looked at.

    Attributes:
        mode: ``added-only``: a file is taken once; that it is changed or renamed later is ignored;
            only a new file under its name is taken again. ``mirror``: changes and deletions follow.
        quiet_s: Seconds without another close of a file before it is taken (0 or more).
        max_wait_s: Seconds after which a file that is closed again and again is taken all the same.
        settle_s: Seconds that a file found without a close event must stay as it is (0 or more).
        writer_wait_s: Seconds to wait for a process that has the file open for writing and does not
            change it.
        rescan_s: Seconds between scans (above 0).
        poll_s: Seconds between scans where nobody watches, or not everything (above 0).
        max_delete: Share of the files of a root that may vanish between two scans, 0 to 1; more,
            and more than 100, is taken for a fault and held back.

    Raises:
        ConfigError: A value is out of range.
    """

    mode: str = Mode.ADDED_ONLY
    quiet_s: float = 0.05
    max_wait_s: float = 1.0
    settle_s: float = 2.0
    writer_wait_s: float = 600.0
    rescan_s: float = 30.0
    poll_s: float = 2.0
    max_delete: float = 0.5

    def __post_init__(self) -> None:
        if self.mode not in Mode.ALL:
            raise ConfigError(f"mode must be one of {', '.join(Mode.ALL)}, got {self.mode!r}")
        for name in ("quiet_s", "max_wait_s", "settle_s", "writer_wait_s"):
            if not 0 <= getattr(self, name) < 1e6:
                raise ConfigError(f"{name} must be 0 or more seconds, got {getattr(self, name)!r}")
        for name in ("rescan_s", "poll_s"):
            if not 0 < getattr(self, name) < 1e6:
                raise ConfigError(f"{name} must be above 0 seconds, got {getattr(self, name)!r}")
        if not 0 <= self.max_delete <= 1:
            raise ConfigError(f"max_delete must be 0 to 1, got {self.max_delete!r}")
