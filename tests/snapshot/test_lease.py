"""Who writes: taken over only from the dead, and never twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from sync_engine.errors import CorruptData
from sync_engine.sinks.snapshot.errors import Fenced
from sync_engine.sinks.snapshot.format import seal, unseal
from sync_engine.sinks.snapshot.inventory import read_head, read_inventory
from sync_engine.sinks.snapshot.keys import HEAD
from sync_engine.sinks.snapshot.lease import Lease
from sync_engine.sinks.snapshot.objects import DirectoryObjects
from sync_engine.testing import ManualRuntime


@pytest.fixture
def objects(tmp_path: Path) -> DirectoryObjects:
    return DirectoryObjects(tmp_path)


def foreign(objects: DirectoryObjects) -> None:
    """Let HEAD look as if a process of another machine had written it."""
    found = objects.get(HEAD)
    assert found is not None
    document = unseal(HEAD, found.data)
    document["owner"] |= {"host": "elsewhere", "boot": "another"}
    objects.put(HEAD, seal(document))


def replaced(objects: DirectoryObjects, runtime: ManualRuntime) -> tuple[Lease, Lease]:
    """Return an owner that fell silent, and the one that took over from it."""
    old, new = Lease(objects, runtime, 30.0), Lease(objects, runtime, 30.0)
    old.claim(None)
    foreign(objects)
    new.claim(None)
    return old, new


def test_the_first_owner_founds_an_epoch(objects: DirectoryObjects, runtime: ManualRuntime) -> None:
    claim = Lease(objects, runtime, 30.0).claim(None)

    assert (claim.epoch, claim.fork, claim.same) == (1, 0, False)
    assert read_inventory(objects).lineage[0].epoch == 1


def test_a_released_lease_is_taken_at_once(
    objects: DirectoryObjects, runtime: ManualRuntime
) -> None:
    first = Lease(objects, runtime, 30.0)
    first.claim(None)
    first.release()
    began = runtime.clock.monotonic()

    claim = Lease(objects, runtime, 30.0).claim(None)

    assert runtime.clock.monotonic() - began < 1
    assert claim.epoch == 2


def test_a_silent_owner_counts_as_dead_after_its_time_by_our_clock(
    objects: DirectoryObjects, runtime: ManualRuntime
) -> None:
    Lease(objects, runtime, 30.0).claim(None)
    foreign(objects)
    runtime.clock.jump(-86_400)  # whatever the wall clock says
    began = runtime.clock.monotonic()

    claim = Lease(objects, runtime, 30.0).claim(None)

    assert 30 <= runtime.clock.monotonic() - began < 60
    assert [branch.epoch for branch in claim.inventory.lineage] == [2, 1]


def test_an_owner_that_moves_is_alive(objects: DirectoryObjects, runtime: ManualRuntime) -> None:
    owner = Lease(objects, runtime, 30.0)
    owner.claim(None)
    foreign(objects)
    looks = 0

    def alive() -> bool:
        nonlocal looks
        looks += 1
        found = read_head(objects)
        if looks == 3 and found is not None:
            objects.put(HEAD, seal(found.document | {"renewals": 7}))
        return False

    with pytest.raises(Fenced, match="elsewhere"):
        Lease(objects, runtime, 30.0).claim(None, alive)


def test_the_old_owner_learns_that_it_was_replaced(
    objects: DirectoryObjects, runtime: ManualRuntime
) -> None:
    old, _ = replaced(objects, runtime)

    assert not old.held
    with pytest.raises(Fenced):
        old.ensure()


class Unconditional(DirectoryObjects):
    """Ignores conditions, as some servers do."""

    def conditional(self) -> bool:
        return False

    def put(
        self, key: str, data: bytes, *, if_absent: bool = False, if_match: str | None = None
    ) -> str:
        return super().put(key, data)


def test_without_conditional_writes_the_old_owner_still_learns_it(
    tmp_path: Path, runtime: ManualRuntime
) -> None:
    old, new = replaced(Unconditional(tmp_path), runtime)
    runtime.clock.advance(60)

    with pytest.raises(Fenced):
        old.ensure()
    new.ensure()
    assert not new.conditional


def test_without_conditional_writes_an_old_owner_ends_without_touching_the_new_one(
    tmp_path: Path, runtime: ManualRuntime
) -> None:
    objects = Unconditional(tmp_path)
    old, _ = replaced(objects, runtime)
    taken = objects.get(HEAD)

    old.release()

    assert objects.get(HEAD) == taken


def test_a_lost_head_is_no_empty_target(objects: DirectoryObjects, runtime: ManualRuntime) -> None:
    Lease(objects, runtime, 30.0).claim(None)
    objects.delete([HEAD])

    with pytest.raises(CorruptData, match="missing"):
        Lease(objects, runtime, 30.0).claim(None)
