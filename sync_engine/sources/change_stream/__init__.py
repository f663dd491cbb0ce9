"""Changes of other engines, from their feed on a Redis stream."""

from sync_engine.sources.change_stream.source import ChangeStream, from_settings

__all__ = ["ChangeStream", "from_settings"]
