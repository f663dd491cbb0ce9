"""The test setup itself: nothing skipped by accident, nothing left behind, no error unseen."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
ONE_TEST = f"{TESTS}/testing/test_servers.py::test_redis_is_empty_for_every_test"


def run_pytest(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
        capture_output=True, text=True, check=False, timeout=120, cwd=TESTS.parent,
        env={k: v for k, v in os.environ.items() if "REQUIRE_SERVERS" not in k} | env,
    )  # fmt: skip


def test_a_missing_server_skips_and_names_the_package() -> None:
    done = run_pytest(ONE_TEST, PATH="/nonexistent")
    assert done.returncode == 0, done.stdout
    assert "1 skipped" in done.stdout
    assert "apt-get install redis-server" in done.stdout


def test_a_missing_server_fails_where_servers_are_required() -> None:
    done = run_pytest(ONE_TEST, PATH="/nonexistent", REQUIRE_SERVERS="1")
    assert done.returncode == 1, done.stdout
    assert "apt-get install redis-server" in done.stdout


def test_an_error_in_a_background_thread_fails_its_test(tmp_path: Path) -> None:
    code = (
        "import threading\n"
        "def test_it():\n"
        "    t = threading.Thread(target=lambda: 1 / 0)\n"
        "    t.start(); t.join()\n"
    )
    (tmp_path / "test_thread.py").write_text(code)
    done = run_pytest("-c", str(TESTS.parent / "pyproject.toml"), str(tmp_path))
    assert done.returncode == 1, done.stdout
    assert "ZeroDivisionError" in done.stdout


@pytest.mark.external
def test_servers_die_with_the_test_process_however_it_dies() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(TESTS)!r})\n"
        "from support.servers import RedisServer\n"
        "server = RedisServer(); server.start(); print(server.pid, server.dir, flush=True)\n"
        "import signal; signal.pause()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        line = child.stdout.readline().split()
        child.send_signal(signal.SIGKILL)
    until = time.monotonic() + 10
    while Path(f"/proc/{line[0]}/cmdline").exists() and state(line[0]) != "Z":
        assert time.monotonic() < until, "the server outlived its test process"
        time.sleep(0.01)
    Path(line[1], "server.log").unlink()
    Path(line[1]).rmdir()


def state(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "Z"
