"""Relational replication: items as rows of tables of the user's own."""

from sync_engine.sinks.sql_table.sink import SqlTableSink, from_settings
from sync_engine.sinks.sql_table.tables import Column, RawTable, Table
from sync_engine.sinks.sql_table.verify import Drift, Verification

__all__ = ["Column", "Drift", "RawTable", "SqlTableSink", "Table", "Verification", "from_settings"]
