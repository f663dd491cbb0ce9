"""One room speaks Redis: addresses, topologies, connections, errors, and streams on top of them."""

try:
    import redis as _driver  # noqa: F401
except ModuleNotFoundError as exc:
    from sync_engine.errors import ConfigError

    raise ConfigError("install the driver: pip install 'sync-engine[redis]'") from exc

__all__: list[str] = []
