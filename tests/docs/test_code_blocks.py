"""What the documentation shows runs as it stands."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from sync_engine.cli import main, make_parser
from sync_engine.config import SyncEngineConfig
from sync_engine.pipeline import load
from tests.docs.pages import PAGES, blocks, name_of, script

# Runs a page, and then its tests as pytest would: whoever copies them gets what the page promises.
RUNNER = """
import sys, runpy
path = sys.argv[1]
names = runpy.run_path(path, run_name="__page__")
if any(name.startswith(("test_", "Test")) for name in names):
    import pytest
    options = ["-q", "--import-mode=importlib", "-p", "no:cacheprovider", "-c", sys.argv[2]]
    sys.exit(pytest.main([path, *options]))
"""

REDIS = "redis://localhost:6379/0"
MYSQL = "mysql+pymysql://app:secret@localhost:3306/items"
POSTGRES = "postgresql+psycopg://app:secret@localhost:5432/items"

PYTHON = [page for page in PAGES if any(blocks(page, "python"))]
WITH_SERVERS = [page for page in PYTHON if REDIS in script(page)]
ALONE = [page for page in PYTHON if page not in WITH_SERVERS]


def run(page: Path, tmp_path: Path, replaced: dict[str, str]) -> None:
    program = script(page)
    for shown, real in replaced.items():
        program = program.replace(shown, real)
    path = tmp_path / f"test_{page.stem.replace('-', '_')}.py"
    path.write_text(program, "utf-8")
    ini = tmp_path / "pytest.ini"
    ini.write_text("[pytest]\nasyncio_default_fixture_loop_scope = function\n", "utf-8")
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("SYNC_ENGINE_")
    }
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", RUNNER, str(path), str(ini)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, f"{name_of(page)}:\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("page", ALONE, ids=name_of)
def test_the_python_of_a_page_runs(page: Path, tmp_path: Path) -> None:
    run(page, tmp_path, {})


@pytest.mark.external
@pytest.mark.parametrize("page", WITH_SERVERS, ids=name_of)
def test_the_python_of_a_page_runs_on_real_servers(
    page: Path, tmp_path: Path, redis_url: str, mariadb_url: str, postgres_url: str
) -> None:
    run(page, tmp_path, {REDIS: redis_url, MYSQL: mariadb_url, POSTGRES: postgres_url})


def test_there_are_pages_of_both_kinds() -> None:
    """The two tests above would pass without any."""
    assert len(ALONE) > 8
    assert WITH_SERVERS


@pytest.mark.parametrize("page", [page for page in PAGES if any(blocks(page, "toml"))], ids=name_of)
def test_the_toml_of_a_page_is_taken(page: Path, tmp_path: Path) -> None:
    """As a pipeline where it has sources, sinks or peers, else as settings of an engine."""
    for block in blocks(page, "toml"):
        tables = tomllib.loads(block.text)
        path = tmp_path / "settings.toml"
        path.write_text(block.text, "utf-8")
        if tables.keys() & {"source", "sink", "peer"}:
            variables = set(re.findall(r"\$\{(\w+)\}", block.text))
            load(path, env=dict.fromkeys(variables, "value"))
        else:
            SyncEngineConfig.from_toml(path)


@pytest.mark.parametrize("page", [page for page in PAGES if any(blocks(page, "bash"))], ids=name_of)
def test_the_shell_of_a_page_sets_variables_that_exist(page: Path) -> None:
    for block in blocks(page, "bash"):
        settings = {
            line.removeprefix("export ").partition("=")[0]: line.partition("=")[2]
            for line in block.text.splitlines()
            if line.startswith("export SYNC_ENGINE_")
        }
        SyncEngineConfig.from_env(settings)


def commands() -> list[tuple[str, list[str]]]:
    """Return every call of sync-engine in a shell block, with the page it stands on."""
    found = []
    for page in PAGES:
        for block in blocks(page, "bash"):
            for line in block.text.splitlines():
                for part in re.split(r"&&|\||;|>", line):
                    words = shlex.split(part, comments=True)
                    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                        del words[0]
                    if words and Path(words[0]).name == "sync-engine":
                        found.append((name_of(page), words[1:]))
    return found


@pytest.mark.parametrize(("page", "words"), commands())
def test_the_commands_of_a_page_can_be_parsed(page: str, words: list[str]) -> None:
    """Parsed, not run: an unknown command or option ends in an error here."""
    assert make_parser().parse_args(words), page


def test_every_command_has_help() -> None:
    def check(parser: argparse.ArgumentParser, words: list[str]) -> int:
        assert main([*words, "--help"]) == 0
        below = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
        return 1 + sum(check(p, [*words, n]) for a in below for n, p in a.choices.items())

    assert check(make_parser(), []) > 10
