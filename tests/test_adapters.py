"""Adapters by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from sync_engine import adapters
from sync_engine.errors import ConfigError
from sync_engine.ports import AdapterContext
from sync_engine.testing import ManualRuntime

HERE = "tests.pipeline.adapters_for_tests"


@pytest.fixture
def context(tmp_path: Path) -> AdapterContext:
    return AdapterContext(name="one", runtime=ManualRuntime(), data_dir=tmp_path, wake=lambda: None)


def test_an_import_path_names_a_factory(context: AdapterContext) -> None:
    source = adapters.build("source", f"{HERE}:counting", context, {"count": 3})
    assert source.name == "one"


def test_an_unknown_type_is_refused_with_a_suggestion() -> None:
    with pytest.raises(ConfigError, match=r"did you mean s3_listing\?"):
        adapters.factory("source", "s3_list")
    with pytest.raises(ConfigError, match=r"sql_table"):
        adapters.factory("sink", "nothing-like-it")


def test_unknown_and_missing_settings_are_all_told(context: AdapterContext) -> None:
    with pytest.raises(
        ConfigError, match=r"'cuont' \(did you mean 'count'\?\).*'count' is missing"
    ):
        adapters.build("source", f"{HERE}:counting", context, {"cuont": 3})


def test_a_path_that_leads_nowhere_is_told() -> None:
    for path in ("no.such.module:factory", f"{HERE}:nothing", f"{HERE}:no_factory"):
        with pytest.raises(ConfigError):
            adapters.factory("sink", path)


def test_a_missing_extra_is_named(context: AdapterContext) -> None:
    with pytest.raises(ConfigError, match=r"sync-engine\[s3\]"):
        adapters.build("source", f"{HERE}:needs_extra", context, {})


def test_entry_points_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, context: AdapterContext
) -> None:
    """As those of an installed package: metadata in a directory of the path."""
    info = tmp_path / "own_adapters-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-adapters\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[sync_engine.sinks]\nfile = {HERE}:file_sink\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    assert "file" in adapters.known_types("sink")
    assert adapters.build("sink", "file", context, {"path": "x"}).name == "one"


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, table in adapters.BUILT_IN.items() for name in table]
)
def test_every_adapter_that_comes_with_us_can_be_loaded(kind: adapters.Kind, name: str) -> None:
    assert callable(adapters.factory(kind, name))
