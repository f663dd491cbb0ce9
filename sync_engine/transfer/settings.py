"""What becomes of files: plain values."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from sync_engine.core.policies import RetryConfig
from sync_engine.errors import ConfigError
from sync_engine.sources.file_watch import IGNORED, FindPolicy, Mode, Patterns

__all__ = ["After", "Overwrite", "TransferSettings", "roots_of", "template_of"]

_PART_MIN: Final = 5 << 20
_PART_MAX: Final = 5 << 30
_PARTS_MAX: Final = 10_000
_RETRY: Final = RetryConfig(attempts_max=10, delay_s_min=0.2, delay_s_max=30.0)


class After:
    """What is done with a local file once the server has it, whole."""

    KEEP: Final = "keep"
    DELETE: Final = "delete"
    MOVE: Final = "move"
    ALL: Final = (KEEP, DELETE, MOVE)


class Overwrite:
    """What is done where the key is taken by an object that is not ours."""

    REPLACE: Final = "replace"
    IF_ABSENT: Final = "if_absent"
    ERROR: Final = "error"
    VERSION_SUFFIX: Final = "version_suffix"
    ALL: Final = (REPLACE, IF_ABSENT, ERROR, VERSION_SUFFIX)


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferSettings:
    """How files are found, named, uploaded and cleaned up.

    Attributes:
        find: When a file is finished.
        include: Only files that match one of these patterns; empty is all.
        exclude: No files that match one of these.
        backend: Watcher: ``auto``, ``inotify``, ``watchdog`` or ``poll``.
        key_template: See `KeyTemplate`; None is ``{path}``, or ``{root}/{path}`` for several roots.
        overwrite: ``replace``; ``if_absent`` leaves the object, and the file, as they are;
            ``error`` parks the file; ``version_suffix`` takes the next free key ``key~1``,
            ``key~2`` ... An endpoint that does not honour conditional writes is refused with
            ``error``, and told of with the other two: two writers at one moment are not told apart.
        after: ``keep``, ``delete`` or ``move``. That a file was removed, and which object has its
            content, is remembered for thirty days: meanwhile no other file gets that key.
        move_to: Directory for ``move``; outside of what is watched.
        prune: Whether directories that cleaning up left empty are removed.
        concurrency: Uploads at a time, 1 to 256. Memory is at most this times the part size.
        part_bytes: Size of the parts of larger files, 5 MiB to 5 GiB; grows where 10,000 parts
            would not do. Files below this size are sent whole.
        storage_class: Such as ``STANDARD_IA``; None leaves it to the bucket.
        sse: ``AES256`` or ``aws:kms``; None leaves it to the bucket.
        sse_key_id: Key for ``aws:kms``.
        verify: ``head`` compares size and digest as the server tells them, and reads the object
            where it tells none; ``get`` always reads it.
        retry: Pauses after failed uploads; after `attempts_max` of them (0: never) a file is
            parked.
        parked_s: Seconds after which a parked file is tried again (above 0).
        abort_foreign: Whether uploads in parts below the prefix that another writer began are
            aborted once they are old. Those that this ledger began, and that no file needs any
            more, are aborted in any case.
        orphan_age_s: How old they must be for that, in seconds (0 or more).

    Raises:
        ConfigError: A value is out of range, or two do not go together.
    """

    find: FindPolicy = field(default_factory=FindPolicy)
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = IGNORED
    backend: str = "auto"
    key_template: str | None = None
    overwrite: str = Overwrite.REPLACE
    after: str = After.KEEP
    move_to: Path | None = None
    prune: bool = False
    concurrency: int = 4
    part_bytes: int = 8 << 20
    storage_class: str | None = None
    sse: str | None = None
    sse_key_id: str | None = None
    verify: str = "head"
    retry: RetryConfig = _RETRY
    parked_s: float = 900.0
    abort_foreign: bool = False
    orphan_age_s: float = 86_400.0

    def __post_init__(self) -> None:
        _one_of("overwrite", self.overwrite, Overwrite.ALL)
        _one_of("after", self.after, After.ALL)
        _one_of("verify", self.verify, ("head", "get"))
        if self.sse is not None:
            _one_of("sse", self.sse, ("AES256", "aws:kms", "aws:kms:dsse"))
        if self.sse_key_id is not None and not (self.sse or "").startswith("aws:kms"):
            raise ConfigError("sse_key_id needs sse = 'aws:kms'")
        if not 1 <= self.concurrency <= 256:
            raise ConfigError(f"concurrency must be 1 to 256, got {self.concurrency!r}")
        if not _PART_MIN <= self.part_bytes <= _PART_MAX:
            raise ConfigError(f"part_bytes must be 5 MiB to 5 GiB, got {self.part_bytes!r}")
        if not self.parked_s > 0:
            raise ConfigError(f"parked_s must be above 0 seconds, got {self.parked_s!r}")
        if math.isnan(self.orphan_age_s) or self.orphan_age_s < 0:
            raise ConfigError(f"orphan_age_s must be 0 or more seconds, got {self.orphan_age_s!r}")
        if (self.after == After.MOVE) != (self.move_to is not None):
            raise ConfigError("after = 'move' and move_to come together")
        if self.after != After.KEEP and self.find.mode == Mode.MIRROR:
            raise ConfigError(
                "mode mirror makes deletions follow: it does not go together with deleting or "
                "moving files after their upload; use mode added-only"
            )
        self.patterns()

    def patterns(self) -> Patterns:
        """Return the compiled patterns."""
        return Patterns(self.include, self.exclude)

    def part_size(self, size: int) -> int:
        """Return the size of the parts of a file, so that 10,000 are enough."""
        least = -(-size // _PARTS_MAX)
        return max(self.part_bytes, -(-least // (1 << 20)) << 20)


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


def roots_of(directories: list[Path], move_to: Path | None) -> list[bytes]:
    """Return the directories to watch: absolute, links resolved, those inside another left out.

    Raises:
        ConfigError: One is no directory, or `move_to` is inside of one.
    """
    found: list[bytes] = []
    for directory in directories:
        try:
            real = directory.resolve(strict=True)
        except OSError as exc:
            raise ConfigError(f"{directory}: cannot be watched: {exc.strerror}") from exc
        if not real.is_dir():
            raise ConfigError(f"{directory}: is no directory")
        found.append(os.fsencode(real))
    outer = [
        path for path in dict.fromkeys(found)
        if not any(path != other and _inside(path, other) for other in found)
    ]  # fmt: skip
    if move_to is not None:
        target = os.fsencode(move_to.resolve())
        for path in outer:
            if target == path or _inside(target, path):
                raise ConfigError(f"move_to {move_to} is inside a watched directory")
    return outer


def _inside(path: bytes, other: bytes) -> bool:
    return path.startswith(other.rstrip(b"/") + b"/")


def template_of(settings: TransferSettings, roots: int) -> str:
    """Return the key template that applies to a number of roots."""
    return settings.key_template or ("{path}" if roots == 1 else "{root}/{path}")
