"""What is wrong with settings, all of it at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sync_engine.config.urls import sqlite_file
from sync_engine.config.values import Kind, Unusable
from sync_engine.errors import ConfigError

__all__ = ["Field", "check", "refuse"]

Field = tuple[str, Kind, Any]
"""A setting's name, kind and default."""

_DELAYS = (
    ("read_delay_s_min", "read_delay_s_max"),
    ("delivery_delay_s_min", "delivery_delay_s_max"),
)
_BOUNDS = (  # whoever lowers the second need not lower the default of the first
    ("l2_batch_items_max", "pending_items_max"),
    ("l3_batch_items_max", "pending_items_max"),
    ("l2_batch_bytes_max", "pending_bytes_max"),
    ("l3_batch_bytes_max", "pending_bytes_max"),
    ("max_payload_bytes", "pending_bytes_max"),
    ("max_payload_bytes", "log_bytes_max"),
)


def check(
    written: Mapping[str, object], fields: list[Field], sources: Mapping[str, str]
) -> tuple[dict[str, Any], list[str]]:
    """Return the value of every setting that was written, and what is wrong, as sentences."""
    values: dict[str, Any] = {}
    errors: list[str] = []
    for name, kind, _ in fields:
        if name in written:
            try:
                values[name] = kind.parse(written[name])
            except Unusable as exc:
                source = f" ({sources[name]})" if name in sources else ""
                errors.append(f"{name}{source}: {exc}")
    defaults = {name: default for name, _, default in fields}
    usable = {name: default for name, default in defaults.items() if name not in written} | values
    pairs = [(low, high) for low, high in _BOUNDS if usable.get(low) != defaults[low]]
    errors += _contradictions(usable, [*_DELAYS, *pairs])
    return values, errors


def refuse(errors: list[str]) -> None:
    """Raise all errors as one.

    Raises:
        ConfigError: There is at least one.
    """
    if len(errors) > 1:
        raise ConfigError("\n".join([f"{len(errors)} settings cannot be used:", *errors]))
    if errors:
        raise ConfigError(errors[0])


def _contradictions(values: Mapping[str, Any], pairs: list[tuple[str, str]]) -> Iterator[str]:
    for low, high in pairs:
        if low in values and high in values and values[low] > values[high]:
            yield f"{low}: must not be above {high}"
    if values.get("merkle_mirror"):
        if values.get("redis_url", "") is None:
            yield "merkle_mirror: the mirror lies in Redis: set redis_url"
        if not values.get("merkle", True):
            yield "merkle_mirror: there is no tree to mirror: set merkle = true"
    archive = sqlite_file(values.get("sql_url") or "")
    if archive and {"data_dir", "engine_name"} <= values.keys():
        log = values["data_dir"].absolute() / f"{values['engine_name']}.log."
        if str(Path(archive).absolute()).startswith(str(log)):
            yield "sql_url: names the file of the log; give the archive another name"
