"""Where settings come from: arguments, the environment, a TOML file."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["CONFIG_VARIABLE", "ENV_PREFIX", "Gathered", "gather", "nearest"]

ENV_PREFIX = "SYNC_ENGINE_"
CONFIG_VARIABLE = "SYNC_ENGINE_CONFIG"
_TABLES = (("sync_engine",), ("tool", "sync_engine"))


@dataclass(slots=True)
class Gathered:
    """What was found.

    Attributes:
        values: What was written, by setting.
        sources: Where it was written, by setting.
        errors: Everything that cannot be used, as sentences.
    """

    values: dict[str, object] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)

    def take(self, name: str, value: object, source: str) -> None:
        """Remember a setting; it replaces what was found before."""
        self.values[name] = value
        self.sources[name] = source


def gather(
    path: str | Path | None,
    env: Mapping[str, str],
    arguments: Mapping[str, object],
    *,
    names: Collection[str],
    secrets: Collection[str],
) -> Gathered:
    """Collect settings; arguments win over the environment, which wins over the file.

    Blocking: reads the file, and the files that ``…_FILE`` variables name.
    """
    found = Gathered()
    path = path or env.get(CONFIG_VARIABLE) or None
    if path is not None:
        _from_toml(Path(path), found, names)
    _from_env(env, found, names, secrets)
    for name, value in arguments.items():
        if name in names:
            found.take(name, value, "argument")
        else:
            found.errors.append(f"{name}: there is no such setting{nearest(name, names)}")
    return found


def nearest(name: str, names: Collection[str]) -> str:
    """Return a question that suggests the nearest name; empty where none is near."""
    close = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def _from_env(
    env: Mapping[str, str], found: Gathered, names: Collection[str], secrets: Collection[str]
) -> None:
    for variable in sorted(env):
        if not variable.startswith(ENV_PREFIX) or variable == CONFIG_VARIABLE:
            continue
        name = variable.removeprefix(ENV_PREFIX).lower()
        secret = name.removesuffix("_file")
        if name in names:
            found.take(name, env[variable], variable)
        elif secret != name and secret in secrets:
            _from_secret_file(variable, secret, env, found)
        else:
            found.errors.append(f"{variable}: there is no such setting{nearest(name, names)}")


def _from_secret_file(variable: str, name: str, env: Mapping[str, str], found: Gathered) -> None:
    if f"{ENV_PREFIX}{name.upper()}" in env:
        found.errors.append(f"{variable}: {ENV_PREFIX}{name.upper()} is set too; keep one of them")
        return
    try:
        found.take(name, Path(env[variable]).read_text("utf-8").strip(), variable)
    except (OSError, ValueError) as exc:
        found.errors.append(f"{variable}: cannot read the file: {_reason(exc)}")


def _from_toml(path: Path, found: Gathered, names: Collection[str]) -> None:
    try:
        written = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as exc:
        found.errors.append(f"{path}: cannot read the file: {_reason(exc)}")
        return
    try:
        table = tomllib.loads(written)
    except (ValueError, RecursionError) as exc:
        found.errors.append(f"{path}: not TOML: {exc}")
        return
    for name, value in _flat(_own_table(table)):
        if name not in names:
            found.errors.append(f"{path}: {name}: there is no such setting{nearest(name, names)}")
        elif name in found.values:
            found.errors.append(f"{path}: {name} is set twice")
        else:
            found.take(name, value, str(path))


def _own_table(table: Mapping[str, object]) -> Mapping[str, object]:
    """Return the table named after us, as in a file shared with others, or the whole file."""
    for keys in _TABLES:
        inner: object = table
        for key in keys:
            inner = inner.get(key) if isinstance(inner, Mapping) else None
        if isinstance(inner, Mapping):
            return inner
    return table


def _flat(table: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield settings by their flat names: ``batch_items_max`` in ``[l2]`` has ``l2_`` before it."""
    for key, value in table.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}_")
        else:
            yield name, value


def _reason(exc: Exception) -> str:
    return (exc.strerror or str(exc)) if isinstance(exc, OSError) else "not UTF-8"
