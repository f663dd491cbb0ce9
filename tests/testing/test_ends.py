"""The contracts of sinks and sources, shown on those of the test kit."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import pytest

from sync_engine.core.item import Change
from sync_engine.ports import Sink, Source
from sync_engine.testing import ListSource, MemorySink, PositionedMemorySink
from sync_engine.testing.contracts.sink import PositionedSinkContract, SinkContract
from sync_engine.testing.contracts.source import SourceContract


class TestMemorySink(SinkContract):
    @pytest.fixture(autouse=True)
    def target(self) -> None:
        self.memory = MemorySink(reject=["refused"])

    def make_sink(self) -> Sink:
        return self.memory

    def stored(self) -> dict[str, bytes]:
        return self.memory.contents()

    def refused_change(self) -> Change:
        return Change("refused", 9, b"")


class ForgetfulSink(MemorySink):
    """Keeps nothing of what is deleted."""

    def _keep(self, changes: Sequence[Change]) -> None:
        super()._keep(changes)
        self.rows = {id: row for id, row in self.rows.items() if row.content is not None}


class TestForgetfulSink(TestMemorySink):
    """A sink may do less, where it says so."""

    remembers_deletions = False
    refuses = False

    @pytest.fixture(autouse=True)
    def target(self) -> None:
        self.memory = ForgetfulSink()

    def refused_change(self) -> None:
        return None


class TestPositionedMemorySink(PositionedSinkContract):
    @pytest.fixture(autouse=True)
    def target(self) -> None:
        self.memory = PositionedMemorySink(reject=["refused"])

    def make_sink(self) -> Sink:
        return self.memory

    def stored(self) -> dict[str, bytes]:
        return self.memory.contents()

    def refused_change(self) -> Change:
        return Change("refused", 9, b"")


class TestListSource(SourceContract):
    @pytest.fixture(autouse=True)
    def origin(self) -> None:
        self.list = ListSource()
        self.count = 0

    def make_source(self) -> Source:
        return self.list

    def produce(self, count: int) -> Collection[str]:
        ids = [f"id.{self.count + n}" for n in range(count)]
        self.count += count
        self.list.add(*(Change(id, 0, b"content") for id in ids))
        return ids
