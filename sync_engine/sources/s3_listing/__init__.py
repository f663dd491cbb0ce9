"""Changes of a bucket, found by comparing its listing with what was seen before."""

from sync_engine.sources.s3_listing.builder import S3ListingBuilder
from sync_engine.sources.s3_listing.changes import (
    Added,
    Deleted,
    Identity,
    Modified,
    Op,
    Renamed,
    S3Change,
    S3Object,
    TooManyDeletions,
)
from sync_engine.sources.s3_listing.check import Difference, check
from sync_engine.sources.s3_listing.feed import S3ListingFeed, from_settings
from sync_engine.sources.s3_listing.source import S3ListingSource, ScanStatistics

__all__ = [
    "Added",
    "Deleted",
    "Difference",
    "Identity",
    "Modified",
    "Op",
    "Renamed",
    "S3Change",
    "S3ListingBuilder",
    "S3ListingFeed",
    "S3ListingSource",
    "S3Object",
    "ScanStatistics",
    "TooManyDeletions",
    "check",
    "from_settings",
]
