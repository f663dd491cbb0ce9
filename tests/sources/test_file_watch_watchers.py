"""The checks of watching, one by one; KILLS=50 gives the full lengths."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sync_engine.sources.file_watch import State
from tests.sources.file_watch_child import Watch

CHILD = Path(__file__).with_name("file_watch_child.py")
FULL = bool(os.environ.get("KILLS"))
pytest.importorskip("inotify_simple")


@pytest.fixture
def watch(tmp_path: Path) -> Any:
    made = Watch(tmp_path)
    yield made
    made.close()


def test_w01_a_burst_is_reported_whole_and_soon(watch: Watch) -> None:
    count = 10_000 if FULL else 2000
    for n in range(count):
        (watch.dir / str(n)).write_bytes(b"x" * 100)
    took_s = watch.until(lambda: watch.count() == count)
    assert watch.finder.scans == 1  # by events alone
    assert took_s < 15.0  # a shared machine; about a second on an idle one


def test_w02_what_overflows_while_it_is_frozen_is_found_by_a_scan(tmp_path: Path) -> None:
    queue = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    count = 50_000 if FULL else queue // 2 + 1000  # each file is opened and closed
    if count > 60_000:
        pytest.skip("the queue of this kernel is too long")
    directory = tmp_path / "in"
    directory.mkdir()
    child = subprocess.Popen(
        [sys.executable, str(CHILD), str(tmp_path), str(count)],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "watching\n"
        child.send_signal(signal.SIGSTOP)
        for n in range(count):
            os.close(os.open(directory / str(n), os.O_WRONLY | os.O_CREAT, 0o600))
        child.send_signal(signal.SIGCONT)
        told = json.loads(child.communicate(timeout=120)[0])
    finally:
        child.kill()
        child.communicate()
    assert told["overflows"] >= 1
    assert told["rescans"] >= 1


def test_w02_what_is_lost_while_a_scan_goes_on_is_looked_for_by_another(tmp_path: Path) -> None:
    """The one under way may have passed the place already."""
    watch = Watch(tmp_path, "poll", poll_s=1000.0, settle_s=0.0)
    for n in range(3):
        (watch.dir / str(n)).write_bytes(b"x")
    watch.finder.rescan("asked for")
    watch.step()  # has looked at the directory, and not ended
    assert watch.finder.scans == 1
    (watch.dir / "late").write_bytes(b"x")
    watch.finder.rescan("events were lost")
    watch.until(lambda: watch.count() == 4, 5)
    watch.close()


def test_w03_nothing_is_lost_in_new_nested_directories(watch: Watch) -> None:
    for round_ in range(20 if FULL else 2):
        names = {f"{round_}/{n % 10}/{n}/f{m}" for n in range(100) for m in range(5)}
        for name in names:
            (watch.dir / name).parent.mkdir(parents=True, exist_ok=True)
            (watch.dir / name).write_bytes(b"x")
            if len(name) % 3 == 0:
                watch.finder.read(0.0, watch.waker)
        watch.until(lambda: watch.count() == 500 * (round_ + 1))
    assert watch.finder.scans == 1


def test_w04_a_temporary_name_is_never_reported(watch: Watch) -> None:
    count = 30_000 if FULL else 2000
    for n in range(count):
        temporary = watch.dir / f"{n}.tmp"
        temporary.write_bytes(b"x")
        temporary.rename(watch.dir / str(n))
    watch.until(lambda: watch.count() == count, 60)
    assert not any(name.endswith(".tmp") for name in watch.names())


def test_w05_a_file_is_taken_when_it_is_closed_and_not_before(watch: Watch) -> None:
    with (watch.dir / "slow").open("wb") as file:
        for _ in range(5):
            file.write(b"x")
            file.flush()
            watch.step()
            watch.finder.rescan("test")
            watch.step()
            time.sleep(0.1)  # the pace of the writer
        for _ in range(5):
            watch.step()
        assert watch.count() == 0
    watch.until(lambda: watch.count() == 1, 5)


def test_w06_a_hot_file_holds_up_nobody(watch: Watch) -> None:
    hot = watch.dir / "hot"
    for n in range(100):
        with hot.open("ab") as file:
            file.write(b"x")
        (watch.dir / str(n)).write_bytes(b"x")
        watch.step()
    with hot.open("ab") as file:
        file.write(b"x")
    watch.until(lambda: watch.count() == 101, 10)
    row = watch.ledger.row(1, b"hot")
    assert row is not None
    assert row.size == 101


def test_w07_the_limit_of_watches_degrades_to_polling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import inotify_simple

    add = inotify_simple.INotify.add_watch
    left = [3]

    def limited(self: Any, path: Any, mask: Any) -> int:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        watch: int = add(self, path, mask)
        return watch

    monkeypatch.setattr(inotify_simple.INotify, "add_watch", limited)
    watch = Watch(tmp_path)
    for n in range(10):
        (watch.dir / f"d{n}").mkdir()
        (watch.dir / f"d{n}/f").write_bytes(b"x")
    watch.until(lambda: watch.count() == 10, 20)
    assert "fs.inotify.max_user_watches" in watch.watcher.limited
    (watch.dir / "d9/late").write_bytes(b"x")
    watch.until(lambda: watch.count() == 11, 20)
    watch.close()


def test_w07_without_an_inotify_instance_it_polls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import inotify_simple

    def refused(*_: Any, **__: Any) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(inotify_simple.INotify, "__init__", refused)
    watch = Watch(tmp_path)
    assert watch.watcher.name == "poll"
    assert "fs.inotify.max_user_instances" in watch.watcher.limited
    (watch.dir / "f").write_bytes(b"x")
    watch.until(lambda: watch.count() == 1, 10)
    watch.close()


def test_w08_a_root_that_is_away_deletes_nothing(tmp_path: Path) -> None:
    watch = Watch(tmp_path, mode="mirror", rescan_s=0.2)
    for n in range(5):
        (watch.dir / str(n)).write_bytes(b"x")
    watch.until(lambda: watch.count() == 5)
    rows = watch.ledger.page(1, None, 10)
    with watch.ledger.step():
        watch.ledger.put([row._replace(state=State.VERIFIED, key="k", etag="e") for row in rows])
    away = tmp_path / "away"
    watch.dir.rename(away)
    watch.until(lambda: bool(watch.finder.errors))
    assert watch.count(State.GONE) == 0

    watch.dir.mkdir()  # the mount point of what is not mounted
    for _ in range(30):
        watch.step()
    assert watch.finder.errors
    assert watch.count(State.GONE) == 0

    watch.dir.rmdir()
    away.rename(watch.dir)
    watch.until(lambda: not watch.finder.errors)
    (watch.dir / "0").unlink()
    watch.until(lambda: watch.count(State.GONE) == 1)
    watch.close()


@pytest.mark.parametrize("backend", ["inotify", "watchdog", "poll"])
def test_w09_what_is_known_in_the_end_is_what_is_there(tmp_path: Path, backend: str) -> None:
    pytest.importorskip("watchdog")
    watch = Watch(tmp_path, backend, mode="mirror", rescan_s=0.5)
    chance = random.Random(9)
    names = [f"d{n % 3}/f{n}" for n in range(20)]
    for _ in range(1000 if FULL else 300):
        path = watch.dir / chance.choice(names)
        kind = chance.randrange(4)
        if kind == 0:
            path.unlink(missing_ok=True)
        elif kind == 1 and path.exists():
            other = watch.dir / chance.choice(names)
            other.parent.mkdir(exist_ok=True)
            path.rename(other)
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"x" * chance.randrange(100))
        if chance.random() < 0.2:
            watch.step()

    def there() -> dict[str, int]:
        files = (p for p in watch.dir.rglob("*") if p.is_file())
        return {str(p.relative_to(watch.dir)): p.stat().st_size for p in files}

    def known() -> dict[str, int]:
        rows = watch.ledger.page(1, None, 1000)
        return {row.path.decode(): row.size for row in rows if row.state == State.STABLE}

    watch.until(lambda: known() == there(), 30)
    watch.close()
