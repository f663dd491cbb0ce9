"""Server processes that a test run owns: hurt on demand, never left behind."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

__all__ = ["MissingServer", "Server", "find_program", "free_port", "run", "work_dir"]

START_S_MAX = 30.0

# The kernel kills a server when the thread that started it ends (see `setpriv --pdeathsig`). This
# one thread lives as long as the test process, so servers die with it, however it dies.
_spawner = ThreadPoolExecutor(1, thread_name_prefix="server-spawner")


class MissingServer(Exception):
    """A program is not installed; the message names the Debian package."""


def find_program(names: Sequence[str], package: str, extra_dirs: Sequence[str] = ()) -> str:
    """Return the path of the first program found.

    Raises:
        MissingServer: None is installed.
    """
    path = os.pathsep.join([*extra_dirs, os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    for name in names:
        found = shutil.which(name, path=path)
        if found:
            return found
    raise MissingServer(f"{names[0]} not found: apt-get install {package}")


def free_port() -> int:
    """Return a loopback port that nobody uses, outside the range of outgoing connections."""
    for _ in range(1000):
        port = random.SystemRandom().randrange(15_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no free port")


def work_dir(name: str) -> Path:
    """Make a directory with a short path (for sockets) that another user can reach into."""
    path = Path(tempfile.mkdtemp(prefix=f"{name}-"))
    path.chmod(0o711)
    return path


def run(command: Sequence[str], *, user: str | None = None) -> str:
    """Run a program to its end; return what it printed.

    Raises:
        RuntimeError: It failed; the message has its output.
    """
    done = subprocess.run(
        command, user=user, group=user, extra_groups=[] if user else None, cwd="/",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=120,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed ({done.returncode}):\n{done.stdout[-2000:]}")
    return done.stdout


class Server(ABC):
    """One server process on a loopback port, with its own directory.

    `start` after `kill` or `stop` finds the data of before. All methods wait for their effect.
    """

    name = "server"

    def __init__(self) -> None:
        self.dir = work_dir(self.name)
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def command(self) -> list[str]:
        """Return the command line."""

    @abstractmethod
    def ready(self) -> bool:
        """Tell whether the server answers; may raise while it does not."""

    user: str | None = None
    """The account to run as; None is our own."""

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start, and wait until the server answers."""
        if self.running:
            return
        setpriv = shutil.which("setpriv")
        guard = [setpriv, "--pdeathsig", "KILL"] if setpriv else []
        if guard and self.user:
            guard += ["--reuid", self.user, "--regid", self.user, "--init-groups"]
        command = [*guard, *self.command()]
        log = (self.dir / "server.log").open("ab")
        with log:
            self._process = _spawner.submit(
                lambda: subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd="/",
                    user=None if guard else self.user,
                    start_new_session=True,
                )
            ).result()
        self._wait_until(self._answers, "start")

    def _answers(self) -> bool:
        if not self.running:
            raise RuntimeError(f"{self.name} ended at its start:\n{self.log_tail()}")
        try:
            return self.ready()
        except Exception:
            return False

    def _wait_until(self, condition: Callable[[], bool], what: str) -> None:
        until = time.monotonic() + START_S_MAX
        while not condition():
            if time.monotonic() > until:
                raise RuntimeError(f"{self.name} did not {what}:\n{self.log_tail()}")
            time.sleep(0.01)

    def log_tail(self) -> str:
        """Return the end of the server's log."""
        path = self.dir / "server.log"
        return path.read_text(errors="replace")[-3000:] if path.exists() else ""

    def _family(self) -> list[int]:
        """Return the process and its children (PostgreSQL has one a connection)."""
        family = [self.pid]
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    stat = (entry / "stat").read_text()
                    if int(stat.rpartition(")")[2].split()[1]) == self.pid:
                        family.append(int(entry.name))
        return family

    def _signal(self, number: int) -> None:
        for pid in self._family():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill(self) -> None:
        """Kill at once (``kill -9``): connections are reset, nothing is saved."""
        if self.running:
            self._signal(signal.SIGKILL)
            self._reap()

    def stop(self) -> None:
        """Shut down in an orderly way."""
        if self.running:
            self.resume()
            os.kill(self.pid, self.stop_signal)
            try:
                self._reap(timeout_s=20)
            except subprocess.TimeoutExpired:
                self.kill()

    stop_signal = signal.SIGTERM

    def _reap(self, timeout_s: float | None = None) -> None:
        assert self._process is not None
        self._process.wait(timeout_s)

    def restart(self) -> None:
        """Kill and start again on the same data."""
        self.kill()
        self.start()

    def pause(self) -> None:
        """Freeze (SIGSTOP): connections stay, the kernel accepts new ones, nobody answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Thaw (SIGCONT)."""
        if self.running:
            self._signal(signal.SIGCONT)

    def heal(self) -> None:
        """Bring the server to running, whatever the last test did to it."""
        self.resume()
        self.start()

    def destroy(self) -> None:
        """Kill, and remove the directory."""
        self.kill()
        shutil.rmtree(self.dir, ignore_errors=True)
