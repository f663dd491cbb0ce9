"""Files to S3: the ledger, whose it is, what it remembers, and what it costs."""

from __future__ import annotations

import errno
from contextlib import closing
from pathlib import Path

import pytest
from upload.site import FULL, Site, wait_until

from sync_engine.core import failpoints
from sync_engine.errors import ConfigError
from sync_engine.sources.file_watch import State
from sync_engine.transfer.ledger import UploadLedger

pytestmark = pytest.mark.external


def test_u13_many_small_files_share_commits(site: Site) -> None:
    """At least five times fewer commits than with one for each step of each file."""
    count = 10_000 if FULL else 200
    for n in range(count):
        site.write(f"{n % 10}/{n}", b"%d" % n)
    progress = site.run(timeout_s=600, concurrency=8)
    assert progress.uploaded == count
    steps = 5 * count  # seen, stable, uploading, uploaded, verified
    assert progress.commits * 5 <= steps, (progress.commits, steps)


def test_only_one_program_has_a_ledger(site: Site) -> None:
    with site.running(), pytest.raises(ConfigError, match="another process"):
        site.run()


def test_a_ledger_belongs_to_one_target(site: Site) -> None:
    site.run()
    site.bucket = site.server.new_bucket()
    with pytest.raises(ConfigError, match="target"):
        site.run()


@pytest.mark.parametrize("after", ["keep", "delete"])
def test_two_files_with_one_key_do_not_overwrite_each_other(site: Site, after: str) -> None:
    """Not in another run either: what was removed here has its only copy there."""
    files = {"a/f": b"a", "b/f": b"b"}
    for name, data in files.items():
        site.write(name, data)
    for _ in range(2):
        progress = site.run(key_template="{name}", after=after)
        assert progress.parked == 1
        assert len(site.keys()) == 1
    kept = set(site.files().values())
    assert kept | {site.get("f")} == {b"a", b"b"}
    assert len(kept) == (2 if after == "keep" else 1)


def test_what_was_removed_is_forgotten_after_thirty_days(site: Site) -> None:
    """A directory that new names go through for years has a ledger that does not grow."""
    for n in range(6):
        site.write(str(n))
    site.run(after="delete")
    with closing(UploadLedger(site.ledger)) as ledger, ledger.step():
        rows = ledger.in_state(State.REMOVED, 10)
        ledger.put([row._replace(due_ms=row.due_ms - 31 * 86_400_000) for row in rows[:4]])
    for n in range(2):
        site.write(f"new{n}")

    site.run(after="delete")

    with closing(UploadLedger(None, copy_of=site.ledger)) as ledger:
        names = {row.path.decode() for row in ledger.in_state(State.REMOVED, 10)}
    assert len(names) == 4
    assert names >= {"new0", "new1"}


def test_a_file_that_may_not_be_removed_holds_up_no_run(site: Site) -> None:
    """It is uploaded; that it stays is told, and is tried again by the next run."""

    def refuse() -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    site.write("f", b"data")
    with failpoints.during("cleanup.checked", refuse):
        progress = site.run(after="delete")
    assert site.get("f") == b"data"
    assert progress.open == 1
    assert [(path, "Permission" in why) for path, why in progress.problems] == [("f", True)]
    assert site.files() == {"f": b"data"}

    progress = site.run(after="delete")
    assert (progress.uploaded, progress.removed, progress.open) == (0, 1, 0)
    assert site.files() == {}


def test_a_program_that_ended_holds_no_descriptors(site: Site) -> None:
    site.run()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        site.run()
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


def test_a_vanished_tenth_of_a_thousand_is_no_fault_but_most_of_it_is(site: Site) -> None:
    for n in range(220):
        site.write(str(n))
    site.run(find={"mode": "mirror"}, concurrency=8)
    for n in range(200):
        (site.dir / str(n)).unlink()
    with site.running(find={"mode": "mirror"}) as program:
        wait_until(lambda: program.started and bool(program.progress().errors), 20)
        assert "vanished at once" in program.progress().errors[0]
        assert len(site.keys()) == 220
        program.accept_deletions()
        wait_until(lambda: len(site.keys()) == 20, 30)
