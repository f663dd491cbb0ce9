"""The way into L1, and what was heard of others."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from sync_engine.core.item import Change
from sync_engine.flow.heard import Gate, Heard
from sync_engine.stores.memory import MemoryCache
from sync_engine.testing import ManualClock, ManualRuntime


class Interrupted(MemoryCache):
    """Something happens when a value is about to be put."""

    meanwhile: Callable[[], object] = staticmethod(lambda: None)

    def put(self, change: Change) -> None:
        self.meanwhile()
        super().put(change)

    def put_many(self, changes: Sequence[Change]) -> None:
        self.meanwhile()
        super().put_many(changes)


@pytest.fixture
def l1() -> Interrupted:
    return Interrupted(1 << 20, now_ms=ManualClock().now_ms)


@pytest.fixture
def heard() -> Heard:
    return Heard(ids_max=2)


@pytest.fixture
def gate(l1: Interrupted, heard: Heard) -> Gate:
    return Gate(l1, heard, ManualRuntime().lock())


BATCHES = [[Change("x", 1, b"1")], [Change("x", 1, b"1"), Change("y", 1, b"1")]]


@pytest.mark.parametrize("batch", BATCHES, ids=["one", "several"])
def test_what_was_on_its_way_in_while_the_gate_was_shut_does_not_stay(
    gate: Gate, l1: Interrupted, batch: list[Change]
) -> None:
    """It was found before the gate was shut, and nobody knows what was missed since."""

    def begin_anew() -> None:
        gate.shut()
        gate.open()

    l1.meanwhile = begin_anew
    gate.put_many(batch)
    assert gate.is_open
    assert gate.get("x") is None


@pytest.mark.parametrize("batch", BATCHES, ids=["one", "several"])
def test_what_is_heard_while_an_older_value_is_on_its_way_in_wins(
    gate: Gate, l1: Interrupted, heard: Heard, batch: list[Change]
) -> None:
    heard.note([Change("other", 1, None)])
    l1.meanwhile = lambda: heard.note([Change("x", 2, None)])
    gate.put_many(batch)
    assert gate.get("x") is None


def test_nothing_comes_in_while_the_gate_is_shut(gate: Gate) -> None:
    gate.put(Change("x", 1, b"1"))
    gate.shut()
    assert gate.get("x") is None
    gate.put(Change("x", 1, b"1"))
    assert gate.get("x") is None
    gate.open()
    gate.put(Change("x", 1, b"1"))
    assert gate.get("x") == Change("x", 1, b"1")


def test_what_was_heard_outdates_older_values_and_not_the_one_that_was_told(heard: Heard) -> None:
    heard.note([Change("x", 5, None)])
    heard.note([Change("x", 3, None)])  # told late
    assert heard.version("x") == 5
    assert heard.outdates(Change("x", 4, b""))
    assert not heard.outdates(Change("x", 5, b""))
    assert not heard.outdates(Change("y", 1, b""))


def test_below_what_was_forgotten_every_unknown_id_may_be_old(heard: Heard) -> None:
    heard.note([Change(id, version, None) for id, version in (("a", 7), ("b", 1), ("c", 1))])
    assert len(heard) == 2
    assert heard.horizon == 7
    assert heard.outdates(Change("a", 6, b""))
    assert not heard.outdates(Change("a", 7, b""))
    assert not heard.outdates(Change("b", 1, b""))
