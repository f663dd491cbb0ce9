"""The checker accuses nobody wrongly, and catches every planted fault."""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Callable

import pytest

from sync_engine.testing import (
    Action,
    Entry,
    History,
    Outcome,
    Violation,
    check,
    make_payload,
    read_payload,
)

PUT, DELETE, GET = Action.PUT, Action.DELETE, Action.GET
OK, FAILED, UNKNOWN = Outcome.OK, Outcome.FAILED, Outcome.UNKNOWN


def entry(
    at: float,
    action: Action,
    version: int,
    outcome: Outcome = OK,
    *,
    until: float | None = None,
    expected: int | None = None,
    site: str = "",
    id: str = "k",
) -> Entry:
    returned = math.inf if outcome is UNKNOWN else at + 0.5 if until is None else until
    return Entry(
        invoked=at, returned=returned, client="c", action=action, id=id, version=version,
        outcome=outcome, expected=expected, site=site,
    )  # fmt: skip


def kinds(entries: list[Entry], final: dict[str, int] | None = None, **options: str) -> list[str]:
    return [violation.kind for violation in check(entries, final, **options)]  # type: ignore[arg-type]


def correct_history(seed: int, calls: int = 2000) -> tuple[list[Entry], dict[str, int]]:
    """Simulate overlapping clients of a register that is correct: each call acts at one instant."""
    rng = random.Random(seed)
    state: dict[str, tuple[int, Action]] = {}
    entries: list[Entry] = []
    version = 0
    for number in range(calls):
        instant = float(number)
        began, ended = instant - rng.random() * 5, instant + rng.random() * 5
        id = f"k{rng.randrange(20)}"
        action = rng.choices((PUT, DELETE, GET), (5, 1, 6))[0]
        if action is GET:
            newest = state.get(id)
            seen = newest[0] if newest and newest[1] is PUT else 0
            entries.append(entry(began, GET, seen, until=ended, id=id))
            continue
        version += 1
        outcome = rng.choices((OK, UNKNOWN, FAILED), (90, 6, 4))[0]
        told = 0 if outcome is UNKNOWN and rng.random() < 0.5 else version
        if outcome is OK or (outcome is UNKNOWN and rng.random() < 0.5):
            state[id] = (version, action)
        entries.append(entry(began, action, told, outcome, until=ended, id=id))
    return entries, {id: v for id, (v, action) in state.items() if action is PUT}


@pytest.mark.parametrize("seed", range(20))
def test_a_correct_history_is_not_accused(seed: int) -> None:
    entries, final = correct_history(seed)
    random.Random(seed).shuffle(entries)
    assert check(entries, final) == []


@pytest.mark.parametrize("seed", range(10))
def test_a_fault_planted_in_a_large_history_is_found(seed: int) -> None:
    entries, final = correct_history(seed)
    writes = {e.version: e for e in entries if e.action is not GET and e.version}
    id = next(i for i, v in final.items() if v in writes and writes[v].outcome is OK)

    older = min(e.version for e in writes.values() if e.id == id and e.outcome is OK)
    assert "lost" in kinds(entries, {**final, id: older})
    assert "phantom" in kinds(entries, {**final, "never": 1})
    late = entry(1e6, GET, older, id=id)
    assert "stale" in kinds([*entries, late], final)


# -- one fault at a time ---------------------------------------------------------------------------


def test_an_acknowledged_write_that_is_gone_is_lost() -> None:
    history = [entry(1, PUT, 1), entry(2, PUT, 2)]
    assert kinds(history, {"k": 2}) == []
    assert kinds(history, {"k": 1}) == ["lost"]
    assert kinds(history, {}) == ["lost"]


def test_a_deleted_item_that_is_back_is_resurrected() -> None:
    history = [entry(1, PUT, 1), entry(2, DELETE, 2)]
    assert kinds(history, {}) == []
    assert kinds(history, {"k": 1}) == ["resurrected"]
    assert kinds([*history, entry(3, GET, 1)]) == ["resurrected"]


def test_a_read_behind_an_acknowledged_write_is_stale() -> None:
    history = [entry(1, PUT, 1), entry(2, PUT, 2)]
    assert kinds([*history, entry(3, GET, 2)]) == []
    assert kinds([*history, entry(3, GET, 1)]) == ["stale"]
    assert kinds([*history, entry(3, GET, 0)]) == ["stale"]
    overlapping = entry(2.2, GET, 1)
    assert kinds([*history, overlapping]) == []


def test_reads_do_not_go_back_even_over_unacknowledged_writes() -> None:
    history = [entry(1, PUT, 1), entry(2, PUT, 2, UNKNOWN), entry(3, GET, 2)]
    assert kinds([*history, entry(4, GET, 2)]) == []
    assert kinds([*history, entry(4, GET, 1)]) == ["went-back"]


def test_nobody_reads_what_nobody_wrote() -> None:
    assert kinds([entry(1, GET, 7)]) == ["phantom"]
    assert kinds([entry(1, PUT, 1), entry(2, GET, 7)]) == ["phantom"]
    assert kinds([entry(1, PUT, 1)], {"k": 7}) == ["phantom"]


def test_a_refused_write_never_shows() -> None:
    history = [entry(1, PUT, 1), entry(2, PUT, 2, FAILED)]
    assert kinds([*history, entry(3, GET, 2)]) == ["failed-visible"]
    assert kinds(history, {"k": 2}) == ["failed-visible"]


def test_nobody_reads_the_future() -> None:
    assert kinds([entry(1, GET, 1), entry(5, PUT, 1)]) == ["future"]


def test_an_unknown_write_may_show_or_not() -> None:
    history = [entry(1, PUT, 1), entry(2, PUT, 2, UNKNOWN)]
    assert kinds(history, {"k": 1}) == []
    assert kinds(history, {"k": 2}) == []


def test_a_write_without_a_known_version_explains_one_version_and_no_more() -> None:
    history = [entry(1, PUT, 1), entry(2, PUT, 0, UNKNOWN)]
    assert kinds([*history, entry(3, GET, 9), entry(4, GET, 9)]) == []
    assert kinds([*history, entry(3, GET, 8), entry(4, GET, 9)]) == ["phantom"]


def test_an_unknown_delete_explains_an_absence() -> None:
    history = [entry(1, PUT, 1), entry(2, DELETE, 0, UNKNOWN)]
    assert kinds([*history, entry(3, GET, 0)], {}) == []
    assert kinds([entry(1, PUT, 1), entry(3, GET, 0), entry(4, DELETE, 0, UNKNOWN)]) == ["stale"]


def test_a_version_is_given_once() -> None:
    assert kinds([entry(1, PUT, 1), entry(2, PUT, 1)]) == ["twice"]


def test_a_compare_and_set_over_a_newer_version_lost_an_update() -> None:
    chain = [entry(1, PUT, 1, expected=0), entry(2, PUT, 2, expected=1)]
    assert kinds(chain) == []
    assert kinds([*chain, entry(3, PUT, 3, expected=1)]) == ["lost-update"]
    assert kinds([*chain, entry(3, PUT, 3, expected=0)]) == ["lost-update"]
    assert kinds([*chain, entry(3, DELETE, 3), entry(4, PUT, 4, expected=0)]) == []


def test_sites_with_caches_of_their_own_answer_for_their_own_writes() -> None:
    elsewhere = [entry(1, PUT, 1, site="a"), entry(2, PUT, 2, site="b"), entry(3, GET, 1, site="a")]
    assert kinds(elsewhere) == ["stale"]
    assert kinds(elsewhere, scope="site") == []
    assert kinds([*elsewhere, entry(4, GET, 1, site="b")], scope="site") == ["stale"]


def test_a_violation_says_what_should_have_been() -> None:
    (violation,) = check([entry(1, PUT, 1), entry(2, PUT, 2), entry(3, GET, 1)])
    assert violation == Violation("stale", "k", 1, "put 2 had been acknowledged")


# -- recording -------------------------------------------------------------------------------------


def test_threads_record_into_one_history() -> None:
    history = History()
    store: dict[str, int] = {}
    lock = threading.Lock()
    versions = iter(range(1, 10_000))

    def client(name: str) -> None:
        for _ in range(200):
            call = history.invoke(name, PUT, "k")
            with lock:
                version = store["k"] = next(versions)
            call.ok(version)
            read = history.invoke(name, GET, "k")
            with lock:
                seen = store["k"]
            read.ok(seen)

    threads = [threading.Thread(target=client, args=(f"c{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(history.entries) == 1600
    assert check(history.entries, store) == []
    assert kinds(history.entries, {"k": 1}) == ["lost"]


def test_each_way_to_end_a_call_is_recorded() -> None:
    history = History()
    ends: list[Callable[[], None]] = [
        lambda: history.invoke("c", PUT, "k", expected=3, site="s").ok(4),
        lambda: history.invoke("c", DELETE, "k").failed(),
        lambda: history.invoke("c", PUT, "k").unknown(),
    ]
    for end in ends:
        end()
    assert [(e.outcome, e.version, e.expected, e.site) for e in history.entries] == [
        (OK, 4, 3, "s"),
        (FAILED, 0, None, ""),
        (UNKNOWN, 0, None, ""),
    ]
    assert history.entries[2].returned == math.inf


# -- payloads --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [16, 17, 64, 1000, 65_536])
def test_a_payload_belongs_to_its_id_and_number(size: int) -> None:
    content = make_payload("ä", 7, size)
    assert len(content) == size
    assert read_payload("ä", content) == 7
    for foreign in (
        make_payload("b", 7, size),
        content[:-1] + bytes([content[-1] ^ 1]),
        make_payload("ä", 8, size)[:8] + content[8:],
        content[:10],
    ):
        with pytest.raises(ValueError, match="not its own"):
            read_payload("ä", foreign)
