"""The adapters that come with the package, as a pipeline file names them."""

from __future__ import annotations

from pathlib import Path

import pytest

from sync_engine.errors import ConfigError
from sync_engine.pipeline import Pipeline, load

SOURCES = {
    "s3_listing": 'bucket = "things"',
    "file_watch": 'directories = ["{directory}"]',
    "change_stream": 'url = "redis://127.0.0.1:1/0"',
}
SINKS = {
    "s3_upload": 'url = "s3://things/prefix"',
    "redis_stream": 'url = "redis://127.0.0.1:1/0"\nprefix = "se"',
}


@pytest.mark.parametrize(
    ("kind", "name", "settings"),
    [("source", *pair) for pair in SOURCES.items()] + [("sink", *pair) for pair in SINKS.items()],
)
def test_it_is_checked_without_being_connected_to(
    kind: str, name: str, settings: str, tmp_path: Path
) -> None:
    path = tmp_path / "pipeline.toml"
    table = f'[[{kind}]]\nname = "one"\ntype = "{name}"\n'
    path.write_text(table + settings.format(directory=tmp_path))
    Pipeline.check(load(path, {}))

    path.write_text(table + settings.format(directory=tmp_path) + '\nno_such_setting = "x"\n')
    with pytest.raises(ConfigError, match="no_such_setting"):
        Pipeline.check(load(path, {}))
