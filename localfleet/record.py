"""Records of running processes, by which a later command finds and stops them."""

import os
import select
import signal
from pathlib import Path

from pydantic import BaseModel

_KILL_TIMEOUT_S = 10


class ProcessRecord(BaseModel, frozen=True):
    """One process; its start time tells it from a later process with the same pid."""

    name: str
    pid: int
    started: int
    """Start time in clock ticks since boot."""
    log: Path

    @property
    def alive(self) -> bool:
        """Whether this process still runs."""
        return start_time(self.pid) == self.started

    def stop(self, timeout_s: float) -> None:
        """Stop the process: SIGTERM, and after `timeout_s` seconds SIGKILL to its whole group.

        Does nothing if it has ended. Afterwards it no longer runs.
        """
        try:
            fd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            # Checked after the pidfd is open, so that the signal cannot reach a later process.
            if not self.alive:
                return
            signal.pidfd_send_signal(fd, signal.SIGTERM)
            if not select.select([fd], [], [], timeout_s)[0]:
                os.killpg(self.pid, signal.SIGKILL)
                select.select([fd], [], [], _KILL_TIMEOUT_S)
        finally:
            os.close(fd)


def start_time(pid: int) -> int | None:
    """Clock ticks since boot when the process began; None if it has ended, reaped or not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command's name, in parentheses, may itself contain spaces and parentheses.
    fields = stat.rpartition(")")[2].split()
    state, start_time = fields[0], int(fields[19])
    return None if state in "ZX" else start_time
