"""The program in a process of its own: ends when all is done, or kills itself at a failpoint."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sync_engine.core import failpoints
from sync_engine.runtime import SystemRuntime
from sync_engine.s3 import S3Address, S3Settings
from sync_engine.sources.file_watch import FindPolicy
from sync_engine.transfer import FilesToS3, Progress, TransferSettings


def ended(progress: Progress, open_: int) -> bool:
    """Tell whether nothing is left to do, or as much waits as was asked for."""
    return progress.open + progress.parked >= open_ if open_ else progress.idle


def memory_kib() -> int:
    """Return the peak of the resident set of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def main(given: dict[str, Any]) -> None:
    left = given["hits"]

    def die() -> None:
        nonlocal left
        left -= 1
        if left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)

    runtime = SystemRuntime("watch")
    program = FilesToS3(
        [Path(given["dir"])],
        S3Address(given["bucket"], given["prefix"]),
        S3Settings(
            endpoint_url=given["endpoint_url"],
            access_key_id=given["access_key_id"],
            secret_access_key=given["secret_access_key"],
            region="us-east-1",
            deadline_s=given["deadline_s"],
        ),
        Path(given["ledger"]),
        TransferSettings(find=FindPolicy(**given["find"]), **given["settings"]),
        runtime,
    )
    with ExitStack() as stack:
        if given["kill_at"]:
            stack.enter_context(failpoints.during(given["kill_at"], die))
        program.start()
        began_kib = memory_kib()
        sys.stdout.write("started\n")
        sys.stdout.flush()
        while not (program.started and ended(program.progress(), given["until_open"])):
            time.sleep(0.02)
        if given["settings"].get("after") == "delete" and not given["kill_at"]:
            signal.pause()
        sys.stdout.write(f"{memory_kib() - began_kib}\n")
        program.stop(10.0)
        runtime.close(5.0)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
