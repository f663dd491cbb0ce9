"""How far an engine has come with one peer: a small file, replaced whole."""

from __future__ import annotations

from pathlib import Path

import msgspec

from sync_engine.errors import CorruptData
from sync_engine.sources.change_stream.cursor_file import replace_file

__all__ = ["Standing", "StandingFile"]


class Standing(msgspec.Struct, frozen=True, forbid_unknown_fields=False):
    """What has to be known of a peer after a restart.

    Attributes:
        joined: Whether everything that the peer had was taken once. From then on, what is old and
            not here may have been deleted here.
        gap: Why the feed may have told too little, until a comparison has made that good; else
            empty.
        compared_at_ms: Wall-clock milliseconds at which the last complete comparison began.
    """

    joined: bool = False
    gap: str = ""
    compared_at_ms: int = 0


class StandingFile:
    """Holds a `Standing`, durably.

    Thread-safety: `now` from any thread; all else under the lock of the caller.

    Args:
        path: The file; its directory is there.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.now = self._load()

    def _load(self) -> Standing:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Standing)
        except FileNotFoundError:
            return Standing()
        except msgspec.DecodeError as exc:
            hint = 'it is damaged; write {"joined":true} into it, and the engine compares anew'
            raise CorruptData(str(self._path), hint) from exc

    def save(self, standing: Standing) -> None:
        """Replace what is known; returns once that is safe from power loss.

        Raises:
            StoreUnavailable: The disk does not take it; the old one stays.
        """
        if standing == self.now:
            return
        replace_file(self._path, msgspec.json.encode(standing))
        self.now = standing
