"""Eviction policies choose the victims that they say they choose."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sync_engine.core.eviction import (
    POLICIES,
    Entry,
    EvictionPolicy,
    Lru,
    S3Fifo,
    Sieve,
    TanCurve,
    eviction_policy,
    tan_curve_multiplier,
    tan_curve_score,
)
from sync_engine.core.item import Change
from sync_engine.errors import ConfigError


def entry_of(id: str, cost: int = 100) -> Entry:
    return Entry(Change(id, 1, b""), cost)


def read(policy: EvictionPolicy, entry: Entry) -> None:
    if entry.mark < policy.mark_max:
        entry.mark += 1
    if policy.touch is not None:
        policy.touch(entry)


def evicted(policy: EvictionPolicy) -> str:
    victim = policy.evict(1.0)
    assert victim is not None
    assert victim.queue == 0
    return victim.change.id


def test_an_unknown_policy_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"s3-fifo.*'mru'"):
        eviction_policy("mru", 1000)


def test_lru_lets_the_least_recently_read_go() -> None:
    policy = Lru()
    entries = [entry_of(id) for id in "abc"]
    for entry in entries:
        policy.admit(entry)

    read(policy, entries[0])

    assert [evicted(policy) for _ in range(3)] == ["b", "c", "a"]


def test_lru_is_not_confused_by_reads_of_what_left() -> None:
    policy = Lru()
    entries = [entry_of(id) for id in "abc"]
    for entry in entries:
        policy.admit(entry)

    read(policy, entries[0])
    policy.forget(entries[0])

    assert [evicted(policy) for _ in range(2)] == ["b", "c"]


def test_sieve_passes_over_read_entries_once_and_keeps_their_place() -> None:
    policy = Sieve()
    entries = [entry_of(id) for id in "abcd"]
    for entry in entries:
        policy.admit(entry)
    read(policy, entries[0])
    read(policy, entries[2])

    first_round = [evicted(policy), evicted(policy)]
    policy.admit(entry_of("e"))

    assert first_round == ["b", "d"]
    assert [evicted(policy) for _ in range(3)] == ["e", "a", "c"]


def test_s3_fifo_lets_unread_newcomers_go_before_the_proven() -> None:
    policy = S3Fifo(1000)  # a tenth for newcomers: one entry
    proven = entry_of("proven")
    policy.admit(proven)
    read(policy, proven)
    read(policy, proven)
    for id in "abcdefgh":
        policy.admit(entry_of(id))

    assert [evicted(policy) for _ in range(7)] == list("abcdefg")


def test_s3_fifo_takes_an_id_that_comes_back_soon_as_proven() -> None:
    policy = S3Fifo(1000)
    for id in "abcd":
        policy.admit(entry_of(id))
    assert evicted(policy) == "a"

    for id in "aefg":
        policy.admit(entry_of(id))

    # The newcomers go; the one that came back stays, though it was not read since.
    assert [evicted(policy) for _ in range(5)] == ["b", "c", "d", "e", "f"]


def test_tan_curve_multiplier_falls_from_one_to_zero_between_three_quarters_and_full() -> None:
    assert tan_curve_multiplier(0.75) == 1.0
    assert tan_curve_multiplier(0.85) == pytest.approx(0.5)
    assert tan_curve_multiplier(0.94) == 0.0
    assert tan_curve_multiplier(1.0) == 0.0
    steps = [tan_curve_multiplier(p / 1000) for p in range(700, 1001)]
    assert steps == sorted(steps, reverse=True)


def test_pressure_changes_which_of_two_entries_goes_first() -> None:
    """Scaling whole scores would leave their order as it is, and make all equal at the top."""

    def score(pressure: float, *, idle_s: float, size_bytes: int) -> float:
        return tan_curve_score(idle_s=idle_s, reads=0, size_bytes=size_bytes, pressure=pressure)

    def large_and_new(pressure: float) -> float:
        return score(pressure, idle_s=0, size_bytes=4 << 20)

    def small_and_old(pressure: float) -> float:
        return score(pressure, idle_s=7200, size_bytes=100)

    assert large_and_new(0.70) > small_and_old(0.70)
    assert large_and_new(0.98) < small_and_old(0.98)


@given(
    idle_s=st.floats(0, 1e6),
    size_bytes=st.integers(0, 1 << 24),
    few=st.integers(0, 900),
    more=st.integers(1, 100),
    pressure=st.floats(0, 1),
)
def test_of_two_equal_entries_the_one_read_more_is_worth_more_at_any_pressure(
    idle_s: float, size_bytes: int, few: int, more: int, pressure: float
) -> None:
    def score(reads: int) -> float:
        return tan_curve_score(idle_s=idle_s, reads=reads, size_bytes=size_bytes, pressure=pressure)

    assert score(few) < score(few + more)
    assert 0.0 <= score(few) <= 1.0 + 1e-9


def test_tan_curve_spares_hot_entries_when_the_cache_is_full() -> None:
    policy = TanCurve()
    hot = [entry_of(f"hot{i}") for i in range(100)]
    cold = [entry_of(f"cold{i}") for i in range(900)]
    for entry in hot + cold:
        policy.admit(entry)
    for entry in hot:
        entry.mark = 500

    victims = [evicted(policy) for _ in range(600)]

    assert not [id for id in victims if id.startswith("hot")]


def test_tan_curve_evicts_early_only_what_is_cold_enough() -> None:
    policy = TanCurve()
    for i in range(20):
        entry = entry_of(f"{i}")
        policy.admit(entry)
        entry.mark = 1000

    assert policy.evict(0.76) is None
    assert policy.evict(0.85) is None
    assert policy.evict(1.0) is not None


def test_tan_curve_forgets_old_fame() -> None:
    """What was read a thousand times long ago makes room for what is read now."""
    policy = TanCurve()
    famous = [entry_of(f"famous{i}") for i in range(50)]
    for entry in famous:
        policy.admit(entry)
        entry.mark = 1000

    for turn in range(5000):
        policy.admit(entry_of(f"{turn}"))
        latest = policy._entries[-1]
        for _ in range(20):
            read(policy, latest)
        policy.evict(1.0)

    assert sum(entry.queue for entry in famous) < 10


@pytest.mark.parametrize("make", POLICIES.values(), ids=POLICIES)
def test_a_policy_gives_every_entry_back_exactly_once(
    make: Callable[[int], EvictionPolicy],
) -> None:
    random = Random(5)
    policy = make(30_000)
    known: dict[str, Entry] = {}
    for turn in range(20_000):
        kind = random.random()
        if kind < 0.4 or not known:
            entry = entry_of(f"{random.randrange(5000)}.{turn}", random.randrange(50, 150))
            known[entry.change.id] = entry
            policy.admit(entry)
        elif kind < 0.6:
            read(policy, random.choice(list(known.values())[:50]))
        elif kind < 0.8:
            policy.forget(known.pop(random.choice(list(known)[:50])))
        else:
            known.pop(evicted(policy))

    rest = {evicted(policy) for _ in range(len(known))}

    assert rest == set(known)
