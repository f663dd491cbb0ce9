"""Settings: arguments over environment over TOML over defaults, checked as a whole."""

from sync_engine.config.gather import CONFIG_VARIABLE, ENV_PREFIX
from sync_engine.config.settings import SETTINGS, ExplainRow, Setting, SyncEngineConfig

__all__ = [
    "CONFIG_VARIABLE",
    "ENV_PREFIX",
    "SETTINGS",
    "ExplainRow",
    "Setting",
    "SyncEngineConfig",
]
