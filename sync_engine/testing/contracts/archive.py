"""What every archive has to do: `ports.ArchiveStore` as tests."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from sync_engine.core.item import Change, Route
from sync_engine.ports import ArchiveStore
from sync_engine.testing.contracts.archive_data import HOSTILE_IDS, MakeArchive, put, tombstone
from sync_engine.testing.contracts.archive_writers import EngineNumberContract, SoleWriterContract
from sync_engine.testing.manual import ManualClock

__all__ = [
    "HOSTILE_IDS",
    "ArchiveContract",
    "EngineNumberContract",
    "MakeArchive",
    "SoleWriterContract",
]


class ArchiveContract:
    """Subclass it, and give it a fixture `make_archive` (a `MakeArchive`) and one `clock`."""

    @pytest.fixture
    def archive(self, make_archive: MakeArchive) -> Iterator[ArchiveStore]:
        """An attached, empty archive."""
        archive = make_archive()
        archive.attach()
        yield archive
        archive.close()

    # -- what goes in comes out -------------------------------------------------------------------

    def test_everything_about_a_change_comes_back(self, archive: ArchiveStore) -> None:
        """Each column is stored exactly, the routes included."""
        change = Change(
            "k", 1 << 62, b"\0\xff'\\\n%", 1, "st\u00e4te", 1 << 50, 3, "00-" + "a" * 32 + "-01"
        )
        bare = Change("only-l3", 1, b"", 0, "default", 0, int(Route.L3), "")

        archive.apply([change, bare])

        assert archive.get_many(["k", "only-l3"]) == {"k": change, "only-l3": bare}

    @pytest.mark.parametrize("size", [0, 1, 255, 65_536, 1 << 20])
    def test_content_of_any_bytes_and_size_comes_back(
        self, archive: ArchiveStore, size: int
    ) -> None:
        """No size is special, and no byte is."""
        content = random.Random(size).randbytes(size)

        archive.apply([Change("k", 1, content)])

        assert archive.get_many(["k"])["k"].content == content

    def test_hostile_ids_stay_apart_and_are_plain_data(self, archive: ArchiveStore) -> None:
        """Ids are compared bytewise, whatever the database's collation thinks."""
        changes = [put(id, number) for number, id in enumerate(HOSTILE_IDS, 1)]

        archive.apply(changes)

        assert archive.get_many(HOSTILE_IDS) == {change.id: change for change in changes}
        assert archive.count() == len(HOSTILE_IDS)
        assert archive.scan(limit=1000) == sorted(changes, key=lambda change: change.id.encode())

    def test_absent_ids_are_left_out(self, archive: ArchiveStore) -> None:
        """One absent id is an empty answer, not an error."""
        archive.apply([put("a", 1)])

        assert archive.get_many(["b"]) == {}
        assert archive.get_many([]) == {}
        assert set(archive.get_many(["a", "b", "a"])) == {"a"}

    def test_more_ids_than_fit_into_one_query(self, archive: ArchiveStore) -> None:
        """Both directions are cut into parts that no caller sees."""
        changes = [put(f"id-{number:05}", number + 1) for number in range(2345)]

        archive.apply(changes)

        assert archive.get_many([change.id for change in changes]) == {
            change.id: change for change in changes
        }

    def test_an_empty_batch_is_fine(self, archive: ArchiveStore) -> None:
        """And changes nothing."""
        before = archive.info().generation

        archive.apply([])

        assert archive.info().generation == before

    # -- the larger version wins ------------------------------------------------------------------

    def test_only_a_larger_version_replaces_a_row(self, archive: ArchiveStore) -> None:
        """Every column keeps together with the version it came with."""
        newest = put("k", 5, b"five", state="s5", content_type=1)
        archive.apply([newest])

        archive.apply([put("k", 4, b"four", state="s4", expires_at_ms=9)])
        archive.apply([put("k", 5, b"other five", state="s5b")])
        assert archive.get_many(["k"]) == {"k": newest}

        archive.apply([put("k", 6, b"six")])
        assert archive.get_many(["k"]) == {"k": put("k", 6, b"six")}

    def test_batches_in_any_order_and_number_end_alike(self, archive: ArchiveStore) -> None:
        """Repeating and reordering are harmless: the model is a dict of the largest versions."""
        rng = random.Random(7)
        changes = [
            tombstone(f"k{rng.randrange(30)}", version)
            if rng.random() < 0.2
            else put(f"k{rng.randrange(30)}", version)
            for version in range(1, 400)
        ]
        newest: dict[str, Change] = {}
        for change in changes:
            newest[change.id] = change
        rng.shuffle(changes)

        for start in range(0, len(changes), 20):
            batch = changes[start : start + 20]
            archive.apply(batch)
            if rng.random() < 0.3:
                archive.apply(batch)

        assert archive.get_many(list(newest)) == newest

    def test_one_id_twice_in_a_batch_counts_with_its_newest(self, archive: ArchiveStore) -> None:
        """Databases refuse or mix up such a statement."""
        archive.apply([put("k", 2, b"two"), put("k", 3, b"three"), put("k", 1, b"one")])

        assert archive.get_many(["k"]) == {"k": put("k", 3, b"three")}

    # -- deletes ----------------------------------------------------------------------------------

    def test_a_tombstone_is_a_row_that_older_puts_do_not_undo(self, archive: ArchiveStore) -> None:
        """No late write resurrects what was deleted."""
        archive.apply([put("k", 1), tombstone("never-there", 2)])
        archive.apply([tombstone("k", 3)])

        archive.apply([put("k", 2)])

        found = archive.get_many(["k", "never-there"])
        assert found == {"k": tombstone("k", 3), "never-there": tombstone("never-there", 2)}
        assert archive.count() == 0
        assert archive.scan() == []
        assert [c.id for c in archive.scan(tombstones=True)] == ["k", "never-there"]

        archive.apply([put("k", 4)])
        assert archive.scan() == [put("k", 4)]

    def test_what_is_not_archived_supersedes_an_older_row_only(self, archive: ArchiveStore) -> None:
        """A cache-only write hides what the archive had, and leaves no row where there was none."""
        archive.apply([put("old", 1), put("newer", 9), put("plain", 1)])

        l2 = int(Route.L2)
        archive.apply(
            [put(id, 5, routes=l2) for id in ("old", "newer", "absent")] + [put("plain", 5)]
        )

        found = archive.get_many(["old", "newer", "absent", "plain"])
        assert set(found) == {"old", "newer", "plain"}
        assert found["old"].content is None
        assert found["old"].version == 5
        assert found["newer"] == put("newer", 9)
        assert found["plain"] == put("plain", 5)

    def test_purge_drops_old_tombstones_and_nothing_else(self, archive: ArchiveStore) -> None:
        """Bounded by version and by number."""
        archive.apply([tombstone(f"t{number}", number) for number in range(1, 11)])
        archive.apply([put("live", 1), tombstone("back", 2)])
        archive.apply([put("back", 3)])

        assert archive.purge_tombstones(below_version=6, limit=3) == 3
        assert archive.purge_tombstones(below_version=6, limit=100) == 2
        assert archive.purge_tombstones(below_version=6, limit=100) == 0

        left = {change.id for change in archive.scan(tombstones=True)}
        assert left == {"live", "back", "t6", "t7", "t8", "t9", "t10"}

    # -- lists and counts -------------------------------------------------------------------------

    def test_pages_by_key_agree_with_sorted_bytes(self, archive: ArchiveStore) -> None:
        """The oracle is Python's order of UTF-8 bytes, for every prefix and page size."""
        rng = random.Random(11)
        letters = ["a", "b", "_", "%", "\xff", "\u00e9", "\U0010ffff", "z", "A", "\U0001f600"]
        ids = {"".join(rng.choices(letters, k=rng.randint(1, 4))) for _ in range(300)}
        archive.apply([put(id, 1, state=f"s{len(id) % 2}") for id in ids])

        for prefix in ["", *letters, "a_", "%\xff", "\U0010ffff\U0010ffff", "absent"]:
            for state in (None, "s0"):
                expected = sorted(
                    (
                        id
                        for id in ids
                        if id.startswith(prefix) and (state is None or len(id) % 2 == 0)
                    ),
                    key=str.encode,
                )
                assert _paged(archive, prefix, state, 7) == expected
                assert archive.count(prefix=prefix, state=state) == len(expected)

    def test_a_scan_may_begin_anywhere(self, archive: ArchiveStore) -> None:
        """`after` may be absent, below the prefix, or beyond it."""
        archive.apply([put(id, 1) for id in ("a", "b1", "b2", "b3", "c")])

        def ids(after: str) -> list[str]:
            return [change.id for change in archive.scan(after=after, prefix="b")]

        assert ids("a") == ["b1", "b2", "b3"]
        assert ids("b") == ["b1", "b2", "b3"]
        assert ids("b1") == ["b2", "b3"]
        assert ids("b25") == ["b3"]
        assert ids("b3") == []
        assert ids("c") == []

    def test_keys_only_leaves_contents_out(self, archive: ArchiveStore) -> None:
        """All else is told."""
        archive.apply([put("k", 3, b"long", state="s"), tombstone("t", 4)])

        listed = archive.scan(keys_only=True, tombstones=True)

        assert [(c.id, c.version, c.content, c.state) for c in listed] == [
            ("k", 3, b"", "s"),
            ("t", 4, None, "default"),
        ]

    def test_expired_rows_are_not_counted(self, archive: ArchiveStore, clock: ManualClock) -> None:
        """The deadline is the item's own, by the engine's clock."""
        now_ms = clock.now_ms()
        archive.apply([put("k", 1), put("soon", 1, expires_at_ms=now_ms + 1000)])

        assert archive.count() == 2
        clock.advance(1.5)
        assert archive.count() == 1

    # -- identity ---------------------------------------------------------------------------------

    def test_identity_stays_and_generation_grows_with_every_batch(
        self, make_archive: MakeArchive
    ) -> None:
        """Whoever writes: a filter snapshot is bound to both."""
        first, second = make_archive(), make_archive()
        before = first.attach()
        assert second.attach().uuid == before.uuid

        first.apply([put("a", 1)])
        between = first.info().generation
        assert first.info().others == before.others
        second.apply([put("b", 1)])
        second.apply([put("b", 1)])
        after = first.info()

        assert before.generation < between
        assert after.generation == between + 2
        assert after.uuid == before.uuid
        assert after.others == before.others + 2
        second.close()
        assert first.info().generation == after.generation
        assert first.info().others == after.others
        first.close()

    def test_close_is_safe_twice_before_attach_and_attach_opens_again(
        self, make_archive: MakeArchive
    ) -> None:
        """The rows outlive the connections."""
        archive = make_archive()
        archive.close()
        archive.attach()
        archive.apply([put("a", 1)])
        archive.close()
        archive.close()

        archive.attach()

        assert archive.get_many(["a"]) == {"a": put("a", 1)}
        archive.apply([put("a", 2)])
        assert archive.ping() >= 0
        assert archive.stats()["corrupt"] == 0
        archive.close()

    # -- writing over exactly what was seen -------------------------------------------------------

    def test_a_conditional_write_replaces_the_row_that_was_seen(
        self, archive: ArchiveStore
    ) -> None:
        archive.apply([put("k", 5)])
        assert archive.put_if(put("k", 7), 5) is None
        assert archive.get_many(["k"]) == {"k": put("k", 7)}

    def test_a_conditional_write_leaves_another_row_alone_and_returns_it(
        self, archive: ArchiveStore
    ) -> None:
        archive.apply([put("k", 5)])
        for expected in (0, 4, 6):
            assert archive.put_if(put("k", 7), expected) == put("k", 5)
        assert archive.get_many(["k"]) == {"k": put("k", 5)}

    @pytest.mark.parametrize("id", HOSTILE_IDS)
    def test_a_conditional_write_expects_no_row_as_zero(
        self, archive: ArchiveStore, id: str
    ) -> None:
        assert archive.put_if(put(id, 7), 3) == tombstone(id, 0)  # nothing is there
        assert archive.put_if(put(id, 7), 0) is None
        assert archive.put_if(put(id, 8), 0) == put(id, 7)
        assert archive.get_many([id]) == {id: put(id, 7)}

    def test_to_a_conditional_write_a_tombstone_is_a_row(self, archive: ArchiveStore) -> None:
        archive.apply([put("k", 5)])
        archive.apply([tombstone("k", 6)])
        found = archive.put_if(put("k", 9), 0)
        assert found is not None
        assert (found.version, found.content) == (6, None)
        assert archive.put_if(put("k", 9), 6) is None

    def test_a_conditional_deletion_is_a_tombstone(self, archive: ArchiveStore) -> None:
        archive.apply([put("k", 5)])
        assert archive.put_if(tombstone("k", 6), 5) is None
        (row,) = archive.get_many(["k"]).values()
        assert (row.version, row.content) == (6, None)

    def test_a_conditional_write_that_is_repeated_was_written(self, archive: ArchiveStore) -> None:
        """Its answer was lost."""
        for _ in range(3):
            assert archive.put_if(put("k", 7), 0) is None
        assert archive.get_many(["k"]) == {"k": put("k", 7)}

    def test_a_conditional_write_never_goes_back_in_version(self, archive: ArchiveStore) -> None:
        archive.apply([put("k", 9)])
        assert archive.put_if(put("k", 7), 9) == put("k", 9)
        assert archive.get_many(["k"]) == {"k": put("k", 9)}

    def test_a_conditional_write_counts_as_a_batch(self, archive: ArchiveStore) -> None:
        before, own = archive.info().generation, archive.stats()["batches"]
        archive.put_if(put("k", 7), 0)
        assert archive.info().generation == before + 1
        assert archive.stats()["batches"] == own + 1

    def test_of_many_conditional_writes_one_wins(self, make_archive: MakeArchive) -> None:
        """Rows that are not there yet are fought for as hard as those that are."""
        clients = [make_archive() for _ in range(4)]
        for client in clients:
            client.attach()
        wins: list[tuple[str, int]] = []

        def race(number: int) -> None:
            for turn in range(10):
                id = f"k{turn % 3}"
                known = clients[number].get_many([id]).get(id)
                version = turn * 100 + number + 1
                seen = 0 if known is None else known.version
                if version > seen and clients[number].put_if(put(id, version), seen) is None:
                    wins.append((id, seen))

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(race, range(4)))
        assert len(wins) == len(set(wins))
        assert wins
        for client in clients:
            client.close()


def _paged(archive: ArchiveStore, prefix: str, state: str | None, limit: int) -> list[str]:
    ids: list[str] = []
    after = None
    while True:
        page = archive.scan(after=after, prefix=prefix, state=state, limit=limit, keys_only=True)
        ids += [change.id for change in page]
        if len(page) < limit:
            return ids
        after = ids[-1]
