"""Objects by key, on S3 or in a directory."""

from sync_engine.stores.blobs.directory import DirectoryBlobs
from sync_engine.stores.blobs.s3 import S3Blobs

__all__ = ["DirectoryBlobs", "S3Blobs"]
