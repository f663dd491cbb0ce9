"""Replication between engines that share nothing: each pulls from its peers; newest wins."""

from sync_engine.replication.peer import Peer
from sync_engine.replication.replicator import Replicator

__all__ = ["Peer", "Replicator"]
