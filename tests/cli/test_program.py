"""The command line as a whole: help, options, errors, signals."""

from __future__ import annotations

import argparse
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sync_engine import SyncEngine
from sync_engine.cli import main, make_parser
from sync_engine.cli.problems import explain
from sync_engine.cli.signals import Interrupted, Stop
from sync_engine.cli.table import COMMANDS, Listed
from sync_engine.errors import ConfigError
from tests.cli.conftest import Cli

Start = Callable[..., "subprocess.Popen[bytes]"]


def parsers(
    parser: argparse.ArgumentParser, words: tuple[str, ...] = ()
) -> Iterator[tuple[str, ...]]:
    yield words
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                yield from parsers(below, (*words, name))


EVERY = list(parsers(make_parser()))


def test_there_are_all_commands() -> None:
    """The next test would pass without any."""
    words = {" ".join(words) for words in EVERY}
    assert {"quickstart", "ingest", "dlq requeue", "config explain", "doctor"} <= words
    assert len(EVERY) == 1 + sum(1 + len(listed.load().children) for listed in COMMANDS)


@pytest.mark.parametrize("listed", COMMANDS, ids=lambda listed: listed.name)
def test_a_command_is_listed_as_it_calls_itself(listed: Listed) -> None:
    """The list has names and summaries of its own, to tell them without importing the command."""
    command = listed.load()

    assert (listed.name, listed.summary) == (command.name, command.summary)


@pytest.mark.parametrize("words", [["--help"], ["--version"], [], ["nope"]], ids=" ".join)
def test_the_help_waits_for_no_driver(words: list[str]) -> None:
    drivers = ("redis", "sqlalchemy", "boto3", "botocore", "apsw", "watchdog")
    code = (
        "import sys; from sync_engine.cli import main; main(sys.argv[1:]);"
        f"print('loaded:', *(name for name in {drivers} if name in sys.modules))"
        ";print('commands:', *(name for name in sys.modules if name.endswith('.replicate_engine')))"
    )

    ran = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=True
    )

    assert ran.stdout.splitlines()[-2:] == ["loaded:", "commands:"]


def test_only_the_chosen_command_is_imported() -> None:
    code = (
        "import sys; from sync_engine.cli import main; main(['config', 'explain', '--help']);"
        "print(sorted(n for n in sys.modules if n in ('sync_engine.cli.settings',"
        " 'sync_engine.cli.doctor', 'sync_engine.cli.merkle', 'sqlalchemy')))"
    )

    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert ran.stdout.splitlines()[-1] == "['sync_engine.cli.settings']"


@pytest.mark.parametrize("words", EVERY, ids=" ".join)
def test_help_is_there_with_an_example(words: tuple[str, ...], cli: Cli) -> None:
    ran = cli(*words, "--help")

    assert ran.code == 0
    assert "example:\n  " in ran.out
    assert ran.out.startswith("usage: " + " ".join(["sync-engine", *words]))


def test_the_help_documents_every_exit_code(cli: Cli) -> None:
    ran = cli("--help")

    for code in (0, 1, 2, 3, 4, 5, 130):
        assert f"\n  {code} " in ran.out


@pytest.mark.parametrize(
    "args",
    [
        ["nope"],
        ["put"],
        ["put", "a"],
        ["put", "a", "file", "--text", "x"],
        ["put", "a", "--text", "x", "--ttl", "soon"],
        ["put", "a", "--text", "x", "--ttl", "0"],
        ["put", "a", "--text", "x", "--durability", "strong"],
        ["put", "", "--text", "x"],
        ["ingest", "/no/such/file"],
        ["get", "a", "--verify", "abc"],
        ["dlq"],
        ["dlq", "requeue"],
        ["dlq", "requeue", "1", "--all"],
        ["config", "explain", "--set", "nonsense"],
        ["config", "explain", "--set", "durabilty=log"],
        ["config", "explain", "--set", "path=x"],
        ["config", "explain", "--set", "l2_timeout_s=soon"],
        ["config", "explain", "--config", "/no/such.toml"],
        ["quickstart", "/no/such/directory"],
        ["quickstart", "--limit", "0"],
    ],
    ids=" ".join,
)
def test_a_mistake_is_told_in_a_line_or_two(args: list[str], cli: Cli) -> None:
    ran = cli(*args)

    assert ran.code == 2
    assert ran.raw == b""
    assert ran.err.startswith("error: ")
    assert "Traceback" not in ran.err


def test_no_command_prints_the_help(cli: Cli) -> None:
    ran = cli()

    assert ran.code == 2
    assert "quickstart" in ran.err


def test_a_misspelt_setting_is_suggested(cli: Cli) -> None:
    assert "did you mean durability?" in cli("config", "explain", "--set", "durabilty=log").err


def test_options_stand_before_or_after_the_command(
    cli: Cli,
) -> None:
    assert cli("put", "a", "--text", "x").code == 0

    assert cli("--json", "get", "a").json["content"] == "x"
    assert cli("get", "a", "--json").json["content"] == "x"
    assert cli("config", "explain", "--json", "--set", "l1_policy=fifo").code in {0, 2}


def test_what_stands_before_and_after_the_command_adds_up(cli: Cli) -> None:
    ran = cli(
        "--set", "durability=fsync", "config", "explain", "--set", "l1_bytes_max=500000", "--json"
    )  # fmt: skip

    values = {row["setting"]: row["value"] for row in ran.json}
    assert (values["durability"], values["l1_bytes_max"]) == ("fsync", "500000 B")
    assert "Traceback" in cli("-v", "get", "a", "-v").err


@pytest.mark.parametrize("closed", ["stdin", "stdout", "stderr"])
def test_a_closed_stream_is_no_mistake_of_ours(
    closed: str, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python has None in its place, as under a supervisor that gives nothing."""
    monkeypatch.setattr(sys, closed, None)
    assert cli("put", "a", "--text", "x").code == 0
    assert cli("get", "a").code == 0
    assert cli("get", "nothing").code == 1
    if closed != "stdin":
        getattr(sys, closed).close()
    else:
        for words in (("put", "b", "-"), ("ingest", "-"), ("ingest", "--jsonl", "-")):
            ran = cli(*words)
            assert (ran.code, "standard input is closed" in ran.err) == (2, True)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize(
    "words", [("--version",), ("get", "a"), ("config", "explain"), ("--help",)]
)
def test_output_that_does_not_arrive_is_a_failure(
    words: tuple[str, ...], cli: Cli, data_dir: Path
) -> None:
    assert cli("put", "a", "--text", "x").code == 0
    command = [sys.executable, "-m", "sync_engine", "--data-dir", str(data_dir), *words]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}

    with Path("/dev/full").open("wb") as full:
        ran = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, env=environment)

    assert ran.returncode == 1
    assert b"Traceback" not in ran.stderr


def test_settings_come_from_option_then_environment_then_file(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('durability = "fsync"\nl1_bytes_max = "1MiB"\nread_timeout_s = 1\n')
    monkeypatch.setenv("SYNC_ENGINE_DURABILITY", "memory")
    monkeypatch.setenv("SYNC_ENGINE_READ_TIMEOUT_S", "2s")

    ran = cli("config", "explain", "--config", str(file), "--set", "durability=archive", "--json")

    rows = {row["setting"]: row for row in ran.json}
    assert rows["durability"]["value"] == "archive"
    assert rows["read_timeout_s"]["value"] == "2 s"
    assert rows["l1_bytes_max"]["value"] == "1 MiB"
    assert rows["l1_bytes_max"]["source"] == str(file)


def test_no_password_is_shown(cli: Cli) -> None:
    urls = ["--sql-url", "mysql://root:hunter2@127.0.0.1:1/x", "--set", "close_timeout_s=0"]

    for args in (["config", "explain"], ["get", "a", "-vv"], ["doctor"], ["health", "--json"]):
        ran = cli(*urls, *args)
        assert "hunter2" not in ran.out + ran.err
        assert ran.out + ran.err


@pytest.mark.parametrize("kind", [ConfigError, ValueError, OSError])
def test_no_line_of_an_error_shows_a_password(
    kind: type[Exception], cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: object) -> None:
        raise kind("one redis://:hunter2@h/0\ntwo mysql://u:hunter2@h/x")

    monkeypatch.setattr("sync_engine.config.SyncEngineConfig.explain", fails)

    ran = cli("config", "explain", "-vv")

    assert ran.code != 0
    assert "two mysql://" in ran.err
    assert "hunter2" not in ran.err
    assert "hunter2" not in "".join(explain(kind("two\nmysql://u:hunter2@h/x"))[1:])


def test_the_traceback_is_for_those_who_ask_twice(cli: Cli) -> None:
    assert "Traceback" not in cli("get", "a", "-v").err
    assert "Traceback" in cli("get", "a", "-vv").err


def test_the_version_is_told(cli: Cli) -> None:
    assert cli("--version").out.startswith("sync-engine ")


def test_a_mistake_of_ours_is_no_traceback_either(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "sync_engine.config.SyncEngineConfig.explain", lambda self: {}["no such key"]
    )

    ran = cli("config", "explain")

    assert ran.code == 1
    assert ran.err.startswith("error: unexpected KeyError")


def test_a_log_in_use_is_told_with_its_process(cli: Cli, start: Start) -> None:
    child = start("ingest", "--jsonl", "-")
    assert child.stdin is not None
    with child:
        try:
            child.stdin.write(b'{"id": "a"}\n')
            child.stdin.flush()
            ran = cli("get", "a")
            while "in use by process" not in ran.err:  # until it has opened its log
                assert child.poll() is None
                ran = cli("get", "a")
        finally:
            child.communicate(timeout=60)

    assert ran.code == 2
    assert f"in use by process {child.pid}" in ran.err
    assert "hint: stop that process" in ran.err


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_an_ingest_in_good_order(
    signum: signal.Signals, cli: Cli, start: Start, tmp_path: Path, data_dir: Path
) -> None:
    """What was acknowledged is reported, archived, and readable afterwards."""
    child = start("ingest", "--jsonl", "-", "--json")
    assert child.stdin is not None
    assert child.stdout is not None
    lines = b"".join(b'{"id": "k%d"}\n' % n for n in range(600))  # more than one group
    child.stdin.write(lines)
    child.stdin.flush()
    while not list(data_dir.glob("*.log.db-wal")) or not _holds_items(data_dir):
        assert child.poll() is None

    child.send_signal(signum)
    out, err = child.communicate(timeout=60)

    assert child.returncode == 128 + signum, err.decode()
    report = __import__("json").loads(out)
    assert report["accepted"] >= 500
    assert report["left"] == {}
    assert len(cli("scan").out.splitlines()) == report["accepted"]


def _holds_items(data_dir: Path) -> bool:
    """Tell whether the first group reached the archive."""
    import sqlite3

    path = data_dir / "archive.db"
    if not path.exists():
        return False
    db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        return bool(db.execute("SELECT count(*) FROM sync_items").fetchone()[0])
    except sqlite3.Error:
        return False
    finally:
        db.close()


def test_a_reader_that_goes_away_is_no_error(cli: Cli, start: Start, tmp_path: Path) -> None:
    lines = tmp_path / "lines"
    lines.write_text("".join(f'{{"id": "{n:05d}{"x" * 100}"}}\n' for n in range(3000)))
    assert cli("ingest", "--jsonl", str(lines)).code == 0
    child = start("scan", "--json")
    assert child.stdout is not None
    assert child.stderr is not None

    assert child.stdout.readline().startswith(b'{"id"')
    child.stdout.close()

    assert child.wait(60) == 141
    assert child.stderr.read() == b""
    child.stderr.close()
    assert child.stdin is not None
    child.stdin.close()


def test_who_follows_through_a_pipe_sees_each_change_at_once(data_dir: Path, cli: Cli) -> None:
    """What is kept back until a block is full would be seen hours later."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    kept = ["--data-dir", str(data_dir), "--set", "feed_items_kept=10"]
    assert cli("put", "a", "--text", "x", *kept[2:]).code == 0
    while not cli("changes", "--json").raw:  # the log's cursors are saved a moment later
        assert cli("flush", *kept[2:]).code == 0
    command = [sys.executable, "-m", "sync_engine", *kept, "changes", "--follow", "--json"]

    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as child:
        assert child.stdout is not None
        try:
            ready, _, _ = select.select([child.stdout], [], [], 30)
            assert ready
            assert json.loads(child.stdout.readline())["id"] == "a"
        finally:
            child.kill()


def test_colour_is_for_terminals_only(cli: Cli, data_dir: Path) -> None:
    """On a terminal there is colour, unless somebody does not want it."""
    import pty

    assert "\x1b" not in cli("health").out + cli("put", "a", "--text", "x").out

    def on_terminal(*args: str, **environment: str) -> str:
        ours, theirs = pty.openpty()
        command = [
            sys.executable, "-m", "sync_engine", "--data-dir", str(data_dir), *args,
        ]  # fmt: skip
        clean = {k: v for k, v in os.environ.items() if k not in {"NO_COLOR", "FORCE_COLOR"}}
        child = subprocess.Popen(
            command, stdout=theirs, stderr=theirs, env={**clean, "TERM": "xterm", **environment}
        )
        os.close(theirs)
        seen = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            seen += part
        os.close(ours)
        assert child.wait(60) == 0
        return seen.decode()

    assert "\x1b[" in on_terminal("health")
    assert "\x1b[32m" not in on_terminal("health", "--no-color")
    assert "\x1b[32m" not in on_terminal("health", NO_COLOR="1")


def test_main_leaves_the_process_as_it_was(cli: Cli) -> None:
    import logging

    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    logger = logging.getLogger("sync_engine")
    before = (logger.level, logger.propagate, list(logger.handlers))

    assert cli("put", "a", "--text", "x", "-vv").code == 0

    assert (logger.level, logger.propagate, list(logger.handlers)) == before
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_a_signal_waits_for_the_write_under_way() -> None:
    stop, done = Stop(), []

    with stop.installed(), pytest.raises(Interrupted) as caught, stop.deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        done.append("the write")

    assert done == ["the write"]
    assert caught.value.signum == signal.SIGTERM


def test_a_second_signal_waits_for_nothing() -> None:
    stop, done = Stop(), []

    with stop.installed(), pytest.raises(Interrupted), stop.deferred():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        done.append("never")

    assert done == []


def test_a_signal_outside_of_writes_is_heard_at_once() -> None:
    stop, done = Stop(), []

    with stop.installed(), pytest.raises(Interrupted):
        os.kill(os.getpid(), signal.SIGINT)
        done.append("never")

    assert done == []


def test_a_look_from_beside_a_running_engine(cli: Cli, data_dir: Path) -> None:
    """What is archived can be read under another engine_name, without a word about leases."""
    with SyncEngine.open(data_dir) as engine:
        engine.submit("a", b"x")
        assert engine.flush().complete

        ran = cli("get", "a", "--set", "engine_name=cli")

    assert (ran.code, ran.raw, ran.err) == (0, b"x", "")


def test_main_takes_the_words_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["sync-engine", "--version"])

    assert main() == 0
