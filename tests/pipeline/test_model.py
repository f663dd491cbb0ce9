"""The pipeline file: all of it checked, all mistakes told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sync_engine.errors import ConfigError
from sync_engine.pipeline import PipelineConfig, difference, load

Written = Callable[..., PipelineConfig]


@pytest.fixture
def written(tmp_path: Path) -> Written:
    def write(text: str, **env: str) -> PipelineConfig:
        path = tmp_path / "pipeline.toml"
        path.write_text(text, "utf-8")
        return load(path, env)

    return write


SMALL = '[[source]]\nname = "in"\ntype = "x:y"\n'


def test_everything_that_can_be_said_is_taken(written: Written) -> None:
    config = written(
        """
        [engine]
        data_dir = "./data"
        l1_bytes_max = "64MiB"
        [engine.l3]
        batch_items_max = 7

        [http]
        listen = ":9464"

        [run]
        report_s = "5s"
        reload_on_change = false

        [[source]]
        name = "in"
        type = "s3_listing"
        batch_items_max = 50
        bucket = "b"

        [[sink]]
        name = "out"
        type = "sql_table"
        id_prefix = ["a.", "b.", "a.b"]
        on_full = "cut"
        batch_items_max = 10
        batch_age_ms = 5
        tables = [{ name = "t" }]
        """
    )
    assert config.engine.l3_batch_items_max == 7
    assert (config.http.host, config.http.port) == ("127.0.0.1", 9464)
    assert (config.run.report_s, config.run.reload_on_change) == (5.0, False)
    (source,), (sink,) = config.sources, config.sinks
    assert (source.items_max, dict(source.settings)) == (50, {"bucket": "b"})
    assert sink.prefixes == ("a.", "b.")
    assert (sink.batch.items_max, sink.batch.age_s_max, sink.on_full) == (10, 0.005, "cut")
    assert dict(sink.settings) == {"tables": [{"name": "t"}]}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "nothing to run"),
        ("[engin]\n" + SMALL, "did you mean engine"),
        ("[engine]\ndata_dri = '.'\n" + SMALL, "did you mean data_dir"),
        ("[engine]\nl1_bytes_max = 'much'\n" + SMALL, "l1_bytes_max"),
        ("[http]\nlisten = 'here'\n" + SMALL, "127.0.0.1:9464"),
        ("[http]\nlisten = ':" + "9" * 5000 + "'\n" + SMALL, "127.0.0.1:9464"),
        ("[http]\nlisen = ':1'\n" + SMALL, "did you mean listen"),
        ("[run]\nreport_s = 'often'\n" + SMALL, "report_s"),
        ("[source]\nname = 'in'\n", r"\[\[source\]\]"),
        ("[[source]]\nname = 'in'\n", "type is missing"),
        ("[[source]]\ntype = 'x:y'\n", "name is missing"),
        (SMALL + SMALL, "two of this name"),
        ("[[source]]\nname = 'a:b'\ntype = 'x:y'\n", "1 to 64"),
        ("[[sink]]\nname = 'o'\ntype = 'x:y'\non_full = 'drop'\n", "on_full"),
        ("[[sink]]\nname = 'o'\ntype = 'x:y'\nid_prefix = 3\n", "id_prefix"),
        ("[[sink]]\nname = 'o'\ntype = 'x:y'\nbatch_items_max = 0\n", "batch_items_max"),
        ("[[sink]]\nname = 'o'\ntype = 'x:y'\nurl = '${NO_SUCH}'\n", "NO_SUCH is not set"),
        ("[[sink", "not TOML"),
    ],
)
def test_a_mistake_is_told(written: Written, text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        written(text)


def test_all_mistakes_are_told_at_once(written: Written) -> None:
    with pytest.raises(ConfigError) as refused:
        written("[http]\nlisten = 'x'\n[engine]\nnothing = 1\n" + SMALL + "[[sink]]\nname='o'\n")
    assert all(word in str(refused.value) for word in ("listen", "nothing", "type is missing"))


def test_the_environment_stands_in_for_what_is_secret(written: Written) -> None:
    config = written(
        '[[sink]]\nname = "o"\ntype = "x:y"\nurl = "mysql://u:${PW}@h/$$x"\nlist = ["${PW}"]\n',
        PW="s3cret",
    )
    (sink,) = config.sinks
    assert dict(sink.settings) == {"url": "mysql://u:s3cret@h/$x", "list": ["s3cret"]}
    assert "s3cret" not in repr(config)


def test_the_environment_wins_over_the_file(written: Written) -> None:
    text = "[engine]\nl1_bytes_max = 1\ndata_dir = 'a'\n" + SMALL
    config = written(text, SYNC_ENGINE_L1_BYTES_MAX="2MiB")
    assert config.engine.l1_bytes_max == 2 << 20
    assert config.engine.data_dir == Path("a")


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        load(tmp_path / "none.toml")


def test_a_difference_names_what_comes_goes_and_needs_a_restart(written: Written) -> None:
    sink = '[[sink]]\nname = "{}"\ntype = "x:y"\npath = "{}"\n'
    old = written(
        "[engine]\nl1_bytes_max = 1\n" + SMALL + sink.format("a", 1) + sink.format("b", 1)
    )
    new = written("[engine]\nl1_bytes_max = 2\n" + sink.format("b", 2) + sink.format("c", 1))
    found = difference(old, new)
    assert found.sources_gone == ("in",)
    assert set(found.sinks_gone) == {"a", "b"}
    assert [spec.name for spec in found.sinks_new] == ["b", "c"]
    assert found.sinks_left == ("a",)
    assert found.needs_restart == ("engine.l1_bytes_max",)
    assert difference(old, old).empty


def test_a_sink_may_have_a_prefix_of_its_own(written: Written) -> None:
    """Such as that of its keys; which ids it gets is another matter."""
    config = written('[[sink]]\nname = "o"\ntype = "x:y"\nid_prefix = "a."\nprefix = "se"\n')
    (sink,) = config.sinks
    assert (sink.prefixes, dict(sink.settings)) == (("a.",), {"prefix": "se"})
