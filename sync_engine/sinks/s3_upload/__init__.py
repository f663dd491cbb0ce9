"""Items as objects of an S3, the newer version always winning."""

from sync_engine.sinks.s3_upload.keys import KeyTemplate
from sync_engine.sinks.s3_upload.sink import S3UploadSink, from_settings

__all__ = ["KeyTemplate", "S3UploadSink", "from_settings"]
