"""S17: whatever comes in is taken exactly, or refused clearly."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sync_engine import (
    ConfigError,
    InvalidItem,
    SyncEngine,
    SyncEngineConfig,
    SyncItem,
)

ANY_ID = st.one_of(
    st.text(max_size=600),
    st.text(alphabet="a\0%_*[\\/.:{}\r\n\u202e\ud800é😀", max_size=40),
    st.binary(max_size=10),
    st.none(),
    st.integers(),
)
ANY_CONTENT = st.one_of(st.binary(max_size=2000), st.text(max_size=5), st.none(), st.integers())


@pytest.fixture(scope="module")
def shared() -> Iterator[SyncEngine]:
    with (
        tempfile.TemporaryDirectory() as place,
        SyncEngine(SyncEngineConfig(data_dir=place, max_payload_bytes=100_000)) as engine,
    ):
        yield engine


def usable(id: object) -> bool:
    if not isinstance(id, str) or not id or "\0" in id:
        return False
    try:
        return len(id.encode()) <= 512
    except UnicodeEncodeError:
        return False


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(id=ANY_ID, content=ANY_CONTENT)
def test_s17_any_id_and_content_are_taken_exactly_or_refused_clearly(
    shared: SyncEngine, id: Any, content: Any
) -> None:
    if not usable(id) or not isinstance(content, bytes):
        with pytest.raises(InvalidItem):
            shared.submit(id, content)
        return

    version = shared.submit(id, content).version

    for clear in (False, True):
        if clear:
            shared.flush()
            shared._house.l1.clear()  # type: ignore[union-attr]
        item = shared.get(id)
        assert item is not None
        assert (item.id, item.content, item.version) == (id, content, version)
        assert item.content_hash == SyncItem(id, content).content_hash
        assert shared.is_current(id, item.content_hash)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=20,
)  # fmt: skip


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(value=JSON)
def test_s17_json_comes_back_as_it_was(shared: SyncEngine, value: Any) -> None:
    try:
        item = SyncItem.from_json("json", value)
    except InvalidItem:  # a lone surrogate is no JSON text
        with pytest.raises(UnicodeEncodeError):
            json.dumps(value, ensure_ascii=False).encode()
        return
    shared.submit(item)

    assert shared.get("json").json() == value  # type: ignore[union-attr]


def test_s17_fifty_levels_of_json_and_the_largest_payload(shared: SyncEngine) -> None:
    deep: Any = "bottom"
    for _ in range(50):
        deep = {"down": [deep]}
    shared.submit(SyncItem.from_json("deep", deep))
    shared.submit("large", bytes(100_000))
    with pytest.raises(InvalidItem):
        shared.submit("too large", bytes(100_001))
    shared.flush()
    shared._house.l1.clear()  # type: ignore[union-attr]

    assert shared.get("deep").json() == deep  # type: ignore[union-attr]
    assert len(shared.get("large").content) == 100_000  # type: ignore[union-attr]
    assert shared.get("too large") is None


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400), st.integers(0, 399), st.integers(1, 255))
def test_s17_a_damaged_record_is_told_or_unchanged_never_misread(
    content: bytes, place: int, flip: int
) -> None:
    from sync_engine.core import codec
    from sync_engine.core.item import Change
    from sync_engine.errors import CorruptData

    change = Change("ä", 7, content, 1, "state", 9, 3, "trace")
    record = bytearray(codec.encode(change, 5))
    assert codec.decode(bytes(record), 5, where="here") == change
    with pytest.raises(CorruptData):
        codec.decode(bytes(record), 6, where="moved")
    record[place % len(record)] ^= flip
    with pytest.raises(CorruptData):
        codec.decode(bytes(record), 5, where="altered")
    with pytest.raises(CorruptData):
        codec.decode(bytes(record[: place % len(record)]), 5, where="cut")


@pytest.mark.parametrize("text", ["\ud800", b"bytes", 7], ids=["surrogate", "bytes", "number"])
def test_what_no_id_begins_with_is_refused_before_anything_is_asked(
    shared: SyncEngine, text: Any
) -> None:
    for ask in (
        lambda: shared.scan_prefix(text),
        lambda: shared.scan_prefix(after=text),
        lambda: shared.ids(text),
        lambda: shared.count_prefix(text),
        lambda: shared.delete_prefix(text),
        lambda: shared.get_by_state("done", after=text),
        lambda: shared.merkle_node(text),
        lambda: shared.merkle_children(text),
        lambda: shared.diff(shared, path=text),
    ):
        with pytest.raises(InvalidItem, match=r"must be str|surrogate"):
            ask()


def test_limits_that_mean_nothing_are_refused(shared: SyncEngine) -> None:
    with pytest.raises(InvalidItem, match="0 or more"):
        shared.scan_prefix(limit=-1)
    with pytest.raises(ConfigError, match="1 or more"):
        shared.verify(items_max=0)
    assert list(shared.scan_prefix(limit=0)) == []
