"""Adapters by name: which sources and sinks a configuration can ask for."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Collection, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from sync_engine.config.gather import nearest
from sync_engine.errors import ConfigError
from sync_engine.ports import AdapterContext

__all__ = ["BUILT_IN", "Kind", "build", "check", "factory", "known_types"]

Kind = Literal["source", "sink"]
Factory = Callable[..., Any]

BUILT_IN: Mapping[Kind, Mapping[str, str]] = {
    "source": {
        "change_stream": "sync_engine.sources.change_stream:from_settings",
        "file_watch": "sync_engine.sources.file_watch:from_settings",
        "s3_listing": "sync_engine.sources.s3_listing:from_settings",
    },
    "sink": {
        "redis_stream": "sync_engine.sinks.redis_stream:from_settings",
        "s3_upload": "sync_engine.sinks.s3_upload:from_settings",
        "snapshot": "sync_engine.sinks.snapshot:from_settings",
        "sql_table": "sync_engine.sinks.sql_table:from_settings",
    },
}
"""Import path of the factory of every adapter that comes with the package."""

_GROUPS = {"source": "sync_engine.sources", "sink": "sync_engine.sinks"}


def known_types(kind: Kind) -> list[str]:
    """Return the type names of a kind: those that come with us, and installed entry points.

    Entry points are looked for in the groups ``sync_engine.sources`` and ``sync_engine.sinks``.
    """
    return sorted({*BUILT_IN[kind], *_installed(kind)})


def factory(kind: Kind, type_name: str) -> Factory:
    """Return the factory behind a type name.

    Args:
        kind: ``source`` or ``sink``.
        type_name: A name that comes with us, the name of an entry point, or an import path
            ``package.module:attribute``.

    Raises:
        ConfigError: There is none of this name, or it cannot be imported; says which names there
            are, or which extra to install.

    Blocking: imports the adapter's module.
    """
    if ":" in type_name:
        return _imported(kind, type_name, type_name)
    installed = _installed(kind)
    if type_name in BUILT_IN[kind]:
        return _imported(kind, type_name, BUILT_IN[kind][type_name])
    if type_name in installed:
        return _imported(kind, type_name, installed[type_name].value)
    names = known_types(kind)
    raise ConfigError(
        f"there is no {kind} of type {type_name!r}{nearest(type_name, names)}"
        f" There is {', '.join(names)}, or an import path package.module:factory."
    )


def build(kind: Kind, type_name: str, context: AdapterContext, settings: Mapping[str, Any]) -> Any:
    """Make a source or sink; it connects to nothing yet.

    Raises:
        ConfigError: As `factory`, and for settings that are unknown, missing or cannot be used.
    """
    made = factory(kind, type_name)
    check(kind, type_name, made, settings)
    try:
        return made(context, **settings)
    except ImportError as exc:
        raise ConfigError(f"{kind} {type_name!r} needs more than is installed: {exc}") from exc
    except (TypeError, ValueError) as exc:
        raise ConfigError(f"{kind} {context.name!r} of type {type_name!r}: {exc}") from exc


def check(kind: Kind, type_name: str, made: Factory, settings: Mapping[str, Any]) -> None:
    """Check the names of settings against what a factory takes.

    Raises:
        ConfigError: Names are unknown or missing; lists all.
    """
    try:
        parameters = list(inspect.signature(made).parameters.values())[1:]
    except (TypeError, ValueError):  # a factory that does not tell
        return
    named = {p.name: p for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
    errors = []
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        errors = [
            f"there is no setting {name!r}{_nearest(name, named)}"
            for name in settings
            if name not in named
        ]
    errors += [
        f"{name!r} is missing"
        for name, parameter in named.items()
        if parameter.default is parameter.empty and name not in settings
    ]
    if errors:
        raise ConfigError(f"{kind} of type {type_name!r}: {'; '.join(errors)}")


def _nearest(name: str, names: Collection[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else f" (there is {', '.join(sorted(names))})"


def _installed(kind: Kind) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=_GROUPS[kind])}


def _imported(kind: Kind, type_name: str, path: str) -> Factory:
    module_name, _, attribute = path.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
    except ImportError as exc:
        raise ConfigError(f"{kind} of type {type_name!r} cannot be imported: {exc}") from exc
    for name in attribute.split("."):
        found = getattr(found, name, None)
    if not callable(found):
        raise ConfigError(f"{kind} of type {type_name!r}: {path} is no factory")
    return found  # type: ignore[no-any-return]
