"""The change feed on a Redis stream, for whoever wants to follow an engine from outside."""

from sync_engine.sinks.redis_stream.sink import RedisStreamSink, from_settings

__all__ = ["RedisStreamSink", "from_settings"]
