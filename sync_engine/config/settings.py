"""Every setting of an engine, in one table."""

# ruff: noqa: RUF009 - every setting is a dataclass field, made by one function

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

from sync_engine.config.check import Field, check, refuse
from sync_engine.config.gather import ENV_PREFIX, gather
from sync_engine.config.urls import redis_url, sql_url
from sync_engine.config.values import Kind, boolean, choice, directory, duration, size, text, whole
from sync_engine.core.batcher import BatchConfig
from sync_engine.core.eviction import DEFAULT_POLICY, POLICIES
from sync_engine.core.options import Durability
from sync_engine.core.policies import CircuitConfig, RetryConfig
from sync_engine.core.pressure import PressurePolicy

__all__ = ["SETTINGS", "ExplainRow", "Setting", "SyncEngineConfig"]

_MIB, _GIB = 1 << 20, 1 << 30
_S, _MS = duration("s"), duration("ms")
_COUNT, _SIZE = whole(1), size()


class ExplainRow(NamedTuple):
    """One line of `SyncEngineConfig.explain`.

    Attributes:
        setting: Its name.
        value: What it is, passwords masked.
        source: ``default``, ``argument``, the variable, or the file it was written in.
        meaning: What it does.
    """

    setting: str
    value: str
    source: str
    meaning: str


class Setting(NamedTuple):
    """One setting, for the reference.

    Attributes:
        name: Its name; in TOML, a table may stand for the words before an underscore.
        env: The variable that sets it.
        kind: What it takes, in words.
        default: The default as text.
        meaning: What it does.
    """

    name: str
    env: str
    kind: str
    default: str
    meaning: str


def _setting(default: Any, kind: Kind, meaning: str) -> Any:
    return field(default=default, metadata={"kind": kind, "meaning": meaning})


@dataclass(frozen=True, kw_only=True, repr=False)
class SyncEngineConfig:
    """Settings of one engine, checked as a whole.

    Sizes may be written as ``"256MiB"`` or ``"10 MB"``, durations as ``"100ms"``, ``"5s"`` or
    ``"2h"``. The table of settings is in the reference, and in `SETTINGS`. The repr, `explain`
    and every error leave passwords out; the attributes themselves hold them.

    Raises:
        ConfigError: Settings cannot be used, or contradict each other. The message lists all.
    """

    # where things are
    data_dir: Path = _setting(
        Path("sync-engine-data"), directory(), "Directory of the log and the embedded archive."
    )
    engine_name: str = _setting(
        "engine",
        text(r"[A-Za-z0-9][A-Za-z0-9_\-]{0,63}", "1 to 64 letters, digits, - or _"),
        "Names the log file: one for each engine that shares a data_dir.",
    )
    redis_url: str | None = _setting(None, redis_url(), "Server of L2; none works without L2.")
    redis_prefix: str = _setting(
        "se",
        text(r"[A-Za-z0-9][A-Za-z0-9_:.\-]{0,63}", "1 to 64 letters, digits, or any of _ : . -"),
        "Begins every key in Redis; engines with the same archive share it.",
    )
    sql_url: str | None = _setting(
        None, sql_url(), "Database of the archive; none is SQLite in data_dir/archive.db."
    )
    create_schema: bool = _setting(True, boolean(), "Create missing tables at start.")
    merkle: bool = _setting(
        True, boolean(), "Keep the Merkle tree of the archive; the same on every engine."
    )
    merkle_mirror: bool = _setting(
        False, boolean(), "Keep the first levels of the tree in Redis too; needs redis_url."
    )
    merkle_separator: str = _setting(
        ".",
        text(r"[!-~]", "one printable ASCII character"),
        "What parts segments of ids in the tree; chosen once for an archive.",
    )
    passive: bool = _setting(
        False, boolean(), "Only look: deliver nothing, hold no lease; writes stay in the log."
    )

    # promises
    durability: Durability = _setting(
        Durability.LOG, choice(Durability), "What an acknowledgement means, where a call is silent."
    )
    log_interval_ms: float = _setting(
        20.0, _MS, "Longest time that a write with durability memory is in memory only."
    )
    fsync_interval_ms: float = _setting(
        50.0, _MS, "Longest time between two fsyncs of the log while it grows."
    )

    # bounds
    log_bytes_max: int = _setting(8 * _GIB, size(_MIB), "Disk space of the log.")
    overlay_bytes_max: int = _setting(
        256 * _MIB, _SIZE, "Memory for contents that wait; beyond it they are read from the log."
    )
    max_payload_bytes: int = _setting(16 * _MIB, _SIZE, "Largest content of one item.")
    pending_items_max: int = _setting(5_000_000, _COUNT, "Unarchived changes before writers wait.")
    pending_bytes_max: int = _setting(8 * _GIB, _SIZE, "Unarchived bytes before writers wait.")
    pending_age_s_max: float = _setting(
        0.0, duration("s", positive=False), "Age of the oldest unarchived change; 0 is no bound."
    )
    submit_timeout_s: float = _setting(
        5.0, duration("s", positive=False), "Longest wait of a write for room or acknowledgement."
    )
    close_timeout_s: float = _setting(
        30.0, duration("s", positive=False), "Longest time close() delivers; the rest stays logged."
    )

    # feed
    feed_items_kept: int = _setting(
        0, whole(0), "Archived changes that the log keeps for readers of `changes` who come back."
    )

    # L1
    l1_bytes_max: int = _setting(128 * _MIB, size(0), "Memory of the L1 cache; 0 is off.")
    stale_bytes_max: int = _setting(
        16 * _MIB, size(0), "Memory of expired copies for `stale_if_error`; 0 is off."
    )
    l1_policy: str = _setting(DEFAULT_POLICY, choice(tuple(POLICIES)), "What L1 evicts first.")

    # reading
    read_timeout_s: float = _setting(5.0, _S, "Longest time of one read over all tiers.")
    read_attempts_max: int = _setting(3, _COUNT, "Attempts of a read at one tier.")
    read_delay_s_min: float = _setting(0.05, _S, "Shortest pause between attempts of a read.")
    read_delay_s_max: float = _setting(2.0, _S, "Longest pause between attempts of a read.")

    # delivering
    delivery_delay_s_min: float = _setting(0.1, _S, "Shortest pause after a failed delivery.")
    delivery_delay_s_max: float = _setting(30.0, _S, "Longest pause after failed deliveries.")
    l2_batch_items_max: int = _setting(1000, _COUNT, "Changes in one delivery to L2.")
    l2_batch_bytes_max: int = _setting(1 * _MIB, _SIZE, "Bytes in one delivery to L2.")
    l2_batch_age_ms: float = _setting(
        5.0, duration("ms", positive=False), "Longest wait of a change for more to travel with."
    )
    l3_batch_items_max: int = _setting(1000, _COUNT, "Changes in one archive transaction.")
    l3_batch_bytes_max: int = _setting(4 * _MIB, _SIZE, "Bytes in one archive transaction.")
    l3_batch_age_ms: float = _setting(
        10.0, duration("ms", positive=False), "Longest wait of a change for more to travel with."
    )

    # L2
    l2_timeout_s: float = _setting(1.0, _S, "Longest wait for an answer of Redis.")
    l2_connect_timeout_s: float = _setting(1.0, _S, "Longest wait for a connection to Redis.")
    l2_lag_items_max: int = _setting(
        1_000_000, _COUNT, "Undelivered changes at which L2 is cut off and started anew."
    )
    l2_fill_ttl_s: float = _setting(3600.0, _S, "How long copies of archived items stay in L2.")
    l2_tombstone_ttl_s: float = _setting(600.0, _S, "How long L2 remembers a deletion.")
    l2_sweep_keys_per_s: int = _setting(
        1000, whole(0), "Keys of L2 looked at for abandoned ones, in a second; 0 leaves them."
    )
    l2_circuit_failures_max: int = _setting(5, _COUNT, "Failures in a row that open L2's circuit.")
    l2_circuit_open_s: float = _setting(2.0, _S, "How long L2 is then left alone.")
    l2_circuit_successes_min: int = _setting(1, _COUNT, "Successful probes that close it.")

    coherence: str = _setting(
        "auto",
        choice(("auto", "off")),
        "Whether engines on one archive tell each other what they wrote, or trust their L1 alone.",
    )

    # L3
    l3_timeout_s: float = _setting(10.0, _S, "Longest wait for an answer of the database.")
    l3_connect_timeout_s: float = _setting(5.0, _S, "Longest wait for a database connection.")
    l3_circuit_failures_max: int = _setting(3, _COUNT, "Failures in a row that open L3's circuit.")
    l3_circuit_open_s: float = _setting(5.0, _S, "How long L3 is then left alone.")
    l3_circuit_successes_min: int = _setting(2, _COUNT, "Successful probes that close it.")
    lease_ttl_s: float = _setting(3.0, _S, "How long the right to say absent outlives its owner.")
    tombstone_retention_s: float = _setting(
        604_800.0, _S, "How long the archive remembers deletions; replicas must not lag longer."
    )

    # derived things
    filter: str = _setting(
        "cuckoo", choice(("cuckoo", "bloom", "off")), "Existence filter before the archive."
    )
    filter_capacity: int = _setting(100_000, _COUNT, "Ids that the filter is first made for.")
    filter_audit_every: int = _setting(
        1000, _COUNT, "One in so many answers of the filter is checked in the archive."
    )

    def __post_init__(self) -> None:
        values, errors = check(vars(self), _fields(), {})
        refuse(errors)
        for name, value in values.items():
            object.__setattr__(self, name, value)
        changed = {name: "argument" for name, _, default in _fields() if values[name] != default}
        object.__setattr__(self, "_sources", changed)

    # -- loading ----------------------------------------------------------------------------------

    @classmethod
    def load(
        cls,
        path: str | Path | None = None,
        env: Mapping[str, str] = os.environ,
        **settings: Any,
    ) -> SyncEngineConfig:
        """Collect settings: arguments win over the environment, which wins over a TOML file.

        Variables are ``SYNC_ENGINE_`` and the setting's name in capitals; URLs may be given as
        ``…_FILE``, the name of a file that holds them. Settings of the file stand at its top, or
        under ``[sync_engine]`` or ``[tool.sync_engine]``.

        Args:
            path: The file; None takes ``SYNC_ENGINE_CONFIG``, and without it there is no file.
            env: The environment.
            settings: As for the class.

        Raises:
            ConfigError: A file cannot be read, or settings are unknown, cannot be used or
                contradict each other. The message lists all.
        """
        table = _fields()
        secrets = {name for name, kind, _ in table if kind.secret}
        names = [name for name, _, _ in table]
        found = gather(path, env, settings, names=names, secrets=secrets)
        values, errors = check(found.values, table, found.sources)
        refuse(found.errors + errors)
        config = cls(**values)
        object.__setattr__(config, "_sources", found.sources)
        return config

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> SyncEngineConfig:
        """Take settings from ``SYNC_ENGINE_*`` variables, as `load`."""
        return cls.load(env=env)

    @classmethod
    def from_toml(cls, path: str | Path) -> SyncEngineConfig:
        """Take settings from a TOML file alone, as `load`."""
        return cls.load(path, env={})

    # -- showing ----------------------------------------------------------------------------------

    def explain(self) -> list[ExplainRow]:
        """Return every setting with its value, where it comes from and what it means."""
        sources: Mapping[str, str] = vars(self)["_sources"]
        return [
            ExplainRow(
                item.name,
                item.metadata["kind"].show(getattr(self, item.name)),
                sources.get(item.name, "default"),
                item.metadata["meaning"],
            )
            for item in fields(self)
        ]

    def __repr__(self) -> str:
        changed = (
            f"{name}={kind.show(getattr(self, name))!r}"
            for name, kind, default in _fields()
            if getattr(self, name) != default
        )
        return f"{type(self).__name__}({', '.join(changed)})"

    # -- composed policies ------------------------------------------------------------------------

    @property
    def log_interval_s(self) -> float:
        """`log_interval_ms` in seconds."""
        return self.log_interval_ms / 1000

    @property
    def fsync_interval_s(self) -> float:
        """`fsync_interval_ms` in seconds."""
        return self.fsync_interval_ms / 1000

    @property
    def pressure(self) -> PressurePolicy:
        """Bounds of what waits for the archive."""
        return PressurePolicy(
            items_max=self.pending_items_max,
            bytes_max=self.pending_bytes_max,
            age_s_max=self.pending_age_s_max,
        )

    @property
    def l2_batch(self) -> BatchConfig:
        """When changes are delivered to L2."""
        return BatchConfig(
            items_max=self.l2_batch_items_max,
            bytes_max=self.l2_batch_bytes_max,
            age_s_max=self.l2_batch_age_ms / 1000,
        )

    @property
    def l3_batch(self) -> BatchConfig:
        """When changes are delivered to the archive."""
        return BatchConfig(
            items_max=self.l3_batch_items_max,
            bytes_max=self.l3_batch_bytes_max,
            age_s_max=self.l3_batch_age_ms / 1000,
        )

    @property
    def read_retry(self) -> RetryConfig:
        """How reads are repeated."""
        return RetryConfig(
            attempts_max=self.read_attempts_max,
            delay_s_min=self.read_delay_s_min,
            delay_s_max=self.read_delay_s_max,
        )

    @property
    def delivery_retry(self) -> RetryConfig:
        """How deliveries are repeated: without end."""
        return RetryConfig(
            attempts_max=0,
            delay_s_min=self.delivery_delay_s_min,
            delay_s_max=self.delivery_delay_s_max,
        )

    @property
    def l2_circuit(self) -> CircuitConfig:
        """When L2 is left alone."""
        return CircuitConfig(
            failures_max=self.l2_circuit_failures_max,
            open_s=self.l2_circuit_open_s,
            successes_min=self.l2_circuit_successes_min,
        )

    @property
    def l3_circuit(self) -> CircuitConfig:
        """When L3 is left alone."""
        return CircuitConfig(
            failures_max=self.l3_circuit_failures_max,
            open_s=self.l3_circuit_open_s,
            successes_min=self.l3_circuit_successes_min,
        )


def _fields() -> list[Field]:
    return [(item.name, item.metadata["kind"], item.default) for item in fields(SyncEngineConfig)]


SETTINGS: tuple[Setting, ...] = tuple(
    Setting(
        item.name,
        f"{ENV_PREFIX}{item.name.upper()}",
        item.metadata["kind"].name,
        item.metadata["kind"].show(item.default),
        item.metadata["meaning"],
    )
    for item in fields(SyncEngineConfig)
)
"""Every setting, in the order of the reference."""
