"""Files to S3 as a program: every step of every file in a ledger, so that nothing happens twice."""

from sync_engine.transfer.program import FilesToS3
from sync_engine.transfer.progress import Planned, Progress
from sync_engine.transfer.settings import After, Overwrite, TransferSettings

__all__ = ["After", "FilesToS3", "Overwrite", "Planned", "Progress", "TransferSettings"]
