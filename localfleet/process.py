"""A child process that is considered started once it answers."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from localfleet.record import ProcessRecord, start_time

_POLL_S = 0.05
_LOG_TAIL_BYTES = 3000

# Sent through exec rather than preexec_fn, which is unsafe once the parent has threads.
_DIE_WITH_PARENT = """
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent died before its child began")
os.execvp(sys.argv[2], sys.argv[2:])
"""


class StartFailed(Exception):
    """A process ended or did not answer during start; the message has the tail of its log."""


@dataclass(kw_only=True)
class Process:
    """A server to start, stop, kill and start again on the same data and ports."""

    name: str
    arguments: Sequence[str]
    url: str
    """Where it can be reached."""
    directory: Path
    """Its working directory; created if missing."""
    log: Path
    """Standard output and error are appended to this file."""
    environment: Mapping[str, str] = field(repr=False)
    """The whole environment of the process."""
    ready: Callable[[int], bool] = field(repr=False)
    """Called with the pid: whether the process answers; must return within seconds."""
    detached: bool = False
    """Whether it outlives this process. If not, it is killed when the *thread* that started it
    ends."""
    start_timeout_s: float = 60
    stop_timeout_s: float = 15
    _child: subprocess.Popen[bytes] | None = field(default=None, init=False, repr=False)

    @property
    def pid(self) -> int:
        """Process id; the process must have been launched."""
        assert self._child is not None
        return self._child.pid

    @property
    def alive(self) -> bool:
        """Whether it was launched and has not ended."""
        return self._child is not None and self._child.poll() is None

    def record(self) -> ProcessRecord:
        """What another process needs in order to stop this one later.

        Raises:
            StartFailed: it has ended already.
        """
        started = start_time(self.pid)
        if started is None:
            raise self._failed("ended at once")
        return ProcessRecord(name=self.name, pid=self.pid, started=started, log=self.log)

    def start(self) -> Self:
        """Launch it and wait until it answers.

        Raises:
            StartFailed: it ended or did not answer in time; it is not left running.
        """
        self.launch()
        try:
            self.wait_ready()
        except BaseException:
            self.kill()
            raise
        return self

    def launch(self) -> None:
        """Start the process without waiting for it, in a process group of its own."""
        assert not self.alive, f"{self.name} runs already"
        self.directory.mkdir(parents=True, exist_ok=True)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        guard = [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid())]
        with self.log.open("ab") as log:
            self._child = subprocess.Popen(
                [*([] if self.detached else guard), *self.arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
                env=dict(self.environment),
                start_new_session=True,
            )

    def wait_ready(self) -> None:
        """Return as soon as the launched process answers.

        Raises:
            StartFailed: it ended or did not answer in time.
        """
        deadline = time.monotonic() + self.start_timeout_s
        while not self.ready(self.pid):
            if not self.alive:
                raise self._failed("ended before it was ready")
            if time.monotonic() > deadline:
                raise self._failed(f"did not answer within {self.start_timeout_s:g} s")
            time.sleep(_POLL_S)

    def stop(self) -> None:
        """Stop it gracefully, and kill it after `stop_timeout_s` seconds; no-op if it is not
        running."""
        if self._child is not None and self.alive:
            self.record().stop(self.stop_timeout_s)
            self._child.wait()

    def kill(self) -> None:
        """Kill it and its process group at once, as a crash would; no-op if it is not running."""
        if self._child is not None and self.alive:
            os.killpg(self._child.pid, signal.SIGKILL)
            self._child.wait()

    def restart(self) -> None:
        """Stop it and start it again with the same ports and data."""
        self.stop()
        self.start()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _failed(self, what: str) -> StartFailed:
        tail = self.log.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace")
        return StartFailed(f"{self.name} {what}; the end of {self.log}:\n{tail or '(empty)'}")
