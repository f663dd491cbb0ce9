"""Entries of a feed, and the proof that none is missing."""

from __future__ import annotations

import os

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from sync_engine.core.feed import (
    FIELDS,
    BadEntry,
    Chain,
    FeedCursor,
    Link,
    Place,
    engine_number,
    entry_fields,
    packed_fields,
    read_entry,
)
from sync_engine.core.item import Change
from sync_engine.errors import InvalidItem

LOG = "0123456789abcdef0123456789abcdef"
OTHER = "fedcba9876543210fedcba9876543210"
HERE = Link(LOG, 4, 7, 2, 3)


def told(values: list[bytes]) -> dict[bytes, bytes]:
    return dict(zip(FIELDS, values, strict=True))


def test_an_entry_carries_everything_that_a_change_has() -> None:
    """State, deadline, routes, type and trace of the writer, not only id and bytes."""
    change = Change("käse/*:1", 77, b"\x00\xff", 1, "review", 123_456, 2, "00-ab-cd-01")

    entry = read_entry(told(entry_fields(change, HERE)))

    assert list(entry.changes) == [change]
    assert entry.link == HERE
    assert entry.has_content
    assert entry.size == 2


def test_a_deletion_is_an_entry_of_its_own() -> None:
    fields = told(entry_fields(Change("a", 5, None), HERE))
    assert fields[b"op"] == b"DEL"
    (change,) = read_entry(fields).changes
    assert change.content is None


@given(st.binary(max_size=3000), st.integers(0, 4000))
def test_any_content_comes_back_byte_for_byte(content: bytes, compress_bytes_min: int) -> None:
    fields = entry_fields(Change("a", 1, content), HERE, compress_bytes_min=compress_bytes_min)
    assert read_entry(told(fields)).changes[0].content == content


def test_what_its_writer_had_compressed_stays_as_it_is() -> None:
    """The encoding is told, never guessed from the bytes: zstd in zstd comes back as zstd."""
    content = zstandard.ZstdCompressor().compress(b"x" * 5000)
    for smallest in (0, 1 << 20):
        fields = told(entry_fields(Change("a", 1, content), HERE, compress_bytes_min=smallest))
        assert read_entry(fields).changes[0].content == content


def test_a_content_is_compressed_above_a_size_and_only_where_that_helps() -> None:
    def encoding(content: bytes) -> bytes:
        return told(entry_fields(Change("a", 1, content), HERE))[b"encoding"]

    assert encoding(b"x" * 1023) == b"raw"
    assert encoding(b"x" * 1024) == b"zstd"
    assert encoding(os.urandom(5000)) == b"raw"


def test_a_feed_without_contents_tells_size_and_hash() -> None:
    fields = told(entry_fields(Change("a", 1, b"secret"), HERE, payload=False))
    entry = read_entry(fields)
    assert b"secret" not in b"".join(fields.values())
    assert not entry.has_content
    assert (entry.size, len(entry.content_hash)) == (6, 64)


def test_a_packed_entry_tells_ids_and_versions_of_a_batch() -> None:
    changes = [Change("a", 1, b"x"), Change("b", 2, None)]
    entry = read_entry(told(packed_fields(changes, HERE)))
    assert [(c.id, c.version, c.content) for c in entry.changes] == [("a", 1, b""), ("b", 2, None)]


@pytest.mark.parametrize("field", FIELDS)
def test_an_altered_field_is_noticed(field: bytes) -> None:
    fields = told(entry_fields(Change("a", 1, b"content"), HERE))
    fields[field] += b"1"
    with pytest.raises(BadEntry):
        read_entry(fields)


@pytest.mark.parametrize("field", FIELDS)
def test_a_missing_field_is_noticed(field: bytes) -> None:
    fields = told(entry_fields(Change("a", 1, b"content"), HERE))
    del fields[field]
    with pytest.raises(BadEntry):
        read_entry(fields)


def test_a_field_that_is_not_known_is_ignored() -> None:
    fields = told(entry_fields(Change("a", 1, b"content"), HERE)) | {b"later": b"1"}
    assert read_entry(fields).changes[0].id == "a"


def test_a_small_entry_that_would_grow_beyond_the_bound_is_refused() -> None:
    fields = told(entry_fields(Change("a", 1, b"\0" * (1 << 20)), HERE))
    assert len(fields[b"data"]) < 1000
    with pytest.raises(BadEntry, match="larger"):
        read_entry(fields, bytes_max=1 << 16)


@pytest.mark.parametrize("version", [-1, 1 << 63, (1 << 64) - 1])
def test_a_version_that_no_engine_gives_is_refused(version: int) -> None:
    """It would push everybody's clock to the end of time."""
    batch = packed_fields([Change("a", 1, b""), Change("b", version, b"")], HERE)
    with pytest.raises(BadEntry, match="63 bits"):
        read_entry(told(batch))
    with pytest.raises(BadEntry, match=r"63 bits|version"):
        read_entry(told(entry_fields(Change("a", version, b"x"), HERE)))


def test_an_engine_is_told_by_the_number_that_its_versions_end_with() -> None:
    fields = told(entry_fields(Change("a", 1, b""), HERE))
    assert int(fields[b"engine"]) == engine_number(LOG) == 0x01234567 & 1023


# -- the chain ------------------------------------------------------------------------------------


def read_all(chain: Chain, *links: Link) -> list[str]:
    seen = []
    for link in links:
        verdict = chain.look(link)
        seen.append(verdict if verdict in ("next", "repeat") else "hole")
        if seen[-1] == "next":
            chain.take(link)
    return seen


def test_batches_that_follow_each_other_are_next() -> None:
    links = [Link(LOG, 0, 3, 1, 2), Link(LOG, 0, 3, 2, 2), Link(LOG, 3, 9), Link(OTHER, 0, 1)]
    assert read_all(Chain(), *links) == ["next"] * 4


def test_what_was_read_is_a_repetition_whatever_follows() -> None:
    links = [Link(LOG, 0, 3, 1, 2), Link(LOG, 0, 3, 2, 2), Link(LOG, 3, 9)]
    chain = Chain()
    read_all(chain, *links)
    assert read_all(chain, *links) == ["repeat"] * 3


@pytest.mark.parametrize(
    "missing",
    [
        Link(LOG, 0, 3, 1, 2),  # the very beginning
        Link(LOG, 0, 3, 2, 2),  # the end of a batch
        Link(LOG, 3, 9, 1, 1),  # a whole batch
        Link(LOG, 9, 12, 1, 3),  # the beginning of a batch
        Link(LOG, 9, 12, 2, 3),  # the middle of one
    ],
)
def test_every_single_entry_that_is_missing_is_noticed(missing: Link) -> None:
    links = [
        Link(LOG, 0, 3, 1, 2),
        Link(LOG, 0, 3, 2, 2),
        Link(LOG, 3, 9, 1, 1),
        Link(LOG, 9, 12, 1, 3),
        Link(LOG, 9, 12, 2, 3),
        Link(LOG, 9, 12, 3, 3),
    ]
    chain = Chain()
    seen = read_all(chain, *(link for link in links if link != missing))
    assert "hole" in seen


def test_an_end_that_is_missing_is_noticed_at_the_end() -> None:
    chain = Chain()
    read_all(chain, Link(LOG, 0, 3))
    assert chain.at_end({LOG: 3}) == ""
    assert chain.at_end({LOG: 3, OTHER: 0}) == ""
    assert "it wrote up to 9" in chain.at_end({LOG: 9})
    assert "it wrote up to 2" in chain.at_end({LOG: 3, OTHER: 2})


def test_after_an_excuse_the_next_entry_is_taken_as_it_comes_once() -> None:
    chain = Chain({LOG: Place(3)}, excused={LOG})
    links = [Link(LOG, 20, 25), Link(LOG, 30, 35)]
    assert read_all(chain, *links) == ["next", "hole"]


def test_an_origin_that_the_stream_forgot_is_forgotten() -> None:
    chain = Chain({LOG: Place(3), OTHER: Place(5)})
    assert chain.at_end({OTHER: 5}) == ""
    assert set(chain.places) == {OTHER}


def test_a_cursor_survives_being_stored() -> None:
    cursor = FeedCursor("abc", "17-3", {LOG: Place(3, 2, 5)})
    assert FeedCursor.decoded(cursor.encoded()) == cursor
    with pytest.raises(InvalidItem):
        FeedCursor.decoded(b"17-3")
