"""Planted bugs: each one line of the engine made wrong, and the tests that have to notice.

A mutant names the room it lives in, not the module: its text must occur there exactly once, so that
moving a line does not silently retire its mutant.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["MUTANTS", "Mutant"]


@dataclass(frozen=True)
class Mutant:
    """One wrong line.

    Attributes:
        name: What is wrong, as a sentence.
        room: File or directory of the package that holds the line.
        before: The line as it is, or a part of it.
        after: The line as it must never be.
        tests: Files or tests that fail then; run together, in this order.
        server: Whether they start a server.
    """

    name: str
    room: str
    before: str
    after: str
    tests: tuple[str, ...]
    server: bool = False

    @property
    def deep(self) -> bool:
        """Whether it is in the core or in the log."""
        return self.room.startswith(("core", "wal"))


ORDER = "tests/scenarios/test_order_of_lines.py"
COHERENCE = "tests/coherence/test_not_heard.py"
WRITERS = "tests/stores/test_sql.py::TestSoleWriter"
LOG = "tests/wal/test_log.py"
CONTRACT = "tests/wal/test_log_contract.py::TestWriteAheadLog"
PASSIVE = "tests/scenarios/test_passive.py"
SWEEP = "tests/stores/test_redis_sweep.py"
GUARD = "tests/stores/test_sql_guard.py::TestSqlArchiveWithoutATree"
TREE = "tests/stores/test_sql_guard.py"
SOLE = "tests/stores/test_sql.py::TestSoleWriter"
POWER = (
    "tests/faults/test_power_cut.py"
    "::test_what_was_acknowledged_is_there_after_a_power_cut_at_any_moment"
)
EMBEDDED = "tests/scenarios/test_engine_embedded.py"
OUTAGES = "tests/scenarios/test_engine_outages.py"

MUTANTS = (
    # -- the way in
    Mutant(
        "a write is acknowledged before it is committed",
        "flow/writer.py",
        "            self._log.commit(last, len(changes))\n",
        "",
        (f"{ORDER}::test_an_acknowledgement_comes_after_the_commit",),
    ),
    Mutant(
        "the log says that it committed and did not",
        "wal",
        "                    self._write_tail()\n        if self._failed:",
        "                    self._wrote(self._tail.last)\n        if self._failed:",
        (f"{CONTRACT}::test_what_was_committed_survives",),
    ),
    Mutant(
        "the filter is told after the append",
        "flow/writer.py",
        "                self._filters.add(drafts[0].id)\n",
        "                pass\n",
        (f"{ORDER}::test_the_filter_is_told_before_the_log",),
    ),
    Mutant(
        "limits are not checked",
        "flow/writer.py",
        "        check_id(change.id)\n        if change.state",
        "        if change.state",
        (f"{EMBEDDED}::test_bad_input_is_refused_before_anything_is_accepted",),
    ),
    Mutant(
        "back-pressure lets everybody in",
        "flow/writer.py",
        "if level is BackpressureLevel.CRITICAL:\n            raise",
        "if False:\n            raise",
        (f"{ORDER}::test_limits_are_checked_before_anything_is_written",),
    ),
    Mutant(
        "compare-and-set is written without a look at who was faster",
        "flow/atomic.py",
        "(draft,), durability, timeout_s, unless_after=unless_after\n            )",
        "(draft,), durability, timeout_s\n            )",
        (f"{ORDER}::test_a_decision_is_not_written_over_a_change_it_did_not_see",),
    ),
    Mutant(
        "compare-and-set does not see what is not committed yet",
        "wal",
        "in self._tail.between(after, self._tail.last):\n            if change is not None",
        "in self._tail.between(after, self._head):\n            if change is not None",
        (f"{CONTRACT}::test_a_condition_sees_what_is_not_committed_yet",),
    ),
    # -- durability
    Mutant(
        "fsync is skipped at durability fsync",
        "wal/file.py",
        "            os.fdatasync(self._sync_fd)\n",
        "",
        (f"{POWER}[fsync-60000]",),
    ),
    Mutant(
        "the log is not synced before an archived write is acknowledged",
        "flow/writer.py",
        "        self._log.sync(position)\n        timeout_s",
        "        timeout_s",
        (f"{POWER}[archive-60000]",),
    ),
    Mutant(
        "a failed fsync is tried again",
        "wal",
        "                self._fatal = exc\n",
        "",
        (f"{LOG}::test_a_failed_sync_is_final",),
    ),
    Mutant(
        "a full disk is not told to who waits",
        "wal",
        "                    self._failed[position] = exc\n",
        "",
        (f"{LOG}::test_a_full_disk_takes_back_who_waits_and_keeps_what_was_acknowledged",),
    ),
    Mutant(
        "positions that the disk lost are given out again",
        "wal",
        "self._lost = max(0, noted - last)",
        "self._lost = 0",
        (f"{LOG}::test_synced_positions_that_the_disk_lost_are_told_and_never_reused",),
    ),
    Mutant(
        "the version floor is forgotten at a restart",
        "wal",
        'int(self._file.meta("version_ceiling"))',
        "0",
        (f"{LOG}::test_versions_grow_even_if_the_clock_goes_back_over_a_restart",),
    ),
    Mutant(
        "a record's checksum is not compared",
        "core/codec.py",
        "xxh3_64_intdigest(body, seed) != int.from_bytes",
        "int.from_bytes(record[:8], 'little') != int.from_bytes",
        (f"{LOG}::test_a_flipped_bit_in_a_record_is_told_with_its_position",),
    ),
    # -- cursors and release
    Mutant(
        "a cursor moves before the delivery",
        "flow/follower.py",
        "            self._deliver(batch.changes, part)\n",
        "            self._log.advance(self.name, part.last)\n"
        "            self._deliver(batch.changes, part)\n",
        (f"{ORDER}::test_a_cursor_moves_after_the_destination_has_accepted",),
    ),
    Mutant(
        "a cursor goes back",
        "wal",
        "        if position <= self.of(name):\n            return False\n",
        "",
        (f"{LOG}::test_cursors_never_go_back",),
    ),
    Mutant(
        "the log lets go above the lowest cursor",
        "wal",
        "return min(self._positions.values(), default=0)",
        "return max(self._positions.values(), default=0)",
        (f"{LOG}::test_released_frames_leave_the_file_and_unreleased_ones_stay",),
    ),
    Mutant(
        "an overlay entry leaves at the archive's cursor alone",
        "wal",
        "(archive, *overlay)",
        "(archive,)",
        (f"{ORDER}::test_the_overlay_answers_until_l2_too_has_passed",),
    ),
    Mutant(
        "an older change replaces a newer one in the overlay",
        "wal/overlay.py",
        "type(known) is int or known.version < change.version",
        "type(known) is int or known.version != change.version",
        ("tests/wal/test_overlay.py::test_an_older_change_never_replaces_a_newer_one",),
    ),
    Mutant(
        "the overlay is not rebuilt when a log is opened",
        "wal",
        "                    self.overlay.put_position(change.id, position)\n",
        "",
        (f"{CONTRACT}::test_what_was_committed_survives",),
    ),
    Mutant(
        "a follower takes the older of two changes of an id",
        "core/batcher.py",
        "            if known.version < change.version:\n",
        "            if known.version > change.version:\n",
        (f"{ORDER}::test_a_delete_overtakes_the_put_that_waits_beside_it",),
    ),
    Mutant(
        "a tombstone is dropped in coalescing",
        "core/batcher.py",
        "        if change is not None:\n            known",
        "        if change is not None and change.content is not None:\n            known",
        (f"{ORDER}::test_a_delete_overtakes_the_put_that_waits_beside_it",),
    ),
    Mutant(
        "a dead letter is not written before its follower passes it",
        "flow/follower.py",
        "        self._log.dead_letter(self.name, position, change, error)\n",
        "",
        (f"{ORDER}::test_a_dead_letter_is_written_before_its_follower_passes_it",),
    ),
    Mutant(
        "a refused batch loses its second half",
        "flow/follower.py",
        "            self._deliver(changes[middle:], part)\n",
        "",
        (f"{ORDER}::test_a_refused_batch_is_halved_and_every_neighbour_arrives",),
    ),
    # -- reading
    Mutant(
        "a late answer is kept in L1 though a write overtook it",
        "flow/reader.py",
        "        if not flight.overtaken:\n            self._l1.put(change)\n"
        "            if flight.overtaken:",
        "        if True:\n            self._l1.put(change)\n            if False:",
        (f"{ORDER}::test_a_late_answer_of_the_archive_does_not_hide_a_newer_write",),
    ),
    Mutant(
        "a late copy goes to L2 though a write overtook it",
        "flow/reader.py",
        "if not flight.overtaken and self._l2 is not None and self._l2.usable:",
        "if self._l2 is not None and self._l2.usable:",
        (f"{ORDER}::test_a_late_copy_does_not_bring_a_deleted_item_back_to_l2",),
    ),
    Mutant(
        "an error is told as an absence",
        "flow/reader.py",
        "        if not asked:\n            return\n",
        "        if not asked or not self._l3.alive():\n            return\n",
        (f"{OUTAGES}::test_an_error_is_never_an_absence",),
    ),
    Mutant(
        "an older change replaces a newer one in L1",
        "stores/memory.py",
        "known.change.version >= change.version",
        "known.change.version == change.version",
        ("tests/stores/test_memory.py::test_an_older_version_never_replaces_a_newer_one",),
    ),
    # -- the tiers
    Mutant(
        "the archive's statement replaces a row by another of the same version",
        "stores/sql/sqlite.py",
        "WHERE excluded.version > version",
        "WHERE excluded.version >= version",
        (f"{GUARD}::test_only_a_larger_version_replaces_a_row[sqlite]",),
    ),
    Mutant(
        "the archive's statement replaces a newer row by an older one",
        "stores/sql/sqlite.py",
        "WHERE excluded.version > version",
        "WHERE excluded.version <> version",
        (f"{GUARD}::test_batches_in_any_order_and_number_end_alike[sqlite]",),
    ),
    Mutant(
        "a batch with a tree takes a row of the same version",
        "stores/sql/merkle_batch.py",
        "        elif row[1] < change.version:\n",
        "        elif row[1] <= change.version:\n",
        (f"{TREE}::test_a_change_that_wins_nothing_leaves_the_tree_as_it_was[sqlite]",),
    ),
    Mutant(
        "a batch may be written by an engine that was taken for dead",
        "stores/sql/store.py",
        "        if not self._writers.fence(connection):\n            raise _Fenced\n",
        "        self._writers.fence(connection)\n",
        (f"{SOLE}::test_a_dead_writer_is_removed_and_can_never_write_again[sqlite]",),
    ),
    Mutant(
        "L2 replaces a value by another of the same version",
        "stores/redis/scripts.py",
        "num(sub(value, 11, 20)) > num(sub(old, 11, 20))",
        "num(sub(value, 11, 20)) >= num(sub(old, 11, 20))",
        ("tests/stores/test_redis.py::TestRedis::test_the_larger_version_wins_in_any_order",),
        server=True,
    ),
    Mutant(
        "a sweep takes the keys of the epoch in force",
        "stores/redis/sweep.py",
        "if of != name]",
        "if True]",
        (f"{SWEEP}::test_keys_of_abandoned_epochs_go_and_all_others_stay[server]",),
        server=True,
    ),
    Mutant(
        "L2 is read again before its epoch is renewed",
        "flow/l2_delivery.py",
        "        abandon_keys(self._log)\n        self._tier.renew = self._renew\n",
        "        abandon_keys(self._log)\n",
        (f"{ORDER}::test_l2_is_not_read_before_its_keys_are_abandoned_even_over_a_crash",
         f"{OUTAGES}::test_l2_that_falls_too_far_behind_is_cut_off_and_its_old_values_never_read"),
    ),
    Mutant(
        "that L2 was cut off is forgotten by a crash",
        "flow/l2_delivery.py",
        'log.put_snapshot(_CUT, b"1")',
        "pass",
        (f"{ORDER}::test_l2_is_not_read_before_its_keys_are_abandoned_even_over_a_crash",
         f"{ORDER}::test_a_write_while_l2_was_not_configured_is_not_hidden_by_what_l2_kept"),
    ),
    Mutant(
        "an engine that is cut off from the feed says nothing",
        "flow/keeper.py",
        "                self._announce()\n",
        "",
        (f"{COHERENCE}::test_what_an_engine_cannot_tell_is_seen_while_it_is_cut_off",),
    ),
    Mutant(
        "an engine leaves nothing behind where its last word was not heard",
        "flow/keeper.py",
        "self._say(self._standing.at_the_end())",
        "pass",
        (f"{COHERENCE}::test_an_engine_that_closes_without_its_last_word_leaves_it_with_the_archive",),
    ),
    Mutant(
        "L2 is believed while a writer cannot reach it",
        "flow/coherence.py",
        "self._reader.l2_doubted = self._missed_words and not self._alone()",
        "self._reader.l2_doubted = False",
        (f"{COHERENCE}::test_what_an_engine_cannot_tell_is_seen_while_it_is_cut_off",),
    ),
    Mutant(
        "an own write that waits for L2 hides what others wrote",
        "flow/reader.py",
        "return type(own) is Change and own.version < self._heard.version(own.id)",
        "return False",
        (f"{COHERENCE}::test_an_own_write_that_waits_for_l2_hides_nothing_that_others_wrote",),
    ),
    Mutant(
        "an older row of the archive hides what L2 has already",
        "flow/reader.py",
        "if row is not None and row.version > found[change_id].version:",
        "if row is not None:",
        (f"{COHERENCE}::test_an_answer_of_l2_that_the_archive_does_not_have_yet_counts_while_somebody_is_cut_off",),
    ),
    Mutant(
        "a writer that leaves with something untold is not counted",
        "stores/sql/lease.py",
        "                if self._standing is Standing.UNTOLD:\n",
        "                if False:\n",
        (f"{WRITERS}::test_who_leaves_with_something_untold_is_counted_as_lost[sqlite]",),
    ),
    Mutant(
        "the lease is counted from the answer on",
        "flow/keeper.py",
        "            self._lease_until = asked + self._lease_ttl_s\n",
        "            self._lease_until = self._clock.monotonic() + self._lease_ttl_s\n",
        (f"{ORDER}::test_the_lease_is_counted_from_before_it_was_asked_for",),
    ),
    Mutant(
        "a filter is trusted over a change of the lease",
        "flow/keeper.py",
        '                self._lose("the lease is new")\n',
        "                pass\n",
        (f"{ORDER}::test_a_new_lease_makes_the_filter_doubt_itself",),
    ),
    Mutant(
        "tombstones go while an older change waits",
        "flow/keeper.py",
        "self._clock.now_ms() - int(self._retention_s * 1000), self._oldest_pending_ms()",
        "self._clock.now_ms() - int(self._retention_s * 1000), self._clock.now_ms()",
        (f"{ORDER}::test_tombstones_are_kept_while_an_older_change_waits",),
    ),
    Mutant(
        "a command that only looks takes the lease",
        "house/house.py",
        "        if not self.config.passive:\n            with contextlib",
        "        if True:\n            with contextlib",
        (f"{PASSIVE}::test_a_passive_engine_asks_for_nothing_that_others_would_notice",),
    ),
)  # fmt: skip
