"""How the engine speaks S3: addresses, clients, errors, listings, verified uploads."""

from sync_engine.s3.address import S3Address, S3Settings
from sync_engine.s3.body import S3Body, S3Info
from sync_engine.s3.client import S3Client
from sync_engine.s3.errors import NoSuchKey, NoSuchUpload, PreconditionFailed
from sync_engine.s3.listing import ListPage, normal_etag
from sync_engine.s3.queue import S3EventQueue
from sync_engine.s3.uploads import Part, Upload

__all__ = [
    "ListPage",
    "NoSuchKey",
    "NoSuchUpload",
    "Part",
    "PreconditionFailed",
    "S3Address",
    "S3Body",
    "S3Client",
    "S3EventQueue",
    "S3Info",
    "S3Settings",
    "Upload",
    "normal_etag",
]
