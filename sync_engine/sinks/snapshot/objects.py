"""Where a replica is kept: the few things that are asked of S3, and a directory that does them."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from sync_engine.errors import ConfigError, StoreRejected, StoreUnavailable
from sync_engine.ports import BlobInfo, Runtime
from sync_engine.sinks.snapshot.errors import Changed

__all__ = ["DirectoryObjects", "Fetched", "Objects", "open_objects"]

_STORE = "snapshot"


@dataclass(frozen=True, slots=True)
class Fetched:
    """An object, or its beginning.

    Attributes:
        data: Bytes.
        etag: The store's tag of the whole content; opaque.
    """

    data: bytes
    etag: str


class Objects(Protocol):
    """Objects under one prefix; keys are relative to it.

    Attributes:
        url: The place as written, without secrets.

    Raises (every method): `StoreUnavailable` (try again), `StoreRejected` (never), `ConfigError`
    (wrong bucket or credentials).
    """

    url: str

    def conditional(self) -> bool:
        """Tell whether conditional writes are honoured; may ask the store, once."""

    def put(
        self, key: str, data: bytes, *, if_absent: bool = False, if_match: str | None = None
    ) -> str:
        """Store an object whole; return its tag.

        Raises:
            Changed: There is an object (with `if_absent`), or another than `if_match` tells.
        """

    def get(self, key: str, *, length: int | None = None) -> Fetched | None:
        """Return an object, or its first bytes; None where there is none."""

    def list(self, prefix: str) -> Iterator[BlobInfo]:
        """Yield the objects whose keys begin with a prefix, in bytewise order."""

    def delete(self, keys: Sequence[str]) -> Sequence[str]:
        """Delete objects; absent ones are fine. Return the keys that could not be deleted."""

    def close(self) -> None:
        """Let go of connections; safe twice."""


def open_objects(
    url: str, runtime: Runtime, *, endpoint_url: str | None = None, create: bool = False
) -> Objects:
    """Return the objects at an address: ``s3://bucket/prefix``, ``file:///path`` or a path.

    Args:
        url: The address; S3 addresses are those of `sync_engine.s3`, options after ``?`` included.
        runtime: Time, locks, randomness.
        endpoint_url: Of an S3 that is not Amazon's; None where the address or environment tells.
        create: Make the directory where it is missing.

    Raises:
        ConfigError: The address cannot be used, or an extra is missing.
    """
    if url.startswith("s3://"):
        from sync_engine.sinks.snapshot.s3_objects import S3Objects

        return S3Objects(url, runtime, endpoint_url=endpoint_url)
    parts = urlsplit(url)
    if parts.scheme not in {"", "file"}:
        raise ConfigError(f"target {url}: must be s3://bucket/prefix or a directory")
    path = Path(unquote(parts.path) if parts.scheme else url)
    if create:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    elif not path.is_dir():
        raise ConfigError(f"target {path}: there is no such directory")
    return DirectoryObjects(path)


class DirectoryObjects:
    """Objects as files below a directory, written so that a crash leaves all or nothing.

    Thread-safety: any thread, and any process: conditional writes are decided by the file system
    (`link`) and by one lock file.

    Args:
        root: The directory; must exist.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.url = str(self.root)

    def conditional(self) -> bool:
        """Return True: the file system decides."""
        return True

    def put(
        self, key: str, data: bytes, *, if_absent: bool = False, if_match: str | None = None
    ) -> str:
        """Store an object whole: written aside, synced, then linked or renamed into place."""
        path = self._path(key)
        with _translated("put"):
            path.parent.mkdir(parents=True, exist_ok=True)
            aside = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
            try:
                _write(aside, data)
                if if_absent:
                    self._link(aside, path, key)
                elif if_match is not None:
                    self._swap(aside, path, key, if_match)
                else:
                    aside.replace(path)
                sync_directory(path.parent)
            finally:
                with suppress(FileNotFoundError):
                    aside.unlink()
        return _tag(data)

    def _link(self, aside: Path, path: Path, key: str) -> None:
        try:
            path.hardlink_to(aside)
        except FileExistsError:
            raise Changed(key) from None

    def _swap(self, aside: Path, path: Path, key: str, if_match: str) -> None:
        # Two renames must not both follow the same look. This is the one lock held over a look and
        # a rename: the file system has no rename that compares.
        with self._locked():
            try:
                found = _tag(path.read_bytes())
            except FileNotFoundError:
                raise Changed(key) from None
            if found != if_match:
                raise Changed(key)
            aside.replace(path)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        descriptor = os.open(self.root / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def get(self, key: str, *, length: int | None = None) -> Fetched | None:
        """Return an object or its beginning."""
        with _translated("get"):
            try:
                with self._path(key).open("rb") as file:
                    data = file.read() if length is None else file.read(length)
            except FileNotFoundError:
                return None
            return Fetched(data, _tag(data) if length is None else "")

    def list(self, prefix: str) -> Iterator[BlobInfo]:
        """Yield objects in order; what is being written aside is left out."""
        above = self._path(prefix.rpartition("/")[0]) if "/" in prefix else self.root
        found: list[BlobInfo] = []
        with _translated("list"):
            for directory, _, names in os.walk(above):
                for name in names:
                    path = Path(directory, name)
                    key = path.relative_to(self.root).as_posix()
                    if not name.startswith(".") and key.startswith(prefix):
                        with suppress(FileNotFoundError):
                            state = path.stat()
                            found.append(
                                BlobInfo(
                                    key=key,
                                    size=state.st_size,
                                    etag="",
                                    modified_ms=state.st_mtime_ns // 1_000_000,
                                )
                            )
        yield from sorted(found, key=lambda info: info.key)

    def delete(self, keys: Sequence[str]) -> Sequence[str]:
        """Delete files, and directories that become empty."""
        failed = []
        for key in keys:
            path = self._path(key)
            try:
                path.unlink(missing_ok=True)
            except OSError:
                failed.append(key)
                continue
            with suppress(OSError):
                path.parent.rmdir()
        return failed

    def close(self) -> None:
        """Do nothing: no descriptor is kept."""

    def _path(self, key: str) -> Path:
        path = self.root / key
        if ".." in path.parts:
            raise StoreRejected(_STORE, "address", f"{key!r} leaves the target")
        return path


def _tag(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _write(path: Path, data: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Make the names in a directory survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _translated(operation: str) -> Iterator[None]:
    try:
        yield
    except PermissionError as exc:
        raise ConfigError(f"target: {exc.filename}: {exc.strerror}") from exc
    except OSError as exc:
        raise StoreUnavailable(_STORE, operation, f"{exc.filename}: {exc.strerror}") from exc
