"""What every archive has to do for the engines that share it: lease, and engine numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from sync_engine.core.version import ENGINE_NUMBER_MAX
from sync_engine.errors import StoreUnavailable
from sync_engine.ports import ArchiveStore, Standing
from sync_engine.testing.contracts.archive_data import MakeArchive, put
from sync_engine.testing.manual import ManualClock

__all__ = ["EngineNumberContract", "SoleWriterContract"]


class _TwoEngines:
    """Contracts between two engines on one archive."""

    TTL_S = 9.0

    @pytest.fixture
    def two(self, make_archive: MakeArchive) -> Iterator[tuple[ArchiveStore, ArchiveStore]]:
        """Two engines on one archive."""
        first, second = make_archive(), make_archive()
        first.attach()
        second.attach()
        yield first, second
        second.close()
        first.close()


class SoleWriterContract(_TwoEngines):
    """The lease: its holder may rely on being the only writer for the duration it asked for.

    Subclass it like `ArchiveContract`; both engines' views share the fixture `clock`.
    """

    def test_the_only_writer_gets_the_lease_and_keeps_its_epoch(
        self, two: tuple[ArchiveStore, ArchiveStore]
    ) -> None:
        """The same epoch again: nobody else wrote in between."""
        first, _ = two

        epoch = first.lease("one", self.TTL_S)
        first.apply([put("a", 1)])

        assert epoch > 0
        assert first.lease("one", self.TTL_S) == epoch
        first.apply([put("a", 2)])

    def test_a_newcomer_writes_only_after_the_holder_was_told(
        self, two: tuple[ArchiveStore, ArchiveStore]
    ) -> None:
        """The holder stops saying *absent* before the first foreign row is there."""
        first, second = two
        assert first.lease("one", self.TTL_S)

        with pytest.raises(StoreUnavailable):
            second.apply([put("b", 1)])
        assert first.get_many(["b"]) == {}

        assert not first.lease("one", self.TTL_S)
        with pytest.raises(StoreUnavailable):  # told, yet perhaps still answering
            second.apply([put("b", 1)])
        first.release_lease("one")
        second.apply([put("b", 1)])
        first.apply([put("a", 1)])

    def test_a_silent_holder_is_passed_over_after_its_whole_duration(
        self, two: tuple[ArchiveStore, ArchiveStore], clock: ManualClock
    ) -> None:
        """Counted from when the newcomer saw the lease: the holder's own count began earlier."""
        first, second = two
        assert first.lease("one", self.TTL_S)
        clock.advance(self.TTL_S - 1)

        with pytest.raises(StoreUnavailable):
            second.apply([put("b", 1)])
        clock.advance(self.TTL_S - 0.1)
        with pytest.raises(StoreUnavailable):
            second.apply([put("b", 1)])
        clock.advance(0.2)
        second.apply([put("b", 1)])

        assert not first.lease("one", self.TTL_S)

    def test_a_renewal_starts_the_newcomers_wait_anew(
        self, two: tuple[ArchiveStore, ArchiveStore], clock: ManualClock
    ) -> None:
        """The wall clock has no say, however it jumps."""
        first, second = two
        assert first.lease("one", self.TTL_S)
        with pytest.raises(StoreUnavailable):
            second.apply([put("b", 1)])

        clock.jump(1e6)
        with pytest.raises(StoreUnavailable):
            second.apply([put("b", 1)])
        clock.jump(-2e6)
        with pytest.raises(StoreUnavailable):
            second.apply([put("b", 1)])
        assert second.get_many(["b"]) == {}

    def test_a_dead_writer_is_removed_and_can_never_write_again(
        self, two: tuple[ArchiveStore, ArchiveStore], clock: ManualClock
    ) -> None:
        """A frozen engine that wakes up is fenced in its very transaction."""
        first, second = two
        second.lease("two", self.TTL_S)
        second.release_lease("two")
        second.apply([put("b", 1)])  # registered, admitted, and then frozen
        assert not first.lease("one", self.TTL_S)
        clock.advance(self.TTL_S - 0.1)
        assert not first.lease("one", self.TTL_S)
        clock.advance(0.2)

        assert first.lease("one", self.TTL_S)
        with pytest.raises(StoreUnavailable):
            second.apply([put("b", 2)])

        assert first.get_many(["b"]) == {"b": put("b", 1)}

    def test_a_living_writer_is_never_taken_for_dead(
        self, two: tuple[ArchiveStore, ArchiveStore], clock: ManualClock
    ) -> None:
        """Batches and asking for the lease are both signs of life."""
        first, second = two
        second.lease("two", self.TTL_S)
        second.release_lease("two")
        for version in range(1, 8):
            if version % 2:
                second.apply([put("b", version)])
            else:
                assert not second.lease("two", self.TTL_S)
            assert not first.lease("one", self.TTL_S)
            clock.advance(self.TTL_S * 0.7)

    def test_an_epoch_changes_when_somebody_else_could_write(
        self, two: tuple[ArchiveStore, ArchiveStore], clock: ManualClock
    ) -> None:
        """A holder that was away for long learns that its filter may miss rows."""
        first, second = two
        epoch = first.lease("one", self.TTL_S)
        with pytest.raises(StoreUnavailable):
            second.apply([put("b", 1)])
        clock.advance(self.TTL_S + 1)
        second.apply([put("b", 1)])
        second.close()

        again = first.lease("one", self.TTL_S)

        assert again
        assert again != epoch

    @pytest.fixture
    def three(self, make_archive: MakeArchive) -> Iterator[list[ArchiveStore]]:
        """Three writers, none of whom holds the lease."""
        stores = [make_archive() for _ in range(3)]
        for store in stores:
            store.attach()
        for _ in range(4):  # until the first one has given way, and all are writers
            self._visit(stores)
        yield stores
        for store in stores:
            store.close()

    def _visit(self, stores: Sequence[ArchiveStore]) -> None:
        for number, store in enumerate(stores):
            store.lease(f"owner-{number}", self.TTL_S)

    def test_a_death_is_known_to_all_who_are_left(
        self, three: list[ArchiveStore], clock: ManualClock
    ) -> None:
        """The dead may have written what they told nobody."""
        *living, dead = three
        dead.apply([put("a", 1)])  # the last that is heard of it
        self._visit(living)
        clock.advance(self.TTL_S / 2)
        self._visit(living)
        assert [store.info().lost for store in living] == [0, 0]

        clock.advance(self.TTL_S / 2)
        self._visit(living)
        assert [store.info().lost for store in living] == [1, 1]

        clock.advance(self.TTL_S / 2)
        self._visit(living)
        assert [store.info().lost for store in living] == [1, 1]  # once for each death

    def test_who_comes_back_has_lost_nothing(
        self, make_archive: MakeArchive, clock: ManualClock
    ) -> None:
        """What the earlier process left untold is in its log, which the next one has."""
        earlier, other, later = make_archive(), make_archive(), make_archive()
        for store in (earlier, other, later):
            store.attach()
        earlier.lease("one", self.TTL_S, steal=True)
        earlier.announce(Standing.UNTOLD)
        later.lease("one", self.TTL_S, steal=True)
        assert other.info().lost == 0
        assert other.info().untold == 0
        later.close()
        other.close()
        earlier.close()

    def test_what_a_writer_could_not_tell_is_known_to_the_others_until_it_could(
        self, three: list[ArchiveStore]
    ) -> None:
        first, second, third = three
        first.announce(Standing.UNTOLD)
        assert [store.info().untold for store in three] == [0, 1, 1]
        second.announce(Standing.UNTOLD)
        self._visit(three)
        assert [store.info().untold for store in three] == [1, 1, 2]
        assert [store.info().uncached for store in three] == [1, 1, 2]

        first.announce(Standing.SEEN)
        second.announce(Standing.UNCACHED)
        assert [store.info().untold for store in three] == [0, 0, 0]
        assert [store.info().uncached for store in three] == [1, 0, 1]
        first.close()
        second.close()
        assert third.info().lost == 0

    def test_who_leaves_with_something_untold_is_counted_as_lost(
        self, three: list[ArchiveStore]
    ) -> None:
        first, second, third = three
        first.apply([put("a", 1)])
        first.announce(Standing.UNTOLD)
        first.close()
        assert [store.info().untold for store in (second, third)] == [0, 0]
        assert [store.info().lost for store in (second, third)] == [1, 1]

    def test_the_announcement_of_one_who_is_no_writer_yet_stands(
        self, make_archive: MakeArchive
    ) -> None:
        first, second = make_archive(), make_archive()
        first.attach()
        second.attach()
        first.announce(Standing.UNTOLD)
        assert second.info().untold == 1
        first.apply([put("a", 1)])
        assert second.info().untold == 1
        first.close()
        assert second.info().lost == 1
        second.close()

    def test_a_reader_disturbs_nobody(self, two: tuple[ArchiveStore, ArchiveStore]) -> None:
        """Who only reads does not register."""
        first, second = two
        epoch = first.lease("one", self.TTL_S)

        second.get_many(["a"])
        second.scan()
        second.count()
        second.info()

        assert first.lease("one", self.TTL_S) == epoch

    def test_stealing_takes_over_what_the_same_owner_left_behind(
        self, two: tuple[ArchiveStore, ArchiveStore]
    ) -> None:
        """A restarted engine need not wait for itself; the old process stays fenced."""
        first, second = two
        assert first.lease("one", self.TTL_S)
        first.apply([put("a", 1)])

        assert second.lease("one", self.TTL_S, steal=True)
        second.apply([put("a", 2)])

        with pytest.raises(StoreUnavailable):
            first.apply([put("a", 3)])
        assert second.get_many(["a"]) == {"a": put("a", 2)}


class EngineNumberContract(_TwoEngines):
    """Engine numbers: versions of two logs are never equal.

    Subclass it like `ArchiveContract`.
    """

    def test_two_logs_that_want_one_number_get_two(
        self, two: tuple[ArchiveStore, ArchiveStore]
    ) -> None:
        """Who comes first has it, and who asks again keeps it."""
        first, second = two

        assert first.claim_number("log-a", 7) == 7
        other = second.claim_number("log-b", 7)

        assert other != 7
        assert 0 <= other <= ENGINE_NUMBER_MAX
        assert first.claim_number("log-a", 7) == 7
        assert second.claim_number("log-b", other) == other

    def test_a_claim_is_kept_while_its_engine_is_away(
        self, two: tuple[ArchiveStore, ArchiveStore], make_archive: MakeArchive
    ) -> None:
        """It goes on issuing versions: into its log."""
        first, second = two
        first.lease("one", self.TTL_S)
        assert first.claim_number("log-a", 7) == 7
        first.release_lease("one")
        first.close()

        assert second.lease("two", self.TTL_S)
        assert second.claim_number("log-b", 7) != 7

        again = make_archive()
        again.attach()
        assert again.claim_number("log-a", 7) == 7
        again.close()

    def test_what_the_archive_was_told_counts_and_not_what_is_wanted(
        self, two: tuple[ArchiveStore, ArchiveStore]
    ) -> None:
        """An engine that died before it noted its number is told of it."""
        first, second = two
        first.claim_number("log-a", 7)
        given = second.claim_number("log-b", 7)

        assert second.claim_number("log-b", 7) == given
        assert second.claim_number("log-b", 900) == given

    def test_claims_at_one_time_are_all_different(self, make_archive: MakeArchive) -> None:
        """Whoever begins together with others, too."""
        archives = [make_archive() for _ in range(4)]
        for archive in archives:
            archive.attach()

        def claim(number: int) -> list[int]:
            return [archives[number].claim_number(f"log-{number}-{n}", 5) for n in range(5)]

        with ThreadPoolExecutor(4) as pool:
            claimed = [number for numbers in pool.map(claim, range(4)) for number in numbers]
        for archive in archives:
            archive.close()

        assert len(set(claimed)) == 20
        assert 5 in claimed

    def test_where_all_are_held_the_one_not_renewed_for_the_longest_goes(
        self, two: tuple[ArchiveStore, ArchiveStore]
    ) -> None:
        """The logs of a thousand containers that are gone do not keep a new one out."""
        first, second = two
        count = ENGINE_NUMBER_MAX + 1
        given = [first.claim_number(f"log-{number}", number) for number in range(count)]
        assert given == list(range(count))
        assert first.claim_number("log-0", 0) == 0  # alive

        assert second.claim_number("newcomer", 500) == 1

        assert first.claim_number("log-1", 1) == 2  # it was alive after all, and is told
        assert second.claim_number("newcomer", 1) == 1

    def test_a_claim_disturbs_no_lease(self, two: tuple[ArchiveStore, ArchiveStore]) -> None:
        """Its holder has written nothing, and nobody else has."""
        first, _ = two
        epoch = first.lease("one", self.TTL_S)
        before = first.info().generation

        first.claim_number("log-a", 7)

        assert first.lease("one", self.TTL_S) == epoch
        assert first.info().generation == before

    def test_a_claim_of_another_engine_is_no_foreign_write(
        self, two: tuple[ArchiveStore, ArchiveStore]
    ) -> None:
        """Whether it is registered as a writer or not."""
        first, second = two
        second.lease("two", self.TTL_S)
        first.lease("one", self.TTL_S)
        for _ in range(2):
            second.claim_number("log-b", 7)
            first.lease("one", self.TTL_S)
        second.release_lease("two")
        second.close()
        second.attach()
        second.claim_number("log-b", 7)
        first.lease("one", self.TTL_S)

        assert first.stats().get("foreign_writes", 0) == 0
