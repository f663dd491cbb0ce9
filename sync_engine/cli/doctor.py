"""``doctor``: looks at everything the engine depends on."""

from __future__ import annotations

from collections import Counter

from sync_engine.cli.command import Command
from sync_engine.cli.context import Context
from sync_engine.cli.doctor_local import check_clock, check_directory, check_log
from sync_engine.cli.doctor_servers import check_archive, check_redis
from sync_engine.cli.findings import Finding, Severity, worst
from sync_engine.cli.output import count

__all__ = ["DOCTOR"]


def _doctor(context: Context) -> int:
    config, clock, output = context.config, context.clock, context.output
    findings: list[Finding] = []
    with output.progress("looking") as advance:
        for checks in (
            check_directory(config, clock),
            check_log(config),
            check_clock(clock),
            check_redis(config, clock),
            check_archive(config, clock),
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
Starts no engine; leaves nothing behind but one key in Redis that expires within seconds. Exit code
0 with warnings; with errors 4 if a server cannot be reached, 2 if a setting cannot be used, 5 if
data is damaged, else 1.""",
    example="sync-engine doctor --redis-url redis://localhost:6379/0",
    run=_doctor,
)
