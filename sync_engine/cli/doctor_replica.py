"""`doctor` on targets of snapshot replication: can they be written, and by one writer only?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sync_engine.cli.findings import Finding, Severity, failed
from sync_engine.errors import ConfigError, SyncEngineError
from sync_engine.runtime import SystemRuntime

__all__ = ["check_targets"]

_PART = "replica"


def check_targets(targets: Sequence[tuple[str, str | None]]) -> Iterator[Finding]:
    """Ask every target whether it honours conditional writes, on which the lease depends.

    Args:
        targets: Addresses, each with the endpoint of an S3 other than Amazon's.

    Blocking: a few requests each; leaves nothing behind.
    """
    for url, endpoint_url in targets:
        yield _check(url, endpoint_url)


def _check(url: str, endpoint_url: str | None) -> Finding:
    runtime = SystemRuntime("doctor")
    try:
        from sync_engine.sinks.snapshot import open_objects

        objects = open_objects(url, runtime, endpoint_url=endpoint_url)
        try:
            conditional = objects.conditional()
            shown = objects.url
        finally:
            objects.close()
    except ImportError:
        exc = ConfigError("an extra is missing: pip install 'sync-engine[snapshot]'")
        return _failed(exc)
    except SyncEngineError as exc:
        return _failed(exc)
    finally:
        runtime.close(1.0)
    if conditional:
        return Finding(
            part=_PART,
            severity=Severity.OK,
            what=f"{shown} honours conditional writes: one replicator at a time can write",
        )
    return Finding(
        part=_PART,
        severity=Severity.WARNING,
        what=f"{shown} ignores conditional writes: the lease falls back to reading HEAD again "
        "after a pause, and two replicators that start at once may both write",
        remedy="see to it that one replicator writes there, or use another server",
    )


def _failed(exc: SyncEngineError) -> Finding:
    return failed(_PART, exc, unavailable="start the server, or correct address and endpoint")
