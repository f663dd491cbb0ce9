"""Threads and clocks of the real world keep the contract of `ports.Runtime`."""

from __future__ import annotations

import ast
import logging
import math
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import sync_engine
from sync_engine.core.policies import RetryConfig
from sync_engine.errors import EngineClosed
from sync_engine.ports import Runtime
from sync_engine.runtime import SystemClock, SystemRuntime

WAIT_S = 10.0  # how long a test waits for what must happen; never how long it takes


@pytest.fixture
def runtime() -> Iterator[SystemRuntime]:
    runtime = SystemRuntime(
        "tester", retry=RetryConfig(attempts_max=0, delay_s_min=0.001, delay_s_max=0.002)
    )
    yield runtime
    assert runtime.close(WAIT_S) == []


class Counted:
    """A step that counts its calls and lets a test wait for them."""

    def __init__(self, delay_s: float = math.inf) -> None:
        self.calls = 0
        self.delay_s = delay_s
        self._changed = threading.Condition()

    def __call__(self) -> float:
        with self._changed:
            self.calls += 1
            self._changed.notify_all()
        return self.delay_s

    def reaches(self, calls: int) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self.calls >= calls, WAIT_S)


def test_it_is_a_runtime_to_the_type_checker(runtime: SystemRuntime) -> None:
    port: Runtime = runtime
    assert 0 <= port.random() < 1
    with port.lock():
        assert not port.event().wait(0)


# -- jobs ------------------------------------------------------------------------------------------


def test_a_job_runs_at_once_in_a_daemon_thread_of_its_own_name(runtime: SystemRuntime) -> None:
    threads: list[threading.Thread] = []
    done = threading.Event()

    def step() -> float:
        threads.append(threading.current_thread())
        done.set()
        return math.inf

    runtime.add_job("l3", step)

    assert done.wait(WAIT_S)
    assert threads[0].name == "tester:l3"
    assert threads[0].daemon


def test_infinity_waits_for_a_wake_and_zero_does_not_wait(runtime: SystemRuntime) -> None:
    idle, busy = Counted(math.inf), Counted(0.0)
    runtime.add_job("idle", idle)
    runtime.add_job("busy", busy)

    assert idle.reaches(1)
    assert busy.reaches(100)
    assert idle.calls == 1

    runtime.wake("idle")
    assert idle.reaches(2)


def test_a_step_is_repeated_after_the_seconds_it_asks_for(runtime: SystemRuntime) -> None:
    started = time.monotonic()
    step = Counted(0.02)
    runtime.add_job("paced", step)

    assert step.reaches(4)
    assert time.monotonic() - started >= 0.06


def test_a_wake_during_a_step_is_not_lost(runtime: SystemRuntime) -> None:
    entered, go = threading.Event(), threading.Event()
    calls: list[int] = []
    again = threading.Event()

    def step() -> float:
        calls.append(1)
        if len(calls) == 1:
            entered.set()
            go.wait(WAIT_S)
        else:
            again.set()
        return math.inf

    runtime.add_job("job", step)
    assert entered.wait(WAIT_S)
    runtime.wake("job")
    go.set()

    assert again.wait(WAIT_S)


def test_no_wake_is_lost_in_a_storm_of_them(runtime: SystemRuntime) -> None:
    """Producer and job hand a counter over 4 x 5,000 times; one lost wake would hang it."""
    todo = [0]
    lock = threading.Lock()
    seen = threading.Condition()
    total = [0]

    def step() -> float:
        with lock:
            taken, todo[0] = todo[0], 0
        with seen:
            total[0] += taken
            seen.notify_all()
        return math.inf

    runtime.add_job("sink", step)

    def produce() -> None:
        for _ in range(5000):
            with lock:
                todo[0] += 1
            runtime.wake("sink")

    producers = [threading.Thread(target=produce) for _ in range(4)]
    for thread in producers:
        thread.start()
    for thread in producers:
        thread.join()
    with seen:
        assert seen.wait_for(lambda: total[0] == 20_000, WAIT_S)


def test_waking_nobody_is_fine(runtime: SystemRuntime) -> None:
    runtime.wake("nobody")


def test_one_slow_job_holds_up_no_other(runtime: SystemRuntime) -> None:
    go = threading.Event()
    runtime.add_job("slow", lambda: math.inf * go.wait(WAIT_S))
    quick = Counted(0.0)
    runtime.add_job("quick", quick)
    assert quick.reaches(10)
    go.set()


def test_two_jobs_of_one_name_are_refused(runtime: SystemRuntime) -> None:
    runtime.add_job("job", Counted())
    with pytest.raises(ValueError, match="job"):
        runtime.add_job("job", Counted())


# -- errors ----------------------------------------------------------------------------------------


def test_a_step_that_raises_is_reported_and_repeated(caplog: pytest.LogCaptureFixture) -> None:
    errors: list[tuple[str, BaseException]] = []
    runtime = SystemRuntime(
        "tester",
        on_error=lambda job, exc: errors.append((job, exc)),
        retry=RetryConfig(attempts_max=0, delay_s_min=0.001, delay_s_max=0.002),
    )
    recovered = threading.Event()
    failures: list[BaseException] = [ValueError("one"), SystemExit(2), MemoryError("three")]

    def step() -> float:
        if failures:
            raise failures.pop(0)
        recovered.set()
        return math.inf

    with caplog.at_level(logging.ERROR, logger="sync_engine.runtime"):
        runtime.add_job("l3", step)
        assert recovered.wait(WAIT_S)
    assert runtime.close(WAIT_S) == []

    assert [(job, type(exc)) for job, exc in errors] == [
        ("l3", ValueError),
        ("l3", SystemExit),
        ("l3", MemoryError),
    ]
    lines = [r.getMessage() for r in caplog.records if r.name == "sync_engine.runtime"]
    assert lines == ["job_failed engine=tester job=l3 failures=1"]  # and no flood


def test_a_hook_that_raises_does_not_end_the_job(caplog: pytest.LogCaptureFixture) -> None:
    def hook(job: str, exc: BaseException) -> None:
        raise RuntimeError("the hook's own")

    runtime = SystemRuntime(
        on_error=hook, retry=RetryConfig(attempts_max=0, delay_s_min=0.001, delay_s_max=0.002)
    )
    again = threading.Event()
    failures = [ValueError("once")]

    def step() -> float:
        if failures:
            raise failures.pop()
        again.set()
        return math.inf

    runtime.add_job("job", step)
    assert again.wait(WAIT_S)
    assert runtime.close(WAIT_S) == []
    assert any("on_error_failed" in record.getMessage() for record in caplog.records)


def test_pauses_after_errors_grow_and_a_wake_does_not_shorten_them() -> None:
    runtime = SystemRuntime(retry=RetryConfig(attempts_max=0, delay_s_min=0.05, delay_s_max=0.05))
    at: list[float] = []
    thrice = threading.Event()

    def step() -> float:
        at.append(time.monotonic())
        if len(at) == 3:
            thrice.set()
        raise ValueError("always")

    runtime.add_job("job", step)
    while not thrice.is_set():
        runtime.wake("job")
    assert runtime.close(WAIT_S) == []
    assert at[1] - at[0] >= 0.05
    assert at[2] - at[1] >= 0.05


# -- ending ----------------------------------------------------------------------------------------


def test_close_ends_waits_pauses_and_sleeps_at_once() -> None:
    runtime = SystemRuntime(retry=RetryConfig(attempts_max=0, delay_s_min=60, delay_s_max=60))
    waiting, failed = Counted(60.0), Counted()
    sleeping = threading.Event()

    def sleep() -> float:
        sleeping.set()
        runtime.clock.sleep(60)
        return math.inf

    def fail() -> float:
        failed()
        raise ValueError("once a minute")

    runtime.add_job("waiting", waiting)
    runtime.add_job("sleeping", sleep)
    runtime.add_job("failing", fail)
    assert waiting.reaches(1)
    assert failed.reaches(1)
    assert sleeping.wait(WAIT_S)

    started = time.monotonic()
    assert runtime.close(30) == []
    assert time.monotonic() - started < 10
    assert not [t for t in threading.enumerate() if t.name.startswith("sync-engine:")]


def test_close_names_the_job_that_does_not_stop_and_is_safe_twice() -> None:
    runtime = SystemRuntime()
    entered, go = threading.Event(), threading.Event()

    def stubborn() -> float:
        entered.set()
        go.wait(WAIT_S)
        return math.inf

    runtime.add_job("stubborn", stubborn)
    runtime.add_job("easy", Counted())
    assert entered.wait(WAIT_S)

    assert runtime.close(0.01) == ["stubborn"]
    go.set()
    assert runtime.close(WAIT_S) == []
    with pytest.raises(EngineClosed):
        runtime.add_job("late", Counted())


def test_a_removed_job_is_gone_and_its_name_is_free(runtime: SystemRuntime) -> None:
    first = Counted(0.0)
    runtime.add_job("job", first)
    assert first.reaches(1)

    assert runtime.remove_job("job", WAIT_S)
    calls = first.calls
    second = Counted()
    runtime.add_job("job", second)

    assert second.reaches(1)
    assert first.calls == calls
    assert runtime.remove_job("unknown", 0)


def test_a_job_may_remove_itself_and_close_its_runtime() -> None:
    runtime = SystemRuntime()
    answers: list[object] = []
    done = threading.Event()

    def step() -> float:
        answers.append(runtime.remove_job("job", WAIT_S))
        answers.append(runtime.close(WAIT_S))
        done.set()
        return 0.0

    runtime.add_job("job", step)

    assert done.wait(WAIT_S)
    assert answers == [True, ["job"]]
    assert runtime.close(WAIT_S) == []


def test_removal_reports_a_step_that_does_not_end(runtime: SystemRuntime) -> None:
    entered, go = threading.Event(), threading.Event()

    def step() -> float:
        entered.set()
        go.wait(WAIT_S)
        return math.inf

    runtime.add_job("job", step)
    assert entered.wait(WAIT_S)
    assert not runtime.remove_job("job", 0.01)
    go.set()


# -- clock -----------------------------------------------------------------------------------------


def test_the_clock_tells_real_time() -> None:
    clock = SystemClock()
    assert abs(clock.now_ms() / 1000 - time.time()) < 5
    before = clock.monotonic()
    clock.sleep(0.01)
    clock.sleep(0)
    clock.sleep(-1)
    assert clock.monotonic() - before >= 0.01


def test_sleeps_end_early_for_good() -> None:
    clock = SystemClock()
    sleeper = threading.Thread(target=clock.sleep, args=(math.inf,))
    sleeper.start()
    clock.end_sleeps()
    sleeper.join(WAIT_S)
    assert not sleeper.is_alive()
    clock.sleep(math.inf)


# -- processes -------------------------------------------------------------------------------------


def run_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_forked_child_has_no_jobs_and_knows_it() -> None:
    out = run_python(
        "import os, math\n"
        "from sync_engine.runtime import SystemRuntime\n"
        "from sync_engine.errors import EngineClosed\n"
        "r = SystemRuntime(); r.add_job('a', lambda: math.inf)\n"
        "r.at_exit(lambda: print('parent only', os.getpid() == parent, flush=True))\n"
        "parent = os.getpid(); pid = os.fork()\n"
        "if pid == 0:\n"
        "    assert r.forked and r.close(1) == [] and r.remove_job('a', 1)\n"
        "    r.wake('a')\n"
        "    try: r.add_job('b', lambda: 0.0)\n"
        "    except EngineClosed: print('child refused', flush=True)\n"
        "    raise SystemExit(0)\n"
        "assert os.waitpid(pid, 0)[1] == 0 and not r.forked\n"
    )
    assert out == "child refused\nparent only True\n"


def test_the_exit_callback_runs_while_jobs_still_do() -> None:
    out = run_python(
        "import threading, math\n"
        "from sync_engine.runtime import SystemRuntime\n"
        "r = SystemRuntime(); stepped = threading.Event(); ended = threading.Event()\n"
        "def step():\n"
        "    if stepped.is_set(): ended.set()\n"
        "    stepped.set(); return math.inf\n"
        "r.add_job('a', step); stepped.wait(10)\n"
        "r.at_exit(lambda: print('replaced'))\n"
        "r.at_exit(lambda: (r.wake('a'), print('alive', ended.wait(10)), r.close(10)))\n"
    )
    assert out == "alive True\n"


@pytest.mark.parametrize("forget", ["r.at_exit(None)", "r.close(1)"])
def test_a_forgotten_exit_callback_does_not_run(forget: str) -> None:
    code = "from sync_engine.runtime import SystemRuntime\nr = SystemRuntime()\n"
    assert run_python(f"{code}r.at_exit(lambda: print('never'))\n{forget}\n") == ""


def test_only_the_runtime_starts_threads_and_reads_clocks() -> None:
    """The linter bans a few names; this looks at what every module imports and calls."""
    root = Path(sync_engine.__path__[0])
    guilty = {
        str(path.relative_to(root)): names
        for path in root.rglob("*.py")
        if "testing" not in path.parts and (names := forbidden(path))
    }
    assert set(guilty) == {"runtime.py"}, guilty


def forbidden(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in {"time", "_thread"}}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module or ""} & {"time", "_thread"}
            found |= {alias.name for alias in node.names if alias.name in THREADS}
        elif isinstance(node, ast.Attribute) and node.attr in THREADS:
            found.add(node.attr)
    return found


THREADS = {"Thread", "Timer", "ThreadPoolExecutor", "start_new_thread"}
