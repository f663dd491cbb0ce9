"""What each metric means: the reference page of metrics is made from this table."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["MEANINGS", "describe"]

MEANINGS: Mapping[str, str] = {
    "operations": "Calls of a store by tier, operation and outcome.",
    "operation_seconds": "Time of calls that reached a store, by tier and operation.",
    "retries": "Repeated calls of a store, by tier and operation.",
    "circuit_state": "State of a circuit: 0 closed, 1 half open, 2 open.",
    "circuit_openings": "Times a circuit opened.",
    "reads": "Reads by the tier that answered.",
    "flushes": "Deliveries by tier and by the reason they left.",
    "flush_seconds": "Time of one delivery, retries excluded.",
    "delivered_items": "Changes delivered, by tier.",
    "l2_replaced": "Times the server of L2 turned out to be another one.",
    "source_items": "Changes taken into the log, by source.",
    "source_progress": "What a source says of itself, by source; set when a pipeline is asked.",
    "sink_lag_items": "Log positions before a sink.",
    "sink_lag_bytes": "Bytes before a sink, estimated beyond 1000; set when a pipeline is asked.",
    "sink_lag_seconds": "Age of the oldest change before a sink; set when a pipeline is asked.",
    "sink_copying": "Whether a sink is still copied from the archive: 1 if so.",
    "log_pending_items": "Changes that the archive has not taken; set when a pipeline is asked.",
    "log_pending_bytes": "Their bytes; set when a pipeline is asked.",
    "log_file_bytes": "Bytes in use in the log's file; set when a pipeline is asked.",
    "log_dead_letters": "Changes put aside; set when a pipeline is asked.",
    "coherence_changes": "Changes that other engines were heard to have archived.",
    "coherence_drops": "Times L1 was emptied because others may have written, by reason.",
    "l2_cuts": "Times L2 fell too far behind and was started anew under another key epoch.",
}
"""Name without namespace and suffix, and its meaning. A metric need not be listed to work."""


def describe(name: str) -> str:
    """Return the meaning of a metric; its name in words where it is not listed."""
    return MEANINGS.get(name) or name.replace("_", " ").capitalize() + "."
