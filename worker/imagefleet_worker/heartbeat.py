"""Heartbeats to the parent process: whether the engine is busy, and that it makes progress."""

import ctypes
import os
import signal
import sys
from contextlib import suppress

BUSY, IDLE = b"b", b"i"
_PR_SET_PDEATHSIG = 1


class Heartbeat:
    """Writes a byte to the parent's pipe: at every step of the engine, and when it goes idle."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd
        if fd is not None:
            os.set_blocking(fd, False)

    def __call__(self, busy: bool) -> None:
        if self._fd is None:
            return
        # A full pipe means that the parent has enough heartbeats to read. A closed one means that
        # the parent is gone, and then the kernel kills this process (`die_with_parent`).
        with suppress(BlockingIOError, BrokenPipeError):
            os.write(self._fd, BUSY if busy else IDLE)


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent dies, so that it frees the GPU's memory."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
