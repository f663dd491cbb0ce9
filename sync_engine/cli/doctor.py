"""``doctor``: looks at everything the engine depends on."""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Iterator

from sync_engine.cli.command import Command
from sync_engine.cli.context import Context
from sync_engine.cli.doctor_local import check_clock, check_directory, check_log
from sync_engine.cli.doctor_replica import check_targets
from sync_engine.cli.doctor_servers import check_archive, check_redis
from sync_engine.cli.findings import Finding, Severity, worst
from sync_engine.cli.output import count

__all__ = ["DOCTOR"]


def _arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--target",
        action="append",
        default=[],
        metavar="URL",
        help="also look at this target of snapshot replication; may be repeated",
    )
    add("--pipeline", metavar="FILE", help="and at those of the snapshot sinks of a pipeline")
    add("--endpoint-url", metavar="URL", help="of --target: S3 other than Amazon's")


def _targets(args: argparse.Namespace) -> Iterator[tuple[str, str | None]]:
    named = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    for url in args.target:
        yield url, args.endpoint_url or named
    if args.pipeline:
        from sync_engine.pipeline import load

        for sink in load(args.pipeline).sinks:
            if sink.type == "snapshot" and sink.settings.get("target"):
                yield str(sink.settings["target"]), sink.settings.get("endpoint_url") or named


def _doctor(context: Context) -> int:
    config, clock, output = context.config, context.clock, context.output
    findings: list[Finding] = []
    targets = list(_targets(context.args))
    with output.progress("looking") as advance:
        for checks in (
            check_directory(config, clock),
            check_log(config),
            check_clock(clock),
            check_redis(config, clock),
            check_archive(config, clock),
            check_targets(targets),
        ):
            for finding in checks:
                findings.append(finding)
                advance()
    code = worst(findings)
    if output.json:
        output.document({"exit_code": int(code), "findings": findings})
        return code
    rows = [
        (finding.severity.value, finding.part, finding.what, finding.remedy) for finding in findings
    ]
    output.table("", ("", "part", "found", "what to do"), rows, wrap=(2, 3))
    tally = Counter(finding.severity for finding in findings)
    told = [
        count(tally[severity], severity.value)
        for severity in (Severity.ERROR, Severity.WARNING)
        if tally[severity]
    ]
    output.report(", ".join(told) or "nothing is amiss", "" if told else "green")
    return code


DOCTOR = Command(
    name="doctor",
    summary="check directory, disk, clock and every configured server, and say what to do",
    details="""\
Starts no engine; leaves nothing behind but one key in Redis that expires within seconds. A
target of replication is asked whether it honours conditional writes; credentials are those of the
environment. Exit code 0 with warnings; with errors 4 if a server cannot be reached, 2 if a setting
cannot be used, 5 if data is damaged, else 1.""",
    example="""\
sync-engine doctor --redis-url redis://localhost:6379/0
sync-engine doctor --target s3://backups/archive --endpoint-url http://localhost:9000""",
    arguments=_arguments,
    run=_doctor,
)
