"""What a pipeline file says, checked as a whole."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from sync_engine.config import ENV_PREFIX, SETTINGS, SyncEngineConfig
from sync_engine.config.gather import nearest
from sync_engine.config.urls import redis_url, sql_url
from sync_engine.config.values import Kind, Unusable, boolean, duration, size, text, whole
from sync_engine.core.batcher import BatchConfig
from sync_engine.errors import ConfigError
from sync_engine.flow.backfill import normal_prefixes
from sync_engine.flow.outlet import OnFull
from sync_engine.replication import Peer

__all__ = [
    "HttpSettings",
    "PipelineConfig",
    "RunSettings",
    "SinkSpec",
    "SourceSpec",
    "load",
]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,63}")
_VARIABLE = re.compile(r"\$(?:\$|\{([A-Za-z_][A-Za-z0-9_]*)\})")
_SECTIONS = ("engine", "http", "run", "source", "sink", "peer")
_BATCH: Mapping[str, Kind] = {
    "batch_items_max": whole(1),
    "batch_bytes_max": size(),
    "batch_age_ms": duration("ms", positive=False),
}
_PEER: Mapping[str, Kind] = {
    "name": text(r"[A-Za-z0-9][A-Za-z0-9_\-]{0,47}", "1 to 48 letters, digits, - or _"),
    "redis_url": redis_url(),
    "sql_url": sql_url(),
    "redis_prefix": text(r".+", "a text"),
    "stream": text(r".+", "a text"),
    "interval_s": duration("s"),
    "items_per_s": whole(0),
    "bytes_per_s": size(0),
    "accept_old": boolean(),
}
_SINK_OWN = ("name", "type", "id_prefix", "on_full", *_BATCH)
_SOURCE_OWN = ("name", "type", "batch_items_max")


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSpec:
    """One ``[[source]]``.

    Attributes:
        name: Unique among the sources.
        type: A name or import path; see `sync_engine.adapters`.
        items_max: Changes to ask for at a time.
        settings: All else: what the factory is given. May hold secrets.
    """

    name: str
    type: str
    items_max: int = 1000
    settings: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkSpec:
    """One ``[[sink]]``.

    Attributes:
        name: Unique among the sinks.
        type: A name or import path; see `sync_engine.adapters`.
        prefixes: Ids to deliver.
        batch: When to deliver.
        on_full: ``block`` or ``cut``; see `SyncEngine.add_sink`.
        settings: All else: what the factory is given. May hold secrets.
    """

    name: str
    type: str
    prefixes: tuple[str, ...] = ("",)
    batch: BatchConfig = field(default_factory=lambda: BatchConfig(age_s_max=0.05))
    on_full: OnFull = "block"
    settings: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpSettings:
    """``[http]``: where the process answers.

    Attributes:
        host: Address to listen at; loopback unless somebody says otherwise.
        port: Port; 0 takes a free one. None is no endpoint.
    """

    host: str = "127.0.0.1"
    port: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """``[run]``: how the process behaves.

    Attributes:
        report_s: Seconds between two reports of rates in the log.
        reload_on_change: Whether a changed file is taken without being asked.
    """

    report_s: float = 30.0
    reload_on_change: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineConfig:
    """A whole pipeline.

    Attributes:
        engine: Settings of the engine.
        sources: In the order of the file.
        sinks: In the order of the file.
        http: Where it answers.
        run: How it behaves.
        peers: Engines to pull from, in the order of the file.
    """

    engine: SyncEngineConfig
    sources: tuple[SourceSpec, ...] = ()
    sinks: tuple[SinkSpec, ...] = ()
    http: HttpSettings = HttpSettings()
    run: RunSettings = RunSettings()
    peers: tuple[Peer, ...] = ()


def load(
    path: str | Path,
    env: Mapping[str, str] = os.environ,
    *,
    overrides: Mapping[str, Any] | None = None,
) -> PipelineConfig:
    """Read a pipeline file.

    ``${NAME}`` in a text stands for a variable of the environment, ``$$`` for a dollar sign.
    Settings of the engine are taken from overrides over the environment over the file.

    Args:
        path: The file, TOML.
        env: The environment.
        overrides: Settings of the engine from a command line.

    Raises:
        ConfigError: It cannot be read, or anything in it is unknown, missing or cannot be used. The
            message lists all that was found.

    Blocking: reads the file.
    """
    path = Path(path)
    try:
        document = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as exc:
        raise ConfigError(f"{path}: cannot read the file: {exc.strerror or exc}") from exc
    except (ValueError, RecursionError) as exc:
        raise ConfigError(f"{path}: not TOML: {exc}") from exc
    return _Reading(path, document, env).whole(overrides or {})


class _Reading:
    """One file on its way to a `PipelineConfig`; collects everything that is wrong with it."""

    def __init__(self, path: Path, document: Mapping[str, Any], env: Mapping[str, str]) -> None:
        self._path = path
        self._env = env
        self._errors: list[str] = []
        self._document = cast("Mapping[str, Any]", self._expanded(document, ""))

    def whole(self, overrides: Mapping[str, Any]) -> PipelineConfig:
        for section in self._document:
            if section not in _SECTIONS:
                self._errors.append(
                    f"{section}: there is no such table{nearest(section, _SECTIONS)}"
                )
        sources = tuple(self._source(table) for table in self._tables("source"))
        sinks = tuple(self._sink(table) for table in self._tables("sink"))
        peers = tuple(peer for table in self._tables("peer") for peer in self._peer(table))
        for kind, names in (
            ("source", [spec.name for spec in sources]),
            ("sink", [spec.name for spec in sinks]),
            ("peer", [peer.name for peer in peers]),
        ):
            self._errors += [
                f"[[{kind}]] {name}: there are two of this name"
                for name in sorted({name for name in names if names.count(name) > 1})
            ]
        if not sources and not sinks and not self._document.get("peer"):
            self._errors.append(
                "there is neither a [[source]] nor a [[sink]] nor a [[peer]]: nothing to run"
            )
        http, run = self._http(), self._run()
        engine = self._engine(overrides)
        if self._errors or engine is None:
            raise ConfigError("\n".join(f"{self._path}: {error}" for error in self._errors))
        return PipelineConfig(
            engine=engine, sources=sources, sinks=sinks, http=http, run=run, peers=peers
        )

    # -- sections ---------------------------------------------------------------------------------

    def _table(self, name: str) -> Mapping[str, Any]:
        table = self._document.get(name, {})
        if isinstance(table, Mapping):
            return table
        self._errors.append(f"{name}: must be a table, [{name}]")
        return {}

    def _tables(self, name: str) -> Iterator[Mapping[str, Any]]:
        tables = self._document.get(name, [])
        if isinstance(tables, list) and all(isinstance(table, Mapping) for table in tables):
            yield from tables
        else:
            self._errors.append(f"{name}: must be written [[{name}]], once for each")

    def _engine(self, overrides: Mapping[str, Any]) -> SyncEngineConfig | None:
        names = {setting.name for setting in SETTINGS}
        settings = dict(_flat(self._table("engine")))
        for name in [name for name in settings if name not in names]:
            self._errors.append(f"[engine] {name}: there is no such setting{nearest(name, names)}")
            del settings[name]
        for name in list(settings):  # the environment wins over a file, here as anywhere
            variables = {f"{ENV_PREFIX}{name.upper()}", f"{ENV_PREFIX}{name.upper()}_FILE"}
            if variables & self._env.keys():
                del settings[name]
        try:
            return SyncEngineConfig.load(None, self._env, **{**settings, **overrides})
        except ConfigError as exc:
            self._errors.append(f"[engine] {exc}")
            return None

    def _http(self) -> HttpSettings:
        table = self._table("http")
        self._unknown("[http]", table, ("listen",))
        if "listen" not in table:
            return HttpSettings()
        host, colon, port = str(table["listen"]).rpartition(":")
        digits = port.isascii() and port.isdigit() and len(port) < 6
        if not colon or not digits or int(port) > 65535:
            self._errors.append(
                f'[http] listen: must be "127.0.0.1:9464" or ":9464", got {table["listen"]!r}'
            )
            return HttpSettings()
        return HttpSettings(host=host.strip("[]") or HttpSettings().host, port=int(port))

    def _run(self) -> RunSettings:
        table = self._table("run")
        kinds = {"report_s": duration("s"), "reload_on_change": boolean()}
        self._unknown("[run]", table, kinds)
        return RunSettings(**self._parsed("[run]", table, kinds))

    # -- sources and sinks ------------------------------------------------------------------------

    def _source(self, table: Mapping[str, Any]) -> SourceSpec:
        name, type_name = self._identity("source", table)
        where = f"[[source]] {name}"
        own = self._parsed(where, table, {"batch_items_max": whole(1, 100_000)})
        settings = {key: value for key, value in table.items() if key not in _SOURCE_OWN}
        return SourceSpec(
            name=name,
            type=type_name,
            items_max=own.get("batch_items_max", 1000),
            settings=settings,
        )

    def _sink(self, table: Mapping[str, Any]) -> SinkSpec:
        name, type_name = self._identity("sink", table)
        where = f"[[sink]] {name}"
        own = self._parsed(where, table, _BATCH)
        batch = BatchConfig(
            items_max=own.get("batch_items_max", 1000),
            bytes_max=own.get("batch_bytes_max", 4 << 20),
            age_s_max=own.get("batch_age_ms", 50.0) / 1000,
        )
        on_full = table.get("on_full", "block")
        if on_full not in ("block", "cut"):
            self._errors.append(f'{where}: on_full: must be "block" or "cut", got {on_full!r}')
        prefix = table.get("id_prefix", "")
        if not _is_prefix(prefix):
            self._errors.append(f"{where}: id_prefix: must be a text or a list of texts")
            prefix = ""
        return SinkSpec(
            name=name,
            type=type_name,
            prefixes=normal_prefixes(prefix),
            batch=batch,
            on_full=on_full,
            settings={key: value for key, value in table.items() if key not in _SINK_OWN},
        )

    def _peer(self, table: Mapping[str, Any]) -> Iterator[Peer]:
        where = f"[[peer]] {table.get('name', '?')}"
        self._unknown(where, table, (*_PEER, "id_prefix"))
        own = self._parsed(where, table, _PEER)
        prefix = table.get("id_prefix", "")
        if not _is_prefix(prefix):
            self._errors.append(f"{where}: id_prefix: must be a text or a list of texts")
            return
        if not isinstance(table.get("name"), str):
            self._errors.append(f"{where}: name is missing")
            return
        try:
            yield Peer(prefixes=normal_prefixes(prefix), **{"name": table["name"], **own})
        except ConfigError as exc:
            self._errors.append(f"[[peer]] {exc}")

    def _identity(self, kind: str, table: Mapping[str, Any]) -> tuple[str, str]:
        found = []
        for key in ("name", "type"):
            value = table.get(key)
            if not isinstance(value, str) or not value:
                self._errors.append(f"[[{kind}]] {table.get('name', '?')}: {key} is missing")
                value = "?"
            found.append(value)
        if found[0] != "?" and not _NAME.fullmatch(found[0]):
            self._errors.append(
                f"[[{kind}]] {found[0]!r}: a name has 1 to 64 letters, digits, or any of . _ -"
            )
        return found[0], found[1]

    # -- values -----------------------------------------------------------------------------------

    def _unknown(self, where: str, table: Mapping[str, Any], names: Collection[str]) -> None:
        self._errors += [
            f"{where} {name}: there is no such setting{nearest(name, names)}"
            for name in table
            if name not in names
        ]

    def _parsed(
        self, where: str, table: Mapping[str, Any], kinds: Mapping[str, Kind]
    ) -> dict[str, Any]:
        found = {}
        for name, kind in kinds.items():
            if name in table:
                try:
                    found[name] = kind.parse(table[name])
                except Unusable as exc:
                    self._errors.append(f"{where}: {name}: {exc}")
        return found

    def _expanded(self, value: object, where: str) -> object:
        """Put the environment in place of ``${NAME}``, in every text."""
        if isinstance(value, Mapping):
            return {k: self._expanded(v, f"{where}.{k}" if where else k) for k, v in value.items()}
        if isinstance(value, list):
            return [self._expanded(item, where) for item in value]
        if not isinstance(value, str) or "$" not in value:
            return value

        def variable(match: re.Match[str]) -> str:
            name = match[1]
            if name is None:
                return "$"
            if name not in self._env:
                self._errors.append(f"{where}: the variable {name} is not set")
            return self._env.get(name, "")

        return _VARIABLE.sub(variable, value)


def _is_prefix(value: object) -> bool:
    texts = value if isinstance(value, list) else [value]
    return all(isinstance(text, str) for text in texts)


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield settings by their flat names, as the engine's own files do."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}_")
        else:
            yield f"{prefix}{key}", value
