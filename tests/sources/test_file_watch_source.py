"""The file source: the contract of all sources, and what is special about files."""

from __future__ import annotations

import itertools
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

from sync_engine.errors import ConfigError, InvalidItem
from sync_engine.ports import AdapterContext, Source
from sync_engine.runtime import SystemRuntime
from sync_engine.sources.file_watch import Patterns, from_settings, path_of, text_of
from sync_engine.testing.contracts.source import SourceContract, drain


def context(base: Path) -> AdapterContext:
    return AdapterContext(
        name="files", runtime=SystemRuntime("files"), data_dir=base / "data", wake=lambda: None
    )


def make(base: Path, **settings: Any) -> Source:
    (base / "in").mkdir(exist_ok=True)
    given = {"settle_s": 0.0, "quiet_s": 0.0, "rescan_s": 0.001, "poll_s": 0.001} | settings
    return from_settings(context(base), directories=[str(base / "in")], **given)


class TestFileWatchSource(SourceContract):
    settle = 200

    @pytest.fixture(autouse=True)
    def _base(self, tmp_path: Path) -> None:
        self.base = tmp_path
        self.numbers = itertools.count()
        self.made: list[Source] = []

    @pytest.fixture(autouse=True)
    def _closed(self, _base: None) -> Any:
        yield
        for source in self.made:
            source.close()

    def make_source(self) -> Source:
        self.made.append(make(self.base))
        return self.made[-1]

    def produce(self, count: int) -> Collection[str]:
        names = [f"d{n % 3}/f{n}" for n in itertools.islice(self.numbers, count)]
        for name in names:
            path = self.base / "in" / name
            path.parent.mkdir(exist_ok=True, parents=True)
            path.write_bytes(name.encode())
        return names


def settled(source: Source) -> list[Any]:
    changes = []
    for _ in range(30):
        changes += drain(source)
    return changes


def test_deletions_follow_in_mirror_mode(tmp_path: Path) -> None:
    source = make(tmp_path, mode="mirror", prefix="p/")
    (tmp_path / "in/a").write_bytes(b"1")
    source.attach()
    assert [(c.id, c.content) for c in settled(source)] == [("p/a", b"1")]

    (tmp_path / "in/a").write_bytes(b"22")
    assert [(c.id, c.content) for c in settled(source)] == [("p/a", b"22")]

    (tmp_path / "in/a").unlink()
    assert [(c.id, c.content) for c in settled(source)] == [("p/a", None)]
    source.close()


def test_a_file_that_is_too_large_is_put_aside_until_it_changes(tmp_path: Path) -> None:
    source = make(tmp_path, max_payload_bytes=10)
    (tmp_path / "in/a").write_bytes(b"x" * 11)
    (tmp_path / "in/b").write_bytes(b"x" * 10)
    source.attach()
    assert [c.id for c in settled(source)] == ["b"]
    assert source.progress()["parked"] == 1

    (tmp_path / "in/a").write_bytes(b"small")
    assert [(c.id, c.content) for c in settled(source)] == [("a", b"small")]
    source.close()


def test_what_was_put_aside_is_looked_at_again_by_the_next_attach(tmp_path: Path) -> None:
    source = make(tmp_path, max_payload_bytes=10)
    (tmp_path / "in/a").write_bytes(b"x" * 11)
    source.attach()
    assert settled(source) == []
    source.close()

    source = make(tmp_path, max_payload_bytes=11)
    source.attach()
    assert [c.id for c in settled(source)] == ["a"]
    source.close()


@pytest.mark.parametrize(
    "path",
    [b"plain", "ä/ü".encode(), b"\xff", b"a\xe4b", "␛".encode(), "␛FF".encode(), b"\xe2\x90"],
)
def test_any_name_goes_to_text_and_back(path: bytes) -> None:
    text = text_of(path)
    text.encode()
    assert path_of(text) == path


def test_names_that_differ_stay_different() -> None:
    paths = [b"\xff", "␛FF".encode(), "␛␛FF".encode(), b"FF", "␛".encode() + b"\xff"]
    assert len({text_of(path) for path in paths}) == len(paths)


def test_a_text_that_no_path_gives_is_refused() -> None:
    for text in ("", "a␛", "␛41", "\udcff"):
        with pytest.raises(InvalidItem):
            path_of(text)


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("*.csv", "a/b.csv", True),
        ("*.csv", "b.csv.gz", False),
        ("a/*.csv", "a/b.csv", True),
        ("a/*.csv", "a/c/b.csv", False),
        ("a/**/*.csv", "a/c/d/b.csv", True),
        ("a/**/*.csv", "a/b.csv", True),
        ("f?", "fä", True),
        ("[a-c]*", "dx", False),
        ("[!a-c]*", "dx", True),
        ("a.b", "axb", False),
    ],
)
def test_patterns_mean_what_they_say(pattern: str, path: str, matches: bool) -> None:
    assert Patterns([pattern], ()).takes_below(path.encode()) is matches
    assert Patterns((), [pattern]).takes_below(path.encode()) is not matches


def test_what_is_below_an_excluded_directory_is_excluded() -> None:
    patterns = Patterns((), ["build", ".*"])
    assert not patterns.takes_below(b"build/x")
    assert not patterns.takes_below(b"a/.git/config")
    assert patterns.takes_below(b"a/builds/x")


def test_settings_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    for settings in ({"mode": "x"}, {"settle_s": -1}, {"backend": "x"}, {"max_payload_bytes": 0}):
        with pytest.raises(ConfigError):
            make(tmp_path, **settings)
    with pytest.raises(ConfigError):
        from_settings(context(tmp_path), directories=[])
    with pytest.raises(ConfigError, match="no directory"):
        from_settings(context(tmp_path), directories=[str(tmp_path / "not")]).attach()


def test_directories_that_may_not_be_read_are_no_deletions(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    source = make(tmp_path, mode="mirror")
    (tmp_path / "in/d").mkdir()
    (tmp_path / "in/d/a").write_bytes(b"1")
    source.attach()
    settled(source)
    (tmp_path / "in/d").chmod(0)
    try:
        assert settled(source) == []
    finally:
        (tmp_path / "in/d").chmod(0o700)
    source.close()
