"""Settings: where they come from, how they are written, what is refused, what is shown."""

from __future__ import annotations

import io
import logging
import pickle
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path
from typing import Any

import pytest

from sync_engine.config import SETTINGS, SyncEngineConfig
from sync_engine.config.check import check
from sync_engine.core.batcher import BatchConfig
from sync_engine.core.options import Durability
from sync_engine.core.policies import CircuitConfig, RetryConfig
from sync_engine.core.pressure import PressurePolicy
from sync_engine.errors import ConfigError
from sync_engine.telemetry import JsonFormatter, get_logger

CANARY = "c4n4ry"


def refused(**settings: Any) -> str:
    with pytest.raises(ConfigError) as told:
        SyncEngineConfig.load(env={}, **settings)
    return str(told.value)


def toml(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "engine.toml"
    path.write_text(text, "utf-8")
    return path


# -- where settings come from ---------------------------------------------------------------------


def test_without_settings_the_engine_is_embedded() -> None:
    config = SyncEngineConfig()

    assert config.redis_url is None
    assert config.sql_url is None
    assert config.data_dir == Path("sync-engine-data")
    assert config.durability is Durability.LOG
    assert config == SyncEngineConfig.load(env={})


def test_arguments_win_over_environment_over_file_over_defaults(tmp_path: Path) -> None:
    path = toml(
        tmp_path,
        "submit_timeout_s = 1\nread_timeout_s = 1\nlease_ttl_s = 1\n",
    )
    env = {"SYNC_ENGINE_SUBMIT_TIMEOUT_S": "2", "SYNC_ENGINE_READ_TIMEOUT_S": "2", "HOME": "/x"}

    config = SyncEngineConfig.load(path, env, submit_timeout_s=3)

    assert (config.submit_timeout_s, config.read_timeout_s, config.lease_ttl_s) == (3, 2, 1)
    assert config.close_timeout_s == 30
    sources = {row.setting: row.source for row in config.explain()}
    assert sources["submit_timeout_s"] == "argument"
    assert sources["read_timeout_s"] == "SYNC_ENGINE_READ_TIMEOUT_S"
    assert sources["lease_ttl_s"] == str(path)
    assert sources["close_timeout_s"] == "default"


@pytest.mark.parametrize(
    "text",
    [
        'l2_timeout_s = "2s"\nl2_batch_items_max = 7',
        '[l2]\ntimeout_s = "2s"\n[l2.batch]\nitems_max = 7',
        '[sync_engine]\nl2_timeout_s = "2s"\n[sync_engine.l2_batch]\nitems_max = 7\n[other]\nx = 1',
        '[tool.sync_engine.l2]\ntimeout_s = "2s"\nbatch_items_max = 7',
        '\ufeffl2_timeout_s = "2s"\nl2.batch_items_max = 7',
    ],
    ids=["flat", "nested", "own table", "pyproject", "byte order mark"],
)
def test_a_file_may_be_flat_or_nested_or_shared(tmp_path: Path, text: str) -> None:
    config = SyncEngineConfig.from_toml(toml(tmp_path, text))

    assert (config.l2_timeout_s, config.l2_batch_items_max) == (2.0, 7)


def test_the_environment_may_name_the_file(tmp_path: Path) -> None:
    path = toml(tmp_path, "read_timeout_s = 9")

    assert SyncEngineConfig.from_env({"SYNC_ENGINE_CONFIG": str(path)}).read_timeout_s == 9


def test_a_url_may_be_kept_in_a_file_of_its_own(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(f"redis://:{CANARY}@h/0\n")

    config = SyncEngineConfig.from_env({"SYNC_ENGINE_REDIS_URL_FILE": str(secret)})
    assert config.redis_url == f"redis://:{CANARY}@h/0"

    with pytest.raises(ConfigError, match="keep one of them"):
        SyncEngineConfig.from_env(
            {"SYNC_ENGINE_REDIS_URL_FILE": str(secret), "SYNC_ENGINE_REDIS_URL": "redis://h"}
        )
    with pytest.raises(ConfigError, match="cannot read the file"):
        SyncEngineConfig.from_env({"SYNC_ENGINE_REDIS_URL_FILE": str(tmp_path / "none")})
    with pytest.raises(ConfigError, match="no such setting"):
        SyncEngineConfig.from_env({"SYNC_ENGINE_ENGINE_NAME_FILE": str(secret)})


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("read_timeout_s = ", "not TOML"),
        ("read_timeout_s = 1\nread_timeout_s = 2", "not TOML"),
        ("l2_timeout_s = 1\n[l2]\ntimeout_s = 2", "l2_timeout_s is set twice"),
        ("read_timeout = 1", "read_timeout: there is no such setting; did you mean read_timeout_s"),
    ],
)
def test_a_faulty_file_is_refused_by_name(tmp_path: Path, text: str, error: str) -> None:
    path = toml(tmp_path, text)

    with pytest.raises(ConfigError) as told:
        SyncEngineConfig.from_toml(path)

    assert str(path) in str(told.value)
    assert error in str(told.value)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes(b"engine_name = '\xe4'")

    for name in ("none.toml", "latin.toml", "."):
        with pytest.raises(ConfigError, match="cannot read the file"):
            SyncEngineConfig.from_toml(tmp_path / name)


# -- how they are written -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "size"),
    [
        (1024, 1024),
        ("1024", 1024),
        ("1_048_576", 1 << 20),
        ("256MiB", 256 << 20),
        ("10 MB", 10_000_000),
        ("1.5 gib", 3 << 29),
        ("2kb", 2000),
        ("7 B", 7),
    ],
)
def test_sizes_have_human_forms(written: object, size: int) -> None:
    config = SyncEngineConfig.load(env={}, overlay_bytes_max=written)

    assert config.overlay_bytes_max == size


@pytest.mark.parametrize(
    "written", ["10 M", "1e3", "0x10", "-1", -1, 0, "0.3 B", 1.5, True, None, "", "1" * 500, []]
)
def test_what_is_no_size_is_refused(written: object) -> None:
    assert refused(overlay_bytes_max=written).startswith("overlay_bytes_max (argument): must be")


@pytest.mark.parametrize(
    ("written", "seconds"),
    [(5, 5), (0.5, 0.5), ("5", 5), ("5s", 5), ("100ms", 0.1), ("2h", 7200), ("1.5 min", 90)],
)
def test_durations_have_human_forms(written: object, seconds: float) -> None:
    assert SyncEngineConfig.load(env={}, read_timeout_s=written).read_timeout_s == seconds


def test_a_duration_is_given_in_the_unit_of_its_setting() -> None:
    config = SyncEngineConfig.load(env={}, log_interval_ms="2s", fsync_interval_ms="7")

    assert (config.log_interval_ms, config.fsync_interval_ms) == (2000.0, 7.0)
    assert (config.log_interval_s, config.fsync_interval_s) == (2.0, 0.007)


@pytest.mark.parametrize(
    "written", [0, -1, "-1s", "5 parsecs", "1h30m", float("nan"), float("inf"), True, "1e3", "99y"]
)
def test_what_is_no_duration_is_refused(written: object) -> None:
    assert refused(read_timeout_s=written).startswith("read_timeout_s (argument): must be")


@pytest.mark.parametrize("written", ["yes", "on", "1", 1, 0, None, "", "TRUE!"])
def test_switches_are_true_or_false(written: object) -> None:
    assert "must be true or false" in refused(create_schema=written)


def test_switches_in_the_environment_mean_what_they_say() -> None:
    for written, value in (("true", True), ("False", False)):
        config = SyncEngineConfig.from_env({"SYNC_ENGINE_CREATE_SCHEMA": written})
        assert config.create_schema is value


@pytest.mark.parametrize("written", [0, "0", -1, "1.5", 1.0, True, "1e3", "ten", "٣"])
def test_what_is_no_count_is_refused(written: object) -> None:
    assert "pending_items_max (argument): must be" in refused(pending_items_max=written)


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("durability", "disk"),
        ("filter", "blooom"),
        ("l1_policy", "LRU"),
        ("data_dir", ""),
        ("data_dir", None),
        ("data_dir", "a\0b"),
        ("engine_name", "../up"),
        ("engine_name", ""),
        ("redis_prefix", "a b"),
        ("redis_prefix", "{tag}"),
    ],
)
def test_words_outside_their_set_are_refused(name: str, written: object) -> None:
    assert refused(**{name: written}).startswith(f"{name} (argument): must be")


def test_a_word_becomes_its_meaning() -> None:
    config = SyncEngineConfig.from_env(
        {"SYNC_ENGINE_DURABILITY": "fsync", "SYNC_ENGINE_DATA_DIR": "./x"}
    )

    assert config.durability is Durability.FSYNC
    assert config.data_dir == Path("x")


# -- URLs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "redis://h",
        "redis://h:6380/3",
        "rediss://user:p%40ss%23@h.example:6379/0?ssl_cert_reqs=required",
        "redis://:pw@[::1]:6379/0",
        "redis+cluster://u:pw@a:1,b:2,c:3",
        "redis+sentinel://a:26379,b:26379/mymaster/2",
        "unix:///run/redis.sock?db=1",
    ],
)
def test_redis_urls_are_taken(url: str) -> None:
    assert SyncEngineConfig(redis_url=url).redis_url == url


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:///archive.db",
        "sqlite+pysqlite:////var/lib/archive.db",
        "mysql+pymysql://u:p%40ss@h:3306/db?charset=utf8mb4",
        "mariadb+pymysql://h/db",
        "postgresql+psycopg://u:pw@[::1]/db?sslmode=verify-full",
    ],
)
def test_sql_urls_are_taken(url: str) -> None:
    assert SyncEngineConfig(sql_url=url).sql_url == url


@pytest.mark.parametrize(
    ("name", "url", "fault"),
    [
        ("redis_url", f"redis://u:{CANARY}@h/notanint", "database that is no number"),
        ("redis_url", f"redis://u:{CANARY}@h:99999/0", "port"),
        ("redis_url", f"redis://u:{CANARY}@h:0x1/0", "port"),
        ("redis_url", f"redis://u:{CANARY}@/0", "names no host"),
        ("redis_url", f"redsi://u:{CANARY}@h/0", "must start with"),
        ("redis_url", f"redis://u:{CANARY}@h /0", "blanks"),
        ("redis_url", f"redis://u:{CANARY}@a:1,:2/0", "names no host"),
        ("redis_url", f"redis+sentinel://u:{CANARY}@h:26379", "names no master"),
        ("redis_url", "unix://", "path of a socket"),
        ("redis_url", f"redis://u:{CANARY}@[::1/0", "malformed"),
        ("redis_url", 7, "must be a Redis URL"),
        ("sql_url", f"mysql://u:{CANARY}@ss/w#rd@h/db", "has a #"),
        ("sql_url", f"mysql://u:{CANARY}@ss@h/db", "an @ too many"),
        ("sql_url", f"mysql://u:{CANARY}/ss@h/db", "an @ too many"),
        ("sql_url", f"mysql://u:{CANARY}?ss@h/db", "an @ too many"),
        ("sql_url", f"mysql://u:{CANARY}:ss@h/db", "a : too many"),
        ("sql_url", f"mysql://u:{CANARY}@h", "names no database"),
        ("sql_url", f"oracle://u:{CANARY}@h/db", "must start with"),
        ("sql_url", CANARY, "must start with"),
        ("sql_url", "sqlite://", "in memory"),
        ("sql_url", "sqlite:///:memory:", "in memory"),
        ("sql_url", "sqlite:///file:x?mode=memory&uri=true", "in memory"),
    ],
)
def test_a_url_that_a_driver_would_misread_is_refused(name: str, url: object, fault: str) -> None:
    message = refused(**{name: url})

    assert message.startswith(f"{name} (argument): ")
    assert fault in message
    assert CANARY not in message


def test_the_archive_must_not_be_the_file_of_the_log(tmp_path: Path) -> None:
    message = refused(data_dir=tmp_path, sql_url=f"sqlite:///{tmp_path}/engine.log.db")

    assert "names the file of the log" in message
    SyncEngineConfig(data_dir=tmp_path, sql_url=f"sqlite:///{tmp_path}/engine.db")


def test_an_empty_url_is_none() -> None:
    assert SyncEngineConfig.from_env({"SYNC_ENGINE_REDIS_URL": ""}).redis_url is None


# -- the whole ------------------------------------------------------------------------------------


def test_all_errors_are_listed_at_once(tmp_path: Path) -> None:
    path = toml(tmp_path, "l1_byte_max = 5")
    env = {"SYNC_ENGINE_READ_TIMEOUT_S": "soon", "SYNC_ENGINE_REDISURL": "redis://h"}

    with pytest.raises(ConfigError) as told:
        SyncEngineConfig.load(path, env, create_schema="perhaps", read_delay_s_min=9, colour="red")

    headline, *lines = str(told.value).splitlines()
    assert headline == "6 settings cannot be used:"
    assert [line.partition(":")[0].rpartition("/")[2] for line in lines] == [
        "engine.toml",
        "SYNC_ENGINE_REDISURL",
        "colour",
        "create_schema (argument)",
        "read_timeout_s (SYNC_ENGINE_READ_TIMEOUT_S)",
        "read_delay_s_min",
    ]
    assert "did you mean l1_bytes_max?" in lines[0]
    assert "did you mean redis_url?" in lines[1]
    assert "did you mean" not in lines[2]


def test_the_class_itself_lists_all_errors_too() -> None:
    with pytest.raises(ConfigError, match="2 settings cannot be used"):
        SyncEngineConfig(engine_name="", submit_timeout_s=-1)
    with pytest.raises(ConfigError, match=r"^engine_name: must be"):
        replace(SyncEngineConfig(), engine_name="")


def test_contradictions_are_refused() -> None:
    assert refused(read_delay_s_max=0.01) == (
        "read_delay_s_min: must not be above read_delay_s_max"
    )
    assert "max_payload_bytes: must not be above log_bytes_max" in refused(
        max_payload_bytes="1GiB", log_bytes_max="1MiB"
    )
    assert "l3_batch_items_max" in refused(l3_batch_items_max=200, pending_items_max=100)


def test_lowering_one_bound_does_not_ask_for_another() -> None:
    config = SyncEngineConfig(pending_items_max=10, pending_bytes_max=1000)

    assert config.pressure == PressurePolicy(items_max=10, bytes_max=1000)


def test_settings_are_composed_into_policies() -> None:
    config = SyncEngineConfig.load(
        env={},
        l2_batch_items_max=5,
        l2_batch_bytes_max="1kB",
        l2_batch_age_ms=3,
        l3_batch_age_ms=0,
        pending_age_s_max="1h",
        read_attempts_max=7,
        delivery_delay_s_max="1min",
        l3_circuit_failures_max=9,
    )

    assert config.l2_batch == BatchConfig(items_max=5, bytes_max=1000, age_s_max=0.003)
    assert config.l3_batch == BatchConfig(items_max=1000, bytes_max=4 << 20, age_s_max=0.0)
    assert config.pressure.age_s_max == 3600
    assert config.read_retry == RetryConfig(attempts_max=7, delay_s_min=0.05, delay_s_max=2.0)
    assert config.delivery_retry == RetryConfig(attempts_max=0, delay_s_min=0.1, delay_s_max=60.0)
    assert config.l2_circuit == CircuitConfig.cache()
    assert config.l3_circuit == CircuitConfig(failures_max=9, open_s=5.0, successes_min=2)


def test_defaults_pass_their_own_checks() -> None:
    table = [(f.name, f.metadata["kind"], f.default) for f in fields(SyncEngineConfig)]
    defaults = {name: default for name, _, default in table}

    assert check(defaults, table, {}) == (defaults, [])


def test_the_reference_tells_every_setting() -> None:
    assert [setting.name for setting in SETTINGS] == [f.name for f in fields(SyncEngineConfig)]
    for setting in SETTINGS:
        assert setting.env == f"SYNC_ENGINE_{setting.name.upper()}"
        assert setting.meaning.endswith(".")
        assert setting.kind
        assert setting.default


def test_what_the_environment_shows_can_be_set_in_the_environment() -> None:
    env = {setting.env: setting.default.replace("none", "") for setting in SETTINGS}

    assert SyncEngineConfig.from_env(env) == SyncEngineConfig()


def test_a_config_does_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        SyncEngineConfig().metrics = False  # type: ignore[misc]


def test_a_config_travels_to_another_process() -> None:
    config = SyncEngineConfig.load(env={}, l1_bytes_max="1MiB")

    again = pickle.loads(pickle.dumps(config))

    assert again == config
    assert again.explain() == config.explain()


def test_the_repr_tells_what_differs_from_the_defaults() -> None:
    assert repr(SyncEngineConfig()) == "SyncEngineConfig()"
    assert repr(SyncEngineConfig(l1_bytes_max=1 << 20)) == "SyncEngineConfig(l1_bytes_max='1 MiB')"


def test_no_password_is_shown_anywhere(tmp_path: Path) -> None:
    """A canary in every place a password can be; then everything that is shown is searched."""
    urls = {
        "redis_url": f"redis+sentinel://user:{CANARY}@h/m?sentinel_password={CANARY}",
        "sql_url": f"mysql+pymysql://user:{CANARY}@h/db?ssl_key_password={CANARY}",
    }
    config = SyncEngineConfig.load(env={}, **urls)
    shown = [repr(config), str(config), str(config.explain()), str(SETTINGS)]

    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    logger = logging.getLogger("sync_engine.canary")
    logger.addHandler(handler)
    get_logger("canary").warning("started", config=config, url=config.redis_url, all=urls)
    logger.warning("plain %s", config.sql_url)
    logger.removeHandler(handler)
    shown.append(stream.getvalue())

    path = toml(tmp_path, f'redis_url = "redis://u:{CANARY}@h/x"\nsql_url = "db2://{CANARY}"')
    secret = tmp_path / "secret"
    secret.write_text(f"redis://u:{CANARY}@@h")
    for attempt in (
        lambda: SyncEngineConfig.from_toml(path),
        lambda: SyncEngineConfig.from_env({"SYNC_ENGINE_SQL_URL": f"mysql://u:{CANARY}@h"}),
        lambda: SyncEngineConfig.from_env({"SYNC_ENGINE_REDIS_URL_FILE": str(secret)}),
        lambda: SyncEngineConfig.from_env({"SYNC_ENGINE_REDIS_UR": f"redis://u:{CANARY}@h"}),
        lambda: SyncEngineConfig(redis_url=f"redis://u:{CANARY}@h:port/0"),
        lambda: SyncEngineConfig.load(env={}, **urls, read_timeout_s=0),
    ):
        with pytest.raises(ConfigError) as told:
            attempt()
        shown.append("".join([str(told.value), repr(told.value), repr(told.value.__cause__)]))

    assert len(stream.getvalue().splitlines()) == 2
    for text in shown:
        assert CANARY not in text, text


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, "set redis_url"),
        ({"redis_url": "redis://localhost", "merkle": False}, "set merkle = true"),
    ],
)
def test_a_mirror_needs_a_tree_and_a_place(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=f"^merkle_mirror: .*{told}$"):
        SyncEngineConfig(merkle_mirror=True, **settings)
