"""Removing a local file: only the one that was uploaded, whatever happens in between."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from sync_engine.core import failpoints
from sync_engine.sources.file_watch import ASIDE, Patterns, Root, Tree
from sync_engine.sources.file_watch.beneath import Fingerprint, fingerprint
from sync_engine.transfer.removal import Removal, put_back, take_away

MARK = "0123abcd"
KILLED = """
import os, signal, sys
from pathlib import Path
from sync_engine.core import failpoints
from sync_engine.sources.file_watch import Root
from sync_engine.sources.file_watch.beneath import Fingerprint
from sync_engine.transfer.removal import take_away
step, root, name, taken, target, replaced = sys.argv[1:]

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def replace():
    Path(root, "other").rename(Path(root, name))

stack = [failpoints.during(step, die)]
if replaced:
    stack.append(failpoints.during("cleanup.checked", replace))
for one in stack:
    one.__enter__()
take_away(
    Root(1, os.fsencode(root)), os.fsencode(name), Fingerprint(*map(int, taken.split())),
    "0123abcd", target=Path(target) if target else None, prune=False,
)
"""


class Place:
    """A watched directory with one file that was uploaded."""

    def __init__(self, base: Path, name: str = "f") -> None:
        self.dir = base / "in"
        self.dir.mkdir()
        self.done = base / "done"
        self.root = Root(1, os.fsencode(self.dir))
        self.name = name
        (self.dir / name).write_bytes(b"uploaded")
        self.taken: Fingerprint = fingerprint((self.dir / name).stat())

    def take_away(self, target: Path | None = None) -> Removal:
        path = os.fsencode(self.name)
        return take_away(self.root, path, self.taken, MARK, target=target, prune=False)

    def put_back(self) -> bool:
        return put_back(self.root, os.fsencode(self.name), MARK)

    def other(self, data: bytes) -> Path:
        """Make a file of the same size and times, outside, to be renamed over the uploaded one."""
        path = self.dir.parent / "made"
        path.write_bytes(data)
        os.utime(path, ns=(self.taken.mtime_ns, self.taken.mtime_ns))
        return path

    def replace(self, data: bytes) -> Callable[[], None]:
        """Return what renames another file to the name."""
        return lambda: self.other(data).replace(self.dir / self.name) and None

    def killed_at(self, step: str, *, target: Path | None = None, replaced: bool = False) -> None:
        if replaced:
            self.other(b"replaced").rename(self.dir / "other")
        arguments = [
            step, str(self.dir), self.name, " ".join(map(str, self.taken)), str(target or ""),
            "yes" if replaced else "",
        ]  # fmt: skip
        ended = subprocess.run([sys.executable, "-c", KILLED, *arguments], check=False)
        assert ended.returncode == -signal.SIGKILL

    def files(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.dir.iterdir()}

    def moved(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.done.iterdir()}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture(params=["links", "no links"])
def links(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system with hard links, and one without."""

    def refused(*_: Any, **__: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    if request.param == "no links":
        monkeypatch.setattr(os, "link", refused)


@pytest.fixture
def two_file_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    """The directory that files are moved to is of another file system."""
    link = os.link

    def within_one(a: bytes, b: bytes, *, src_dir_fd: int, dst_dir_fd: int, **given: Any) -> None:
        if src_dir_fd != dst_dir_fd:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        link(a, b, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd, **given)

    monkeypatch.setattr(os, "link", within_one)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


def test_the_file_that_was_uploaded_is_deleted(place: Place) -> None:
    assert place.take_away() is Removal.DONE
    assert place.files() == {}
    assert place.take_away() is Removal.ABSENT


def test_a_file_renamed_to_the_name_after_the_check_is_kept(
    place: Place, stack: ExitStack, links: None
) -> None:
    """Same size, same times: what was taken aside is looked at again, and given its name back."""
    stack.enter_context(failpoints.during("cleanup.checked", place.replace(b"replaced")))

    assert place.take_away() is Removal.CHANGED

    assert place.files() == {"f": b"replaced"}


def test_a_file_that_replaces_one_that_has_its_name_back_is_kept(
    place: Place, stack: ExitStack
) -> None:
    stack.enter_context(failpoints.during("cleanup.checked", place.replace(b"replaced")))
    stack.enter_context(failpoints.during("cleanup.linked", place.replace(b"newer...")))
    assert place.take_away() is Removal.CHANGED
    assert place.files() == {"f": b"newer..."}


def test_a_file_made_under_the_name_while_the_other_is_aside_is_kept(
    place: Place, stack: ExitStack
) -> None:
    stack.enter_context(failpoints.during("cleanup.aside", place.replace(b"newer...")))
    assert place.take_away() is Removal.DONE
    assert place.files() == {"f": b"newer..."}


def test_a_file_that_cannot_get_its_name_back_is_kept_beside_the_newer(
    place: Place, stack: ExitStack, links: None
) -> None:
    (place.dir / "f~1").write_bytes(b"somebody's")
    stack.enter_context(failpoints.during("cleanup.checked", place.replace(b"replaced")))
    stack.enter_context(failpoints.during("cleanup.aside", place.replace(b"newer...")))

    assert place.take_away() is Removal.CHANGED

    assert place.files() == {"f": b"newer...", "f~1": b"somebody's", "f~2": b"replaced"}


def test_a_directory_that_takes_the_name_is_put_back(place: Place, stack: ExitStack) -> None:
    def make_directory() -> None:
        (place.dir / "f").unlink()
        (place.dir / "f").mkdir()
        (place.dir / "f/inner").write_bytes(b"inner")

    stack.enter_context(failpoints.during("cleanup.checked", make_directory))
    assert place.take_away() is Removal.CHANGED
    assert (place.dir / "f/inner").read_bytes() == b"inner"


def test_a_file_deleted_by_another_after_the_check_is_no_error(
    place: Place, stack: ExitStack
) -> None:
    stack.enter_context(failpoints.during("cleanup.checked", (place.dir / "f").unlink))
    assert place.take_away() is Removal.CHANGED
    assert place.files() == {}


def test_what_is_written_while_it_is_aside_is_kept(place: Place, stack: ExitStack) -> None:
    """By a process that had the file open already, on a system without leases."""
    with (place.dir / "f").open("r+b") as writer:

        def write() -> None:
            writer.write(b"written more")
            writer.flush()

        stack.enter_context(pytest.MonkeyPatch.context()).setattr(
            "sync_engine.transfer.removal.has_writer", lambda handle, hold: None
        )
        stack.enter_context(failpoints.during("cleanup.aside", write))
        assert place.take_away() is Removal.CHANGED
    assert place.files() == {"f": b"written more"}


@pytest.mark.parametrize("step", ["cleanup.checked", "cleanup.aside"])
@pytest.mark.parametrize("target", ["", "done"])
def test_a_kill_at_any_step_leaves_a_file_that_gets_its_name_back(
    place: Place, step: str, target: str
) -> None:
    place.killed_at(step, target=place.done if target else None)
    place.put_back()
    assert place.files() == {"f": b"uploaded"}
    assert place.put_back() is False


@pytest.mark.parametrize("step", ["cleanup.aside", "cleanup.linked"])
def test_a_kill_over_a_file_that_is_another_keeps_it(place: Place, step: str) -> None:
    place.killed_at(step, replaced=True)
    assert place.put_back() is True
    assert place.files() == {"f": b"replaced"}


def test_a_kill_leaves_a_file_that_never_replaces_a_newer_one(place: Place) -> None:
    place.killed_at("cleanup.aside")
    (place.dir / "f").write_bytes(b"newer")
    assert place.put_back() is True
    assert place.files() == {"f": b"newer", "f~1": b"uploaded"}


@pytest.mark.parametrize("step", ["cleanup.checked", "cleanup.aside"])
def test_removing_again_after_a_kill_finishes(place: Place, step: str) -> None:
    place.killed_at(step)
    assert place.take_away() is Removal.DONE
    assert place.files() == {}


@pytest.mark.parametrize("step", ["cleanup.checked", "cleanup.aside", "cleanup.linked"])
def test_moving_again_after_a_kill_moves_once(place: Place, step: str) -> None:
    place.killed_at(step, target=place.done)
    assert place.take_away(place.done) is Removal.DONE
    assert place.files() == {}
    assert place.moved() == {"f": b"uploaded"}


@pytest.mark.parametrize("letters", [200, 254, 255])
def test_names_may_be_as_long_as_they_can(tmp_path: Path, letters: int, stack: ExitStack) -> None:
    name = "n" * letters
    place = Place(tmp_path, name)
    stack.enter_context(failpoints.during("cleanup.checked", place.replace(b"replaced")))
    stack.enter_context(failpoints.during("cleanup.aside", place.replace(b"newer...")))
    assert place.take_away() is Removal.CHANGED
    assert sorted(place.files().values()) == [b"newer...", b"replaced"]
    assert place.files()[name] == b"newer..."


def test_a_move_never_replaces_what_is_there(place: Place, links: None) -> None:
    place.done.mkdir()
    (place.done / "f").write_bytes(b"theirs")
    assert place.take_away(place.done) is Removal.DONE
    assert place.moved() == {"f": b"theirs", "f~1": b"uploaded"}
    assert place.files() == {}


def test_a_move_to_another_file_system_copies(place: Place, two_file_systems: None) -> None:
    place.done.mkdir()
    (place.done / "f").write_bytes(b"theirs")
    assert place.take_away(place.done) is Removal.DONE
    assert place.moved() == {"f": b"theirs", "f~1": b"uploaded"}
    assert (place.done / "f~1").stat().st_mtime_ns == place.taken.mtime_ns
    assert place.files() == {}


def test_a_copy_that_ends_early_has_no_name(
    place: Place, two_file_systems: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of a file under the name of a whole one would be taken for it."""

    def full(source: Any, sink: Any, length: int) -> None:
        sink.write(source.read(3))
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "copyfileobj", full)
        with pytest.raises(OSError, match="No space"):
            place.take_away(place.done)
    assert not [name for name in place.moved() if not name.encode().startswith(ASIDE)]
    assert place.files() == {"f": b"uploaded"}

    assert place.take_away(place.done) is Removal.DONE
    assert place.moved() == {"f": b"uploaded"}


def test_a_file_that_cannot_be_moved_is_not_told_to_be_gone(place: Place) -> None:
    """A file stands where a directory is needed: that is no absence of ours."""
    place.done.write_bytes(b"no directory")
    with pytest.raises(OSError, match="done"):
        place.take_away(place.done / "deeper")
    assert place.files() == {"f": b"uploaded"}


def test_a_name_that_a_file_has_for_a_moment_is_looked_at_by_nobody(place: Place) -> None:
    """Not even by those who asked for all names."""
    place.killed_at("cleanup.aside")
    assert [name.encode().startswith(ASIDE) for name in place.files()] == [True]
    patterns = Patterns((), ())
    found = [path for path, _ in Tree(patterns).look(place.root, b"", lambda path: None)]
    assert found == []
    assert not patterns.takes(b"d/" + ASIDE + b"x")
