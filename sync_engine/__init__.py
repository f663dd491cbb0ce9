"""sync_engine: memory, Redis and SQL behind one durable log."""
