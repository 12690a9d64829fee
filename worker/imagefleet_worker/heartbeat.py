"""Tells the parent process whether the engine is at work, and that it still moves."""

import ctypes
import os
import signal
import sys
from contextlib import suppress

BUSY, IDLE = b"b", b"i"
_PR_SET_PDEATHSIG = 1


class Heartbeat:
    """Writes a byte into the parent's pipe: at every step of the engine, and when it falls idle."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd
        if fd is not None:
            os.set_blocking(fd, False)

    def __call__(self, busy: bool) -> None:
        if self._fd is None:
            return
        # A full pipe means that the parent has beats enough to read; a closed one, that it is gone,
        # and then `die_with_parent` has the last word.
        with suppress(BlockingIOError, BrokenPipeError):
            os.write(self._fd, BUSY if busy else IDLE)


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent dies, lest it keep the GPU's memory."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
