"""Every command, in the order of the help. A new one is one line here.

A command's module is imported when the command is chosen: nobody waits for what others import.
"""

from __future__ import annotations

from importlib import import_module
from typing import NamedTuple

from sync_engine.cli.command import Command

__all__ = ["COMMANDS", "Listed"]


class Listed(NamedTuple):
    """A command as the help lists it.

    Attributes:
        name: As in the `Command`.
        summary: As in the `Command`.
        place: Where that is: module in this package, colon, name.
    """

    name: str
    summary: str
    place: str

    def load(self) -> Command:
        """Import the command."""
        module, _, name = self.place.partition(":")
        command: Command = getattr(import_module(f"sync_engine.cli.{module}"), name)
        return command


COMMANDS: tuple[Listed, ...] = (
    Listed(
        "quickstart",
        "write real files, kill the writer, read everything back",
        "quickstart:QUICKSTART",
    ),
    Listed("ingest", "write files, directories and JSON lines", "ingest:INGEST"),
    Listed("watch", "upload the files of directories to S3 as they are finished", "watch:WATCH"),
    Listed("run", "run sources, engine and sinks of a pipeline file", "run:RUN"),
    Listed("put", "write one item", "items:PUT"),
    Listed("get", "print the raw bytes of one item", "items:GET"),
    Listed("delete", "delete items in every tier", "items:DELETE"),
    Listed("scan", "list items in bytewise order of ids", "listing:SCAN"),
    Listed("status", "tell where one item is, asking each tier", "listing:STATUS"),
    Listed("changes", "print what an engine has archived, in order", "changes:CHANGES"),
    Listed("stats", "print counters and gauges of every part", "observe:STATS"),
    Listed("health", "ask every tier, and tell what is amiss", "observe:HEALTH"),
    Listed("flush", "deliver everything that waits in the log", "observe:FLUSH"),
    Listed("dlq", "list, show, send again or drop dead letters", "letters:DLQ"),
    Listed(
        "s3-changes",
        "tell what was added, modified and deleted in a bucket since the last time",
        "s3_changes:S3_CHANGES",
    ),
    Listed(
        "replicate",
        "replicate a live SQLite database to S3 or a directory, continuously",
        "replicate:REPLICATE",
    ),
    Listed(
        "replicate-engine",
        "pull from other engines that have Redis and SQL of their own, until stopped",
        "replicate_engine:REPLICATE_ENGINE",
    ),
    Listed(
        "restore",
        "bring a database back: newest state, one transaction, or a time",
        "restore:RESTORE",
    ),
    Listed(
        "snapshots",
        "look into a replica, verify it, try a restore; status of its replicator",
        "snapshots:SNAPSHOTS",
    ),
    Listed(
        "tables",
        "replicated tables: how far they are, whether they equal the items, mending them",
        "tables:TABLES",
    ),
    Listed("merkle", "show and compare the archive's Merkle tree", "merkle:MERKLE"),
    Listed("verify", "compare rows with the tree, L2 and filter with the archive", "verify:VERIFY"),
    Listed(
        "repair",
        "mend what verify finds, or take what is newer in another archive",
        "verify:REPAIR",
    ),
    Listed(
        "migrate", "create the archive's tables, or bring them to this version", "schema:MIGRATE"
    ),
    Listed("config", "tell what is set, and where", "settings:CONFIG"),
    Listed(
        "doctor",
        "check directory, disk, clock and every configured server, and say what to do",
        "doctor:DOCTOR",
    ),
)
