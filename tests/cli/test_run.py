"""`sync-engine run`: a process of its own, and the signals it lives with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Cli
from tests.pipeline.adapters_for_tests import rows

ROOT = Path(__file__).parents[2]
HERE = "tests.pipeline.adapters_for_tests"


class Process:
    """One run of the command."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path = directory / "pipeline.toml"
        self.child: subprocess.Popen[str] | None = None
        self.log = directory / "log"

    def write(self, count: int, *sinks: str, extra: str = "") -> None:
        text = f'[engine]\ndata_dir = "{self.directory / "data"}"\n{extra}'
        text += '[http]\nlisten = ":0"\n'
        text += f'[[source]]\nname = "in"\ntype = "{HERE}:counting"\ncount = {count}\n'
        for name in sinks:
            path = self.directory / f"{name}.db"
            text += f'[[sink]]\nname = "{name}"\ntype = "{HERE}:file_sink"\npath = "{path}"\n'
        new = self.path.with_suffix(".new")
        new.write_text(text)
        new.replace(self.path)

    def start(self, *options: str) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("SYNC_ENGINE_")}
        with self.log.open("a") as log:
            self.child = subprocess.Popen(
                [sys.executable, "-m", "sync_engine", "run", str(self.path), *options],
                cwd=ROOT,
                env={**environment, "PYTHONPATH": str(ROOT)},
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def signal(self, number: int) -> None:
        assert self.child is not None
        self.child.send_signal(number)

    def ends(self) -> int:
        assert self.child is not None
        return self.child.wait(30)

    def events(self, name: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line[:1] == "{"]
        return [line for line in lines if line["event"] == name]

    def ready(self) -> dict[str, Any]:
        """Return what the endpoint tells of a pipeline that has started."""
        listen = self.events("pipeline_started")[-1]["listen"]
        with urllib.request.urlopen(f"http://{listen}/readyz", timeout=10) as answer:
            told: dict[str, Any] = json.load(answer)
            return told

    def rows(self, name: str) -> dict[str, bytes]:
        return rows(self.directory / f"{name}.db")


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    made = Process(tmp_path)
    yield made
    if made.child is not None:
        made.child.kill()
        made.child.wait()
        assert made.child.stdout is not None
        made.child.stdout.close()


def until(condition: Callable[[], object], process: Process, timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, process.log.read_text()[-3000:]
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_delivers_what_was_taken_and_ends_well(process: Process, number: int) -> None:
    process.write(3000, "a", "b")
    process.start()
    until(lambda: process.events("pipeline_started"), process)
    until(lambda: process.rows("a"), process)
    process.signal(number)
    assert process.ends() == 0
    stopped = process.events("pipeline_stopped")[0]
    assert stopped["left"] == {}
    assert process.rows("a") == process.rows("b")


def test_logs_are_json_and_the_endpoint_answers(process: Process) -> None:
    process.write(10, "a")
    process.start()
    until(lambda: process.events("pipeline_started"), process)
    assert process.ready()["ready"] is True
    process.signal(signal.SIGTERM)
    assert process.ends() == 0
    assert all(line.startswith("{") for line in process.log.read_text().splitlines()[:-1])


def test_a_changed_file_and_a_hangup_are_taken(process: Process) -> None:
    process.write(100, "a")
    process.start()
    until(lambda: len(process.rows("a")) == 100, process)
    process.write(200, "a", "b")
    until(lambda: len(process.rows("b")) == 200, process)

    process.path.write_text("[[sink")
    process.signal(signal.SIGHUP)
    until(lambda: process.events("reload_failed"), process)
    process.write(250, "a", "b")
    until(lambda: len(process.rows("a")) == 250, process)

    reloaded = len(process.events("pipeline_reloaded"))
    process.signal(signal.SIGHUP)
    until(lambda: len(process.events("pipeline_reloaded")) > reloaded, process)
    process.signal(signal.SIGTERM)
    assert process.ends() == 0


def test_a_signal_during_a_reload_that_fails_is_heard(process: Process) -> None:
    process.write(10, "a")
    process.start()
    until(lambda: len(process.rows("a")) == 10, process)

    with process.path.open("a") as file:
        file.write(f'[[source]]\nname = "other"\ntype = "{HERE}:terminating"\n')

    assert process.ends() == 0
    assert "cannot be used" in process.events("reload_failed")[0]["error"]


def test_a_new_part_that_fails_in_its_own_way_ends_nothing(process: Process) -> None:
    process.write(10, "a")
    process.start()
    until(lambda: len(process.rows("a")) == 10, process)

    with process.path.open("a") as file:
        file.write(f'[[source]]\nname = "other"\ntype = "{HERE}:unreachable"\n')
    until(lambda: process.events("reload_failed"), process)
    process.write(20, "a")

    until(lambda: len(process.rows("a")) == 20, process)
    process.signal(signal.SIGTERM)
    assert process.ends() == 0


def test_letting_go_of_a_sink_that_nobody_knows_is_told(process: Process) -> None:
    """A misspelt name would leave the log growing for the one that was meant."""
    process.write(10, "a")
    process.start("--forget", "aa")
    until(lambda: len(process.rows("a")) == 10, process)
    assert [one["sink"] for one in process.events("sink_not_known")] == ["aa"]
    process.signal(signal.SIGTERM)
    assert process.ends() == 0


def test_a_killed_pipeline_goes_on_where_it_was(process: Process) -> None:
    process.write(20_000, "a")
    for _ in range(4):
        before = len(process.rows("a"))
        process.start()
        until(lambda before=before: len(process.rows("a")) > before, process)
        process.signal(signal.SIGKILL)
        assert process.ends() == -signal.SIGKILL
        assert process.child is not None
        assert process.child.stdout is not None
        process.child.stdout.close()
        if len(process.rows("a")) > 15_000:
            break
    process.start()
    until(lambda: len(process.rows("a")) == 20_000, process)
    process.signal(signal.SIGTERM)
    assert process.ends() == 0
    assert process.rows("a") == {f"n.{n}": b"%d" % n for n in range(20_000)}


def test_a_second_signal_ends_at_once(process: Process) -> None:
    """The sink cannot be reached, so the first one would wait for close_timeout_s."""
    blocked = process.directory / "a.db"
    blocked.mkdir()
    process.write(10, "a", extra='close_timeout_s = "60s"\n')
    process.start()
    until(lambda: process.events("sink_failed"), process)
    until(lambda: process.events("pipeline_started"), process)
    process.signal(signal.SIGTERM)
    until(lambda: process.ready()["sources"]["in"]["paused"], process)  # it stops, and waits
    process.signal(signal.SIGTERM)
    assert process.ends() == 128 + signal.SIGTERM
    assert process.events("pipeline_stopped") == []


def test_what_is_left_is_told_with_its_exit_code(process: Process) -> None:
    (process.directory / "a.db").mkdir()
    process.write(10, "a", extra='close_timeout_s = "0.2s"\n')
    process.start()
    until(lambda: process.events("sink_failed"), process)
    process.signal(signal.SIGTERM)
    assert process.ends() == 4
    assert "sink:a" in process.events("pipeline_stopped")[0]["left"]


def test_a_check_runs_nothing(cli: Cli, tmp_path: Path) -> None:
    process = Process(tmp_path)
    process.write(10, "a")
    ran = cli("--json", "run", str(process.path), "--check")
    assert ran.code == 0
    assert ran.json["sinks"] == [{"name": "a", "type": f"{HERE}:file_sink", "prefix": [""]}]
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("words", [("run",), ("tables", "lag")])
def test_a_second_file_of_settings_is_not_passed_over(
    words: tuple[str, ...], cli: Cli, tmp_path: Path
) -> None:
    process = Process(tmp_path)
    process.write(10, "a")
    ran = cli(*words, str(process.path), "--config", "settings.toml")
    assert ran.code == 2
    assert "put them into its [engine]" in ran.err


def test_a_file_that_cannot_be_used_is_a_mistake_of_usage(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "pipeline.toml"
    path.write_text('[[source]]\nname = "in"\ntype = "s3_listin"\n')
    ran = cli("run", str(path), "--check")
    assert ran.code == 2
    assert "did you mean s3_listing" in ran.err
    assert cli("run", str(tmp_path / "none.toml")).code == 2
