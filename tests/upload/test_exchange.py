"""Tasks out, outcomes back: when a commit is worth it, and since when the server is in trouble."""

from __future__ import annotations

import pytest

from sync_engine.sources.file_watch import Root, Row, State
from sync_engine.testing import ManualClock
from sync_engine.transfer.exchange import Exchange
from sync_engine.transfer.tasks import Outcome, Result, Task, Work


class Sides:
    """An exchange, and how often it woke the owner of the ledger."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.wakes = 0
        self.exchange = Exchange(self.clock, self._wake)

    def _wake(self) -> None:
        self.wakes += 1


@pytest.fixture
def sides() -> Sides:
    return Sides()


def _task(number: int = 0) -> Task:
    path = b"file-%d" % number
    row = Row(
        *(1, path, State.STABLE, 1, 2, 3, 4, 1, 5, 6),
        *(None, None, None, None, "key", None, None, None, 0, ""),
    )
    return Task(Work.UPLOAD, Root(1, b"/in"), row)


def _outcome(result: Result = Result.UPLOADED, number: int = 0) -> Outcome:
    return Outcome(_task(number), result)


def test_an_outcome_is_worth_a_commit_at_once_when_no_task_waits(sides: Sides) -> None:
    sides.exchange.put(_outcome())

    assert sides.exchange.worth_a_commit
    assert sides.wakes == 1


def test_outcomes_share_a_commit_while_tasks_wait(sides: Sides) -> None:
    sides.exchange.hand_out([_task()])

    for number in range(31):
        sides.exchange.put(_outcome(number=number))
        assert not sides.exchange.worth_a_commit
    assert sides.wakes == 0

    sides.exchange.put(_outcome(number=31))
    assert sides.exchange.worth_a_commit
    assert sides.wakes == 1


def test_the_last_task_taken_makes_the_next_outcome_worth_a_commit(sides: Sides) -> None:
    sides.exchange.hand_out([_task()])
    sides.exchange.put(_outcome())
    assert sides.wakes == 0

    assert sides.exchange.next_task() is not None
    assert sides.exchange.worth_a_commit
    sides.exchange.put(_outcome(number=1))
    assert sides.wakes == 1


def test_tasks_and_outcomes_leave_oldest_first(sides: Sides) -> None:
    tasks = [_task(number) for number in range(3)]
    assert sides.exchange.hand_out(tasks) == 3
    assert [sides.exchange.next_task() for _ in range(4)] == [*tasks, None]

    outcomes = [_outcome(number=number) for number in range(5)]
    for outcome in outcomes:
        sides.exchange.put(outcome)
    assert sides.exchange.take(3) == outcomes[:3]
    assert sides.exchange.unnoted
    assert sides.exchange.take(3) == outcomes[3:]
    assert sides.exchange.empty
    assert not sides.exchange.worth_a_commit


def test_trouble_counts_from_its_first_outcome_and_ends_with_a_success(sides: Sides) -> None:
    sides.exchange.put(_outcome(Result.FAILED))
    sides.clock.advance(5.0)
    sides.exchange.put(_outcome(Result.MISCONFIGURED))
    sides.clock.advance(2.0)
    assert sides.exchange.stalled_s == pytest.approx(7.0)

    sides.exchange.put(_outcome())
    assert sides.exchange.stalled_s == 0.0
