"""Keys of objects, made from a template."""

from __future__ import annotations

import datetime as dt
import string
from collections.abc import Mapping
from typing import Final

from sync_engine.errors import ConfigError, StoreRejected
from sync_engine.s3 import S3Address

__all__ = ["FIELDS", "KeyTemplate"]

FIELDS: Final = (
    "path", "root", "dir", "name", "stem", "suffix", "date", "year", "month", "day", "hour",
)  # fmt: skip
_KEY_BYTES_MAX: Final = 1024


class KeyTemplate:
    """Makes the key of an object from the path of a file or the id of an item.

    Fields: ``{path}`` all of it; ``{root}`` the last part of the watched directory; ``{dir}``,
    ``{name}``, ``{stem}``, ``{suffix}`` its parts; ``{date}`` (2026-01-31), ``{year}``,
    ``{month}``, ``{day}``, ``{hour}`` of its time, in UTC. ``{{`` is a brace.

    Args:
        address: Bucket and prefix; a prefix is put in front, with a ``/`` between.
        template: The template.

    Raises:
        ConfigError: An unknown field, or none that tells paths apart.
    """

    def __init__(self, address: S3Address, template: str = "{path}") -> None:
        self.address = address
        self.template = template
        try:
            parts = list(string.Formatter().parse(template))
        except ValueError as exc:
            raise ConfigError(f"key template {template!r}: {exc}") from exc
        names = [name for _, name, _, _ in parts if name is not None]
        for _, name, spec, conversion in parts:
            if name is not None and (name not in FIELDS or spec or conversion):
                raise ConfigError(
                    f"key template {template!r}: there is no field {name!r}: {', '.join(FIELDS)}"
                )
        if "path" not in names and "name" not in names and "stem" not in names:
            raise ConfigError(f"key template {template!r} needs {{path}} or {{name}}")
        self._dated = any(name in ("date", "year", "month", "day", "hour") for name in names)
        self._plain = template == "{path}"
        prefix = address.prefix
        self._prefix = prefix + "/" if prefix and not prefix.endswith("/") else prefix

    @property
    def prefix(self) -> str:
        """What every key begins with."""
        return self._prefix

    def key(self, path: str, *, root: str = "", time_ms: int = 0) -> str:
        """Return the key of a path.

        Args:
            path: With ``/`` between its parts.
            root: Value of ``{root}``.
            time_ms: Wall-clock milliseconds, for the fields of time.

        Raises:
            StoreRejected: The key would be empty or longer than 1,024 bytes.
        """
        key = self._prefix + (path if self._plain else self._filled(path, root, time_ms))
        if not key or len(key.encode()) > _KEY_BYTES_MAX:
            raise StoreRejected(
                "s3", "key", f"the key of {path[:80]!r} is empty or longer than 1,024 bytes"
            )
        return key

    def _filled(self, path: str, root: str, time_ms: int) -> str:
        directory, _, name = path.rpartition("/")
        stem, dot, suffix = name.rpartition(".")
        fields = {
            "path": path,
            "root": root,
            "dir": directory,
            "name": name,
            "stem": stem if dot else name,
            "suffix": dot + suffix if dot else "",
        }
        if self._dated:
            fields |= _times(time_ms)
        return self.template.format_map(fields).lstrip("/")


def _times(time_ms: int) -> Mapping[str, str]:
    try:
        at = dt.datetime.fromtimestamp(time_ms / 1000, dt.UTC)
    except (OverflowError, ValueError, OSError):
        at = dt.datetime.fromtimestamp(0, dt.UTC)
    return {
        "date": f"{at:%Y-%m-%d}",
        "year": f"{at:%Y}",
        "month": f"{at:%m}",
        "day": f"{at:%d}",
        "hour": f"{at:%H}",
    }
