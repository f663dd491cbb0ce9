"""Contract suites: one test class a port, run against every adapter, yours included."""
